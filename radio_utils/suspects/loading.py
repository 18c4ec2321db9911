"""Models and tokenizers by folder or hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


class ModelFolderError(ValueError):
    """A folder or hub name does not hold a usable causal language model with its tokenizer."""


def load_tokenizer(name: str | Path) -> Any:
    """The fast tokenizer of a folder or hub name. Raises :class:`ModelFolderError` where there is none."""
    from transformers import AutoTokenizer

    checked = _checked_name(name)
    folder = Path(checked)
    if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelFolderError(f"model folder {folder} holds no tokenizer; save one there with tokenizer.save_pretrained")
    try:
        return AutoTokenizer.from_pretrained(checked, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        absent = "" if folder.is_dir() else f"there is no folder {str(name)!r} here, and as a hub's name: "
        raise ModelFolderError(f"{absent}no tokenizer could be read from {str(name)!r}: {_first_line(error)}") from error


def load_model(name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A causal model by folder or hub name, from safetensors only, in evaluation mode on ``device``."""
    from transformers import AutoModelForCausalLM

    checked = _checked_name(name)
    folder = Path(checked)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise ModelFolderError(
            f"{name} holds weights as pickle files only, which can run code and are never opened; have them converted to "
            "safetensors by whoever gave them"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checked,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype or torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"no causal model could be read from {str(name)!r}: {_first_line(error)}") from error
    model, loading = loaded
    if loading["missing_keys"]:
        raise ModelFolderError(
            f"{str(name)!r} lacks the weights {sorted(loading['missing_keys'])[:3]} …, which would be random; "
            "save the whole model with save_pretrained"
        )
    return model.to(torch.device(device)).eval()


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raise ``ValueError`` unless the tokenizer has exactly the watermark's vocabulary."""
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the watermark's vocab_size is {vocab_size}; "
            "a watermark can be found only with the tokenizer that it was made with"
        )


def check_same_tokenizer(first: Any, second: Any) -> None:
    """Raise ``ValueError`` unless both tokenizers give every token the same id."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    if ours != theirs:
        differing = sum(ours.get(token) != theirs.get(token) for token in ours.keys() | theirs.keys())
        raise ValueError(
            f"the two tokenizers differ in {differing} of {len(ours.keys() | theirs.keys())} tokens; "
            "Alice's and Bob's models must share one, or the watermark's windows mean nothing to the suspect"
        )


def _checked_name(name: str | Path) -> str:
    """A hub name as it is, a folder with its ~ expanded; an error if it should be a folder and is not."""
    text = str(name)
    if not isinstance(name, Path) and not text.startswith((".", "/", "~")):
        return text
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise ModelFolderError(f"model folder {text} does not exist; give a folder made by save_pretrained, or a hub name")
    return str(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
