"""What fine-tuning changes: every weight, or a low-rank adapter beside frozen ones (LoRA, Hu et al. 2022).

Adapters are ``peft``'s. With ``quantised`` the frozen weights are read in 4 bits (QLoRA, Dettmers et al. 2023), for which
``bitsandbytes`` and a GPU are needed. What is saved is always a whole model in the standard format.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from radio_utils.suspects import load_model

if TYPE_CHECKING:
    from radio_utils.presets import Adapter


class AdapterError(ValueError):
    """The adapter does not fit the model, or what it needs is not installed."""


class Tunable:
    """A model to be fine-tuned: ``network`` is what is trained, :meth:`whole` the model with what it has learned."""

    def __init__(self, source: str | Path, adapter: Adapter | None, *, device: str, seed: int) -> None:
        """``source`` is a folder or hub name; ``seed`` draws the adapter's start.

        Raises :class:`AdapterError` when no module of the model carries a name of ``adapter.targets``.
        """
        self._source, self._device, self._adapted = source, device, adapter is not None
        if adapter is None:
            self.network = load_model(source, device=device)
            return
        if adapter.quantised:
            base = _load_quantised(source, device)
        else:
            base = load_model(source, device=device)
        self.network = _attached(base, adapter, seed)
        from peft.tuners.lora import LoraLayer

        parts: Any = [(name, part) for name, part in self.network.named_modules() if isinstance(part, LoraLayer)]
        self._layers = {name: (part.scaling["default"], part.fan_in_fan_out) for name, part in parts}

    def whole(self, weights: dict[str, Any] | None = None) -> Any:
        """The model with what it has learned so far, as a model of its own where an adapter was trained.

        ``weights`` are those of ``network``, gathered, where it is spread over several devices.
        """
        if not self._adapted:
            return self.network
        learned = self.network.state_dict() if weights is None else weights
        result = load_model(self._source, device=self._device)
        with torch.no_grad():
            for name, (scaling, transposed) in self._layers.items():
                weight = result.get_submodule(name).weight
                up, down = (learned[f"{name}.lora_{part}.default.weight"].to(weight) for part in "BA")
                change = scaling * (up @ down)
                weight += change.T if transposed else change
        return result


def _attached(base: Any, adapter: Adapter, seed: int) -> Any:
    """The model with low-rank matrices beside its linear layers, everything else frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise AdapterError("fine_tuning.adapter needs peft: pip install 'radio-utils[models]'") from error

    targets = adapter.targets[0] if adapter.targets == ("all-linear",) else list(adapter.targets)
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )  # fmt: skip
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that will change
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(base, config)
        except ValueError as error:
            names = sorted({name.rsplit(".", 1)[-1] for name, part in base.named_modules() if _is_linear(part)})
            raise AdapterError(
                f"adapter.targets={list(adapter.targets)} match no module of the model; its linear modules are "
                f"{', '.join(names)}, and 'all-linear' takes them all"
            ) from error
    return wrapped.base_model.model


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _load_quantised(source: str | Path, device: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise AdapterError(
            "adapter.quantised needs bitsandbytes: pip install 'radio-utils[quantised]', or set adapter.quantised to false"
        ) from error
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
    )
    return AutoModelForCausalLM.from_pretrained(
        str(source), quantization_config=config, device_map={"": device}, use_safetensors=True, trust_remote_code=False
    )
