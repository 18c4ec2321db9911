"""GGUF files that people hand out: which file a name means, whether it is whole, how its weights are stored.

transformers reads a model and its tokenizer from such a file, and takes each tensor out of its quantisation.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

from radio_utils.extras import remedy
from radio_utils.suspects.errors import ModelFolderError, first_line


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a name means: itself, or the one in a folder without safetensors. None for anything else.

    Raises :class:`ModelFolderError` for a folder with several.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path if _is_gguf(path) else None
    inside = sorted(path.iterdir()) if path.is_dir() else []
    found = [] if any(one.suffix == ".safetensors" for one in inside) else [*filter(_is_gguf, inside)]
    if len(found) > 1:
        raise ModelFolderError(
            f"{path} holds {len(found)} GGUF files ({', '.join(one.name for one in found[:3])}{' …' * (len(found) > 3)}); "
            "give the path of the one that is meant"
        )
    return found[0] if found else None


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def check_readable(file: Path) -> None:
    """Raise :class:`ModelFolderError` where the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelFolderError(
            f"{file} is a GGUF file, and the package that reads it is not installed: {remedy('gguf')}; or let llama.cpp's "
            "server answer with it and give that server's address"
        )


def quantisation(file: Path) -> str:
    """How the tensors of a GGUF file are stored, the commonest first: "Q4_1 (211 tensors), F32 (61 tensors)".

    Raises :class:`ModelFolderError` for a file that is torn, is one part of several, or holds no tokenizer.
    """
    check_readable(file)
    import gguf

    try:
        found = gguf.GGUFReader(file)
        parts = found.get_field("split.count")
        several = parts is not None and int(parts.contents()) > 1
        kinds = Counter(tensor.tensor_type.name for tensor in found.tensors)
    except Exception as error:  # what the reader raises for a torn file is of no class of its own
        raise ModelFolderError(f"{file} is no whole GGUF file ({first_line(error)}); get the file again") from error
    if several:
        raise ModelFolderError(f"{file} is one part of a model; join all parts with llama-gguf-split --merge")
    if found.get_field("tokenizer.ggml.tokens") is None:
        raise ModelFolderError(
            f"{file} holds no tokenizer; give a file that was written with one, or the model's folder in the hub's format"
        )
    return ", ".join(f"{kind} ({count} tensors)" for kind, count in kinds.most_common())


def without_fillers(tokenizer: Any) -> Any:
    """A GGUF file's tokenizer with the tokens that the model's own has and no others.

    Such a file names rows of the model that have no token, too, and transformers adds a token to some for what is unknown.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    size, tokens = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False), tokenizer.get_vocab()
    odd = {token for token, number in tokens.items() if number >= size or token == filler(number)}
    if not odd:
        return tokenizer
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in odd}
    else:  # pairs of a token and its score, whose place is the id
        while model["vocab"] and model["vocab"][-1][0] in odd:
            model["vocab"].pop()
    parts["added_tokens"] = [one for one in parts["added_tokens"] if one["content"] not in odd]
    special = {role: token for role, token in tokenizer.special_tokens_map.items() if token not in odd}
    backend = Tokenizer.from_str(json.dumps(parts))
    result = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    result.chat_template = tokenizer.chat_template
    return result


def filler(row: int) -> str:
    """What stands in a GGUF file for a row without a token, as llama.cpp's own converter writes it."""
    return f"[PAD{row}]"
