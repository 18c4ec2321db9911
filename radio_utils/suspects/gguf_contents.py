"""What a GGUF file says, against what transformers made of it: what that cannot read, it drops without a word.

A file names the numbers of its architecture, how positions turn, how texts are split before the merges, and every weight.
Where something that decides what a model says was not taken, the model or the tokenizer that was read is another one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.suspects.errors import ModelFolderError

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# how texts are split before the merges, as a tokenizer.json writes it, by llama.cpp's names for it
SPLITS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTES, "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]},
}  # fmt: skip
_ALIASES = {
    **dict.fromkeys(["exaone4", "gigachat", "jais", "mpt", "olmo", "phi-2", "roberta-bpe", "trillion"], "gpt-2"),
    **dict.fromkeys(["codeshell", "command-r", "exaone", "minerva-7b", "refact", "starcoder"], "smollm"),
}
# with these llama.cpp takes a piece that is a token whole, and sets the opening token unless the file says otherwise
_WHOLE = {
    "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral", "tekken",
}  # fmt: skip

# numbers of an architecture, and what transformers calls them: the first that a configuration has
_SAME = {
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.value_length": ("head_dim",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}
_NEUTRAL = {"attention.causal": True, "expert_weights_scale": 1.0, "rope.scaling.attn_factor": 1.0}
# what the shapes of the weights say too, what has a check of its own, and what changes nothing that a model says
_ELSEWHERE = re.compile(
    r"block_count|context_length|embedding_length|vocab_size|(expert_|expert_shared_)?feed_forward_length|pooling_type"
    r"|nextn_predict_layers|full_attention_interval|shortconv\.l_cache"
    r"|ssm\.(conv_kernel|inner_size|state_size|time_step_rank|group_count)"
    r"|tensor_data_layout|attention\.sliding_window(_pattern)?|rope\.(dimension_count|dimension_sections|scale_linear)"
    r"|rope\.freq_base(_swa)?|rope\.scaling\.(type|factor|finetuned|original_context_length)"
)
# weights of the tokens after the next, and of positions, which are compared as they turn
_SPARE = re.compile(r"(blk\.\d+\.)?(nextn\..*|attn_rot_embd|rope_freqs)")
# the ends of a text, of a turn and of a message: llama.cpp ends an answer at each
_ENDS = tuple(f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
_OTHERWISE = "give the model's folder in the hub's format, or let llama.cpp's server answer with it and give its address"


def as_said(file: Path, tokenizer: Any) -> Any:
    """The tokenizer that transformers made of a file, which now splits and opens a text as that says.

    Raises :class:`ModelFolderError` where that is not known, or the file does not say it.
    """
    import gguf
    from tokenizers import Tokenizer, models

    found = gguf.GGUFReader(file).fields
    said: dict[str, Any] = {"model": "", "pre": "", "add_bos_token": True, "add_space_prefix": True}
    said |= {name: found[key].contents() for name in said if (key := f"tokenizer.ggml.{name}") in found}
    kind, pre, begins, blank = said.values()
    backend, lost = tokenizer.backend_tokenizer, ""
    if kind == "gpt2":
        if split := SPLITS.get(_ALIASES.get(pre, pre)):
            parts = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": split}
            backend.pre_tokenizer = Tokenizer.from_str(json.dumps(parts)).pre_tokenizer
        elif not pre:
            lost = "it has no tokenizer.ggml.pre"
        elif json.loads(backend.to_str())["pre_tokenizer"].get("use_regex"):  # stands for all that is not known
            lost = f"it splits texts before the merges by {pre!r}, which is not known"
        if pre in _WHOLE:
            backend.model.ignore_merges = True
            tokenizer.add_bos_token = begins and tokenizer.bos_token is not None
    elif kind == "llama" and backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁") != blank:
        lost = f"it says add_space_prefix={blank}, which was not taken"
    if lost:
        raise ModelFolderError(f"transformers reads another tokenizer from {file}: {lost}; {_OTHERWISE}")
    return tokenizer


def held_to(file: Path, model: Any) -> tuple[str, ...]:
    """Let a model that transformers read from a file end its answers as that says; the tensors that it has no place for.

    Raises :class:`ModelFolderError` where the model is another than the file's: where that has more layers, or weights to
    compute with that have no place, or says otherwise how positions turn, how far back a token looks, or what a number of
    the architecture is.
    """
    import gguf

    found = gguf.GGUFReader(file)
    architecture = found.fields["general.architecture"].contents()
    start = f"{architecture}."
    said = {key.removeprefix(start): one.contents() for key, one in found.fields.items() if key.startswith(start)}
    factors = next((one.data for one in found.tensors if one.name == "rope_freqs.weight"), np.ones(1))
    rest = _without_place([one.name for one in found.tensors], architecture, model)
    differences = (
        *_lost(rest, said, model),
        *_other_numbers(said, model.config.get_text_config()),
        *_other_windows(said, model.config.get_text_config()),
        *_other_rotation(said, np.asarray(factors, np.float64), model),
    )
    if differences:
        raise ModelFolderError(f"transformers reads another model from {file}: {differences[0]}; {_OTHERWISE}")
    ends = {found.fields[key].contents() for key in _ENDS if key in found.fields}
    if len(ends) > 1:
        model.generation_config.eos_token_id = sorted(ends)
    return tuple(rest)


def _without_place(tensors: Iterable[str], architecture: str, model: Any) -> list[str]:
    """Tensors that the model has no place for."""
    import gguf

    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names, places = gguf.get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers), set()
    for given in model.state_dict():
        for name in {given.replace("gate_up_proj", part) for part in ("gate_up_proj", "gate_proj", "up_proj")}:
            stem, suffix = _stem(name.replace("dt_bias", "dt_proj.bias"))
            ends = [stem.split(".", skipped)[-1] for skipped in range(stem.count(".") + 1)]
            place = next((place for one in ends if (place := names.get_name(one))), None)
            places |= {f"{place}{suffix}", f"{place}{suffix or '.weight'}"}
    return sorted({*tensors} - places)


def _stem(name: str) -> tuple[str, str]:
    found = re.search(r"\.(weight|bias|scale|input_scale)$", name)
    return (name[: found.start()], found[0]) if found else (name, "")


def _lost(rest: Iterable[str], said: dict[str, Any], model: Any) -> Iterator[str]:
    """Layers that the model lacks, and weights without a place that models compute with."""
    import gguf

    layers, blocks = model.config.get_text_config().num_hidden_layers, said.get("block_count", 0)
    guessing = range(blocks - said.get("nextn_predict_layers", 0), blocks)  # layers for the tokens after the next
    known = {*gguf.TENSOR_NAMES.values()}
    for name in rest:
        stem, at = _stem(name)[0], re.match(r"blk\.(\d+)\.", name)
        layer = int(at[1]) if at else -1
        if layer >= layers and layer not in guessing:
            yield f"it holds {name}, of a layer that its block_count, {blocks}, leaves out"
        elif layer < layers and not _SPARE.fullmatch(stem) and re.sub(r"^blk\.\d+", "blk.{bid}", stem) in known:
            yield f"it holds {name}, which has no place in the {type(model).__name__} that was made"


def _other_numbers(said: dict[str, Any], config: Any) -> Iterator[str]:
    for key, value in said.items():
        if not (_ELSEWHERE.fullmatch(key) or _taken(key, value, config)):
            yield f"it says {key}={value}, which was not taken"
    scale = getattr(config, "query_pre_attn_scalar", None)  # the format has no field for it: always the size of a head
    if scale is not None and scale != config.head_dim:
        yield f"its heads have {config.head_dim} dimensions, and would be divided by √{scale:g}"


def _taken(key: str, value: Any, config: Any) -> bool:
    """Whether a number of the architecture is the configuration's; where that has no such number, whether it is neutral."""
    ours = next((one for name in _SAME.get(key, ()) if (one := getattr(config, name, None)) is not None), None)
    if ours is None and key in ("attention.key_length", "attention.value_length"):
        ours = config.hidden_size / config.num_attention_heads
    if ours is None:
        return bool(value == _NEUTRAL.get(key, 0) or value in ("", "none"))
    each = {one for one in value if one} if isinstance(value, list) else {value}  # a layer without attention has 0 heads
    return all(math.isclose(one, ours, rel_tol=1e-5) for one in each)


