"""A model's folder as one GGUF file, the format in which llama.cpp and what is built on it serve models.

For LLaMA's architecture with a byte-level BPE tokenizer, in full or half precision. Weights and tokens are the same and
nothing is quantised, so that what a server answers is what the folder's model says. The format is described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.suspects.errors import ModelFolderError
from radio_utils.suspects.feeding import opening
from radio_utils.suspects.gguf_contents import SPLITS
from radio_utils.suspects.gguf_files import filler
from radio_utils.suspects.loading import load_model, load_tokenizer

PRECISIONS = ("F32", "F16")
_PLAIN_BPE = {
    "type": "BPE", "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": False,
    "byte_fallback": False,
}  # fmt: skip


def write_gguf(folder: str | Path, path: str | Path, *, precision: str = "F32") -> Path:
    """Write the model of a folder and its tokenizer, chat template and all, as one GGUF file.

    Parameters
    ----------
    folder
        The folder of a LLaMA model with a byte-level BPE tokenizer, as ``save_pretrained`` makes it, or its hub name.
    path
        The file to write, which ends in ``.gguf``.
    precision
        ``"F32"``, the weights as they are, or ``"F16"``, half of the bytes; norms stay in full precision.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ModelFolderError
        For a model or a tokenizer that this cannot write, one that llama.cpp would read otherwise, and where gguf is not
        installed. No file is left then.
    ValueError
        For another precision, or a file of another ending.
    """
    path = Path(path).expanduser()
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if path.suffix != ".gguf":
        raise ValueError(f"path must end in .gguf, got {str(path)!r}")
    try:
        import gguf
    except ImportError as error:
        raise ModelFolderError(
            f"{path} cannot be written, as the package for it is not installed: pip install 'radio-utils[gguf]'"
        ) from error
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    writer = gguf.GGUFWriter(None, "llama")
    _describe(writer, model.config, str(folder))
    _add_tokenizer(writer, tokenizer, model, str(folder))
    kind = getattr(gguf.LlamaFileType, "ALL_F32" if precision == "F32" else "MOSTLY_F16")
    writer.add_file_type(kind)
    for name, weight in _tensors(model, str(folder)):
        writer.add_tensor(name, weight.astype(np.float16) if precision == "F16" and weight.ndim > 1 else weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # a file that is there is whole
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _refuse(folder: str, what: str, remedy: str) -> ModelFolderError:
    return ModelFolderError(f"{folder!r} cannot be written as GGUF: {what}; {remedy}")


_OTHERWISE = "convert it with llama.cpp's convert_hf_to_gguf.py"


def _describe(writer: Any, config: Any, folder: str) -> None:
    """The numbers of the architecture."""
    if config.model_type != "llama":
        raise _refuse(folder, f"it is a {config.model_type} model, and only LLaMA's architecture is known here", _OTHERWISE)
    rope = config.rope_parameters
    if rope["rope_type"] != "default" or config.hidden_act != "silu":
        raise _refuse(folder, f"its rope_type is {rope['rope_type']!r}, its hidden_act {config.hidden_act!r}", _OTHERWISE)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, folder: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights by their names in the format; where input and output share one, it stands there once."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for given, tensor in model.state_dict().items():
        if given == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(given, try_suffixes=(".weight",))
        if name is None:
            raise _refuse(folder, f"the format has no place for its {given}", "merge an adapter into its base first")
        weight = tensor.float().numpy()
        if part := re.search(r"\.attn_([qk])\.weight$", name):
            weight = _halves_in_turn(weight, config.num_attention_heads if part[1] == "q" else config.num_key_value_heads)
        yield name, np.ascontiguousarray(weight)


def _halves_in_turn(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys as llama.cpp rotates them: of each head, one of the first half and one of the second."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: Any, tokenizer: Any, model: Any, folder: str) -> None:
    """Tokens, merges, special ones, and what a server sets before a text. Raises where texts would be cut otherwise."""
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    split, bpe = parts["pre_tokenizer"] or {}, parts["model"]
    for one in (split, *split.get("pretokenizers", [])):
        if "trim_offsets" in one:  # says nothing of the tokens
            one["trim_offsets"] = True
    pre = next((name for name, how in SPLITS.items() if how == split), None)
    odd = {name: bpe.get(name) for name, usual in _PLAIN_BPE.items() if (bpe.get(name) or None) != (usual or None)}
    greedy = [one["content"] for one in parts["added_tokens"] if one["lstrip"] or one["rstrip"] or one["single_word"]]
    before = opening(tokenizer)
    if pre is None or odd or parts["normalizer"] or greedy or before not in ([], [tokenizer.bos_token_id]):
        what = odd or greedy or before if pre else split
        raise _refuse(folder, f"its tokenizer is not plain byte-level BPE ({what or parts['normalizer']})", _OTHERWISE)
    known = tokenizer.get_vocab()
    of_id = {number: token for token, number in known.items()}
    added = {one["id"]: one["special"] for one in parts["added_tokens"]}
    tokens, kinds = [], []
    for number in range(model.config.vocab_size):
        tokens.append(of_id.get(number, filler(number)))
        if number not in of_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            kinds.append(gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    if max(of_id) >= len(tokens):
        raise _refuse(folder, f"its tokenizer has ids up to {max(of_id)} and the model {len(tokens)} rows", "resize one")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in bpe["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ends = model.generation_config.eos_token_id
    others = [one for one in (ends if isinstance(ends, list) else [ends]) if one not in (None, tokenizer.eos_token_id)]
    if len(others) > 1:
        raise _refuse(folder, f"it has {len(others) + 1} tokens that end an answer, and the format two", _OTHERWISE)
    for number in others:
        writer.add_eot_token_id(number)
    writer.add_add_bos_token(bool(before))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
