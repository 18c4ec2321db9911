"""Models and tokenizers by folder or hub name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from radio_utils.files import sha256_of, sha256_of_folder
from radio_utils.suspects.errors import ModelFolderError
from radio_utils.suspects.gguf_contents import as_said, held_to
from radio_utils.suspects.gguf_files import check_readable, gguf_file, without_fillers
from radio_utils.suspects.vocabulary import VocabularySizes

logger = logging.getLogger(__name__)


def load_tokenizer(name: str | Path) -> Any:
    """The fast tokenizer of a folder, a GGUF file or a hub name. Raises :class:`ModelFolderError` where there is none."""
    from transformers import AutoTokenizer

    path = gguf_file(name) or Path(name).expanduser()
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if path.is_dir() and not any((path / f).exists() for f in files):
        raise ModelFolderError(f"model folder {path} holds no tokenizer; save one there with tokenizer.save_pretrained")
    absent = "" if path.exists() else f"there is no folder {str(name)!r} here, and as a hub's name: "
    with _source(name) as (source, options), _said(f"{absent}no tokenizer could be read from {str(name)!r}"):
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        return without_fillers(as_said(path, found)) if options else found


def load_model(name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A causal model by folder, GGUF file or hub name, from safetensors or GGUF only, in evaluation mode on ``device``.

    Whatever fails is a :class:`ModelFolderError`, one sentence that keeps its cause. Refused are weights that are missing,
    layers that the configuration leaves out, and what transformers does not take from a GGUF file: the model would be
    another one than its weights are. Other weights that it has no place for are logged, and named in its attribute
    ``unused_weights``.
    """
    from transformers import AutoModelForCausalLM

    path = gguf_file(name) or Path(name).expanduser()
    if path.is_dir() and not any(path.glob("*.safetensors")) and any(path.glob("*.bin")):
        raise ModelFolderError(
            f"{name} holds weights as pickle files only, which can run code and are never opened; have them converted to "
            "safetensors by whoever gave them"
        )
    with _source(name) as (source, options), _said(f"no causal model could be read from {str(name)!r}"):
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype or torch.float32,
            output_loading_info=True,
            **options,
        )
        model, loading = found
        missing, unused = sorted(loading["missing_keys"]), tuple(sorted(loading["unexpected_keys"]))
        if missing:
            raise ModelFolderError(
                f"{str(name)!r} lacks the weights {missing[:3]} …, which would be random; save the whole model with "
                "save_pretrained"
            )
        if left_out := _left_out(unused, model.state_dict()):
            raise ModelFolderError(
                f"{str(name)!r} holds the weights {left_out[:3]} … of layers that its config.json leaves out, so this is "
                "not the model that they are of; correct num_hidden_layers, or save the model anew"
            )
        if options:
            unused += held_to(path, model)
        for part in model.modules():  # its parts must name what they give, whatever its configuration says
            if hasattr(part, "config"):
                part.config.return_dict = True
        if unused:
            logger.warning("%s: %d weights were not used: %s", name, len(unused), ", ".join(unused[:5]))
        model.unused_weights = unused
        return model.to(torch.device(device)).eval()


def _left_out(unused: Sequence[str], used: Iterable[str]) -> list[str]:
    """Weights of a numbered layer where the model has layers of that name with smaller numbers only, or none at all."""
    lists: dict[str, int] = {}
    for name in used:
        for found in _NUMBERED.finditer(name):
            before = name[: found.start()]
            lists[before] = max(lists.get(before, -1), int(found[1]))
    result = []
    for name in unused:
        for found in _NUMBERED.finditer(name):
            if int(found[1]) > lists.get(name[: found.start()], int(found[1]) if lists else -1):
                result.append(name)
                break
    return result


_NUMBERED = re.compile(r"(?<=\.)(\d+)(?=\.)")


def identity(name: str | Path) -> dict[str, str]:
    """What decides a model: the SHA-256 of each file of its folder, and for an adapter those of its base as "base/…".

    Of a GGUF file that of it alone, whatever lies beside it. Of a hub name the commit, and for an adapter its base's.
    """
    path = gguf_file(name) or Path(name).expanduser()
    if path.is_file():
        return {path.name: sha256_of(path)}
    if path.is_dir():
        found, config = sha256_of_folder(path), path / "adapter_config.json"
        for extra in sorted((path / "additional_chat_templates").glob("*")):
            found[f"{extra.parent.name}/{extra.name}"] = sha256_of(extra)
    else:
        cached = {
            file: _cached(str(name), file) for file in ("config.json", "adapter_config.json", "tokenizer_config.json")
        }
        commits = [one.parent.name for one in cached.values() if one is not None]
        found, config = {"hub commit": commits[0] if commits else "unknown"}, cached["adapter_config.json"] or path / "none"
    base = _base(config)
    return found | ({} if base is None else {f"base/{file}": value for file, value in identity(base).items()})


def rows_in_config(name: str | Path) -> int | None:
    """The vocabulary that a model's configuration names, padding and all; None where it can't be told without the hub."""
    path = gguf_file(name) or Path(name).expanduser()
    config = path / "config.json" if path.exists() else _cached(str(name), "config.json")
    try:
        found = json.loads(config.read_text("utf-8")) if config is not None else {}
        rows = found.get("vocab_size", found.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError):
        return None
    return rows if isinstance(rows, int) and rows > 0 else None


def _base(config: Path) -> str | None:
    """The name of the model beside which an adapter was trained."""
    try:
        base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return base if isinstance(base, str) and base else None


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raise ``ValueError`` unless the tokenizer has exactly the watermark's vocabulary."""
    sizes = VocabularySizes.of(tokenizer)
    if vocab_size not in (sizes.size, sizes.length):
        raise ValueError(
            f"the tokenizer has {sizes.length} tokens but the watermark's vocab_size is {vocab_size}; "
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


@contextmanager
def _source(name: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What ``from_pretrained`` takes: a hub name as it is or a folder with its ~ expanded; or a GGUF file.

    With such a file transformers heeds what lies beside it, as an adapter, from whose base it takes a file of that name, or
    a tokenizer's files, and before all a file of that name where Python runs: it is shown an empty folder and a whole path.
    """
    text = str(name)
    path = Path(text).expanduser()
    if (file := gguf_file(path)) is not None:
        check_readable(file)
        with TemporaryDirectory() as empty:
            yield empty, {"gguf_file": str(file.absolute())}
    elif path.is_dir():
        yield str(path), {}
    elif isinstance(name, Path) or text.startswith((".", "/", "~")):
        raise ModelFolderError(f"model folder {text} does not exist; give a folder made by save_pretrained, or a hub name")
    else:
        yield text, {}


@contextmanager
def _said(what: str) -> Iterator[None]:
    """The one boundary of loading: whatever fails there, in whatever library, in one sentence that keeps its cause."""
    try:
        yield
    except ModelFolderError:
        raise
    except Exception as error:
        raise ModelFolderError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, KeyError) and lines:
        return f"it does not know {lines[0]}"
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