def _other_windows(said: dict[str, Any], config: Any) -> Iterator[str]:
    """Where a token looks back otherwise than the file says, within the length that this names."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    ours = (getattr(config, "sliding_window", None) if slides else None) or math.inf
    theirs = said.get("attention.sliding_window", 0) or math.inf
    if ours != theirs and min(ours, theirs) < said.get("context_length", math.inf):
        yield f"a token looks back {theirs:g} tokens in the file, and {ours:g} in what was read"
    pattern = said.get("attention.sliding_window_pattern")
    if pattern and theirs < math.inf:
        every = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(len(kinds or ()))]
        if [bool(one) for one in every] != [one == "sliding_attention" for one in kinds or ()]:
            yield f"its layers look back by the pattern {pattern}, which was not taken"


def _other_rotation(said: dict[str, Any], factors: NDArray[np.float64], model: Any) -> Iterator[str]:
    """Where positions turn the parts of a head otherwise than by the file's base, scaling and factors."""
    width = said.get("attention.key_length") or said.get("embedding_length", 0) // (said.get("attention.head_count") or 1)
    turned = np.arange(0, said.get("rope.dimension_count", width), 2) / said.get("rope.dimension_count", width)
    kind = said.get("rope.scaling.type", "linear")
    scaling = float(said.get("rope.scaling.factor", 0) or said.get("rope.scale_linear", 0) or 1)
    if kind not in ("none", "linear") and scaling != 1:
        yield f"its positions are scaled by {kind!r}, which is not read"
    for name, buffer in model.named_buffers():
        if not name.endswith("inv_freq") or "original" in name:
            continue
        base, stretched = said.get("rope.freq_base", 10_000.0), factors * (scaling if kind == "linear" else 1)
        if "sliding" in name:  # where layers that look back a window turn by a base of their own, they are not scaled
            base, stretched = said.get("rope.freq_base_swa", 10_000.0), np.ones(1)
        theirs, ours = base**-turned / stretched, buffer.double().cpu().numpy()
        if theirs.shape != ours.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=0):
            by = f"base {base:g}, scaling {scaling:g}{', rope_freqs' if factors.size > 1 else ''}, {theirs.size} pairs"
            yield f"its positions turn by {by}, which was not taken ({name})"
