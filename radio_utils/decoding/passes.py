"""One pass of a model, whatever the model is: where its inputs go, how much it can read, what comes out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def device_of(model: Any) -> torch.device:
    """Where a model's inputs belong; weights that ``accelerate`` keeps elsewhere are on the meta device until needed."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)
    for part in (model, _or_none(embeddings)):
        if (device := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(device)
    found = (one.device for one in model.parameters() if one.device.type != "meta")
    return next(found, torch.device("cpu"))


def _or_none(function: Any) -> Any:
    try:
        return function()
    except (NotImplementedError, AttributeError):
        return None


def positions_of(model: Any) -> int | None:
    """How many tokens a model can read at once; None where its configuration sets no limit."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    fields = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    values = (_attribute(config, name) for name in fields)
    most = next((one for one in values if isinstance(one, int) and not isinstance(one, bool) and one > 0), None)
    if most is None:
        return None
    # RoBERTa and its kin count positions from the padding token's on
    parts = model.named_modules() if hasattr(model, "named_modules") else []
    for name, part in parts:
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return int(min(most, part.num_embeddings - part.padding_idx - 1))
    return most


def _attribute(config: Any, name: str) -> Any:
    """A field of a configuration; None where there is none, or asking for it raises, as it does for some models."""
    try:
        return getattr(config, name, None)
    except (NotImplementedError, ValueError):
        return None


def rows_of(model: Any) -> int | None:
    """Rows of a model's vocabulary: the logits it gives, padding and all. None where it doesn't say."""
    for name in ("get_output_embeddings", "get_input_embeddings"):
        layer = _or_none(getattr(model, name, lambda: None))
        if getattr(layer, "weight", None) is not None:
            return int(layer.weight.shape[0])
    return None


def input_rows_of(model: Any) -> int:
    """How many ids a model can be fed. Raises ``ValueError`` where it doesn't say."""
    weight = getattr(_or_none(getattr(model, "get_input_embeddings", lambda: None)), "weight", None)
    found = rows_of(model) if weight is None else int(weight.shape[0])
    if found is None:
        raise ValueError("the model has no table of token embeddings; give a causal language model of transformers")
    return found


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Models in evaluation mode; afterwards every part is in the mode that it was in."""
    was = [(part, part.training) for model in models for part in model.modules() if part.training]
    for part, _ in was:
        part.training = False
    try:
        yield
    finally:
        for part, mode in was:
            part.training = mode


def logits_in(output: Any) -> torch.Tensor:
    """The logits [n, places, rows] that a model gave. Raises ``ValueError`` where it gave none."""
    logits = output[0] if isinstance(output, tuple) and output else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
        raise ValueError(
            "the model gives no logits, one for each token of its vocabulary at each place; load it with a language-model "
            "head, as AutoModelForCausalLM does"
        )
    return logits


def logits_of(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [n, length, rows] after each of the tokens [n, length]; ``mask`` [n, length] is 0 at padding.

    Raises ``ValueError`` where the model gives none, or not one for each token: which place a prediction belongs to is
    then not known.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    try:
        logits = logits_in(model(input_ids=ids, attention_mask=mask, use_cache=False))
    except IndexError as error:
        raise ValueError(
            f"the model cannot read {ids.shape[1]:,} tokens at once, or ids up to {int(ids.max()):,} ({error}); split the "
            "longer texts, and use the model's own tokenizer"
        ) from error
    ahead = virtual_places(model)
    if ahead and logits.shape[1] == ids.shape[1] + ahead:
        return logits[:, ahead:]
    if logits.shape[1] != ids.shape[1]:
        raise ValueError(
            f"the model gives logits at {logits.shape[1]} places for {ids.shape[1]} tokens, so which place a prediction "
            "belongs to is not known; give a model with one prediction a token"
        )
    return logits


def check_finite(logits: torch.Tensor, wanted: torch.Tensor) -> None:
    """Raise ``ValueError`` for NaN or infinity among a model's logits [..., V], where ``wanted`` [...] is true."""
    # the largest is NaN if any logit is, and −∞ only if all are: a single −∞ is a token that is ruled out
    if bool((~logits.amax(dim=-1).isfinite() & wanted.to(logits.device)).any()):
        raise ValueError(
            "the model's logits hold NaN or infinity; it diverged in training, or its precision overflowed (float16 does "
            "beyond 65504): load it in bfloat16 or float32"
        )


def virtual_places(model: Any) -> int:
    """Places that ``peft``'s prompt tuning and p-tuning set before a text, each with logits of its own."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not getattr(config, "is_prompt_learning", False):
        return 0
    if str(getattr(config.peft_type, "value", config.peft_type)) == "PREFIX_TUNING":  # keys and values, and no places
        return 0
    return int(config.num_virtual_tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(one in str(error).lower() for one in words)


def free_memory() -> None:
    """Give back what a failed pass still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_TOLERANCE = 1e-4  # of the spread of the logits, in single precision: two texts of one shape are rounded alike
LOOSE = 10.0  # times as much is allowed where shapes differ
_RULED_OUT = 1e3  # so far below the largest, a logit says that its token cannot come, in whatever way a model writes that


def alike(first: torch.Tensor, second: torch.Tensor, factor: float = 1.0) -> bool:
    """Whether logits [n, V] of the same places agree but for rounding; places with NaN or +∞ are not compared.

    Tokens that are ruled out, by −∞ or a number as low, count as equally low in both: they say nothing of the spread.
    """
    a, b = first.float(), second.float().to(first.device)
    known = a.amax(dim=-1).isfinite() & b.amax(dim=-1).isfinite()
    if not bool(known.any()):
        return True
    a, b = a[known], b[known]
    floor = a.amax(dim=-1, keepdim=True) - _RULED_OUT
    spread = float(a[a > floor].std(correction=0)) or 1.0
    allowed = max(_TOLERANCE, 2 * torch.finfo(first.dtype).eps) * spread
    return float((a.maximum(floor) - b.maximum(floor)).square().mean(dim=-1).sqrt().max()) <= factor * allowed
