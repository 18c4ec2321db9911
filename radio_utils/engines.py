"""Marks of inference engines from the configuration that the engine was started with: :func:`from_config`.

What is read, and from which version, stands in :mod:`radio_utils.watermarks.engines`, :mod:`radio_utils.watermarks.synthid`
and on the page "Supported marks".
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radio_utils.watermarks import Watermark
from radio_utils.watermarks.engines import (
    SBW,
    EngineMark,
    SGLangGumbel,
    VLLMDualKey,
    VLLMGreenList,
    VLLMGumbel,
    VLLMSynthID,
    checked_key,
)
from radio_utils.watermarks.lists import KirchenbauerGreenList, Unigram
from radio_utils.watermarks.published import TransformersGreenList
from radio_utils.watermarks.synthid import SynthID, SynthIDReference

__all__ = [
    "SBW",
    "EngineMark",
    "KirchenbauerGreenList",
    "SGLangGumbel",
    "SynthID",
    "SynthIDReference",
    "Unigram",
    "VLLMDualKey",
    "VLLMGreenList",
    "VLLMGumbel",
    "VLLMSynthID",
    "from_config",
    "key_of",
]

_VLLM = {
    "key", "algorithm", "alpha", "context_width", "deduplicate_contexts", "deduplicate_contexts_max_history", "prf",
    "allow_target_only_watermarking", "depth", "sbw_scheme", "sbw_gamma", "sbw_delta", "gamma", "delta",
}  # fmt: skip
_SGLANG = {
    "key", "key_b", "context_window", "mixing_probability", "max_probability", "default_enabled", "enforce_all",
}  # fmt: skip
_SYNTHID = {
    "keys", "ngram_len", "sampling_table_size", "sampling_table_seed", "context_history_size", "skip_first_ngram_calls",
    "debug_mode",
}  # fmt: skip
_GREEN = set(TransformersGreenList.FIELDS)
_KIRCHENBAUER = {"gamma", "delta", "seeding_scheme", "hash_key", "select_green_tokens"}
_UNIGRAM = {"fraction", "strength", "watermark_key", "vocab_size"}
_NESTED = ("watermarking_config", "watermark_config")  # in transformers' generation_config.json, and in engines' arguments
_KEYS = ("key", "keys", "hashing_key", "hash_key", "watermark_key")
_WIDTHS = {
    "vllm": "context_width",
    "sglang": "context_window",
    "transformers": "context_width",
    "synthid-text": "ngram_len",
}
_ENGINES = ("vllm", "sglang", "transformers", "lm-watermarking", "unigram", "synthid-text", "tensorrt-llm", "textseal")


def key_of(config: Any, key: Any = None) -> Any:
    """The key that a mark of this configuration has: ``key`` if it is given, else the configuration's own.

    Raises ``ValueError`` where neither says it, or the configuration is none.
    """
    if key is not None:
        return key
    fields, _ = _unwrapped(config)
    for name in _KEYS:
        if fields.get(name) is not None:
            found = fields[name]
            return int(found, 0) if isinstance(found, str) and re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", found) else found
    raise ValueError(f"config has none of {', '.join(_KEYS)}; give the key beside it")


def from_config(
    config: Any,
    vocab_size: int,
    key: Any = None,
    *,
    engine: str | None = None,
    version: str | None = None,
    window: int | None = None,
) -> Watermark:
    """The mark that an engine with this configuration writes, ready to be tested and to be written with.

    ``config`` is JSON text, the path of a JSON file, a dict, or an object of the engine: vLLM's ``--watermark-config``
    (``WatermarkConfig``), SGLang's ``--watermark-config``, transformers' ``WatermarkingConfig`` and
    ``SynthIDTextWatermarkingConfig`` (or a ``generation_config.json`` that holds one), lm-watermarking's ``WatermarkBase``
    arguments, or Unigram's. ``vocab_size`` is the number of the model's logits. ``key`` stands for the configuration's
    ``key``, ``keys``, ``hashing_key``, ``hash_key`` or ``watermark_key`` where that is left out: an integer, a list for
    SynthID, hexadecimal digits for SGLang.

    ``engine`` is one of "vllm", "sglang", "transformers", "synthid-text" (the authors' reference), "lm-watermarking" and
    "unigram"; by default the fields tell. ``version`` is vLLM's: its default of alpha was another in 0.30, and
    algorithms that it didn't have are refused. ``window`` replaces the configuration's width k. Raises ``ValueError``,
    which never holds the key, for what is unknown.
    """
    fields, kind = _unwrapped(config)
    engine = engine or _engine(fields, kind)
    if engine not in _ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; known ones are {', '.join(map(repr, _ENGINES[:-2]))}")
    if engine in ("tensorrt-llm", "textseal"):
        why = {
            "tensorrt-llm": "TensorRT-LLM documents its marks but the files with their hash could not be read",
            "textseal": "the two keys of TextSeal's release make numbers that are not independent: no exact test is known",
        }
        raise ValueError(f"engine={engine!r} is not supported: {why[engine]}; see the page 'Supported marks'")
    makers: dict[str, Callable[..., Watermark]] = {
        "vllm": _vllm, "sglang": _sglang, "transformers": _transformers, "synthid-text": _reference,
        "lm-watermarking": _kirchenbauer, "unigram": _unigram,
    }  # fmt: skip
    if window is not None:
        name = _WIDTHS.get(engine)
        if name is None:
            raise ValueError(f"window cannot be changed for engine={engine!r}")
        fields = fields | {name: window + (name == "ngram_len" or fields.get("seeding_scheme") == "selfhash")}
    return makers[engine](fields, vocab_size, key, version)


def _unwrapped(config: Any) -> tuple[dict[str, Any], str]:
    """The fields of a configuration, or of the one that it holds, and whose they are."""
    fields, kind = _fields(config)
    for name in _NESTED:
        if fields.get(name) is not None:
            return _fields(fields[name])
    return fields, kind


def _fields(config: Any) -> tuple[dict[str, Any], str]:
    """The fields of a configuration, and the module of the object that held them."""
    kind = type(config).__module__
    if isinstance(config, str | Path):
        text = str(config)
        if not text.lstrip().startswith("{"):
            path = Path(text).expanduser()
            try:
                text = path.read_text(encoding="utf-8")
            except OSError as error:
                raise ValueError(f"config is no JSON object, and no file that can be read: {error.strerror}") from None
        try:
            config = json.loads(text)
        except ValueError as error:  # the message alone: the exception holds the text, and that the key
            reason = getattr(error, "msg", "it is no text")
            raise ValueError(f"config holds no JSON: {reason}") from None
    if isinstance(config, Mapping):
        return dict(config), kind
    if hasattr(config, "to_dict"):
        return dict(config.to_dict()), kind
    if dataclasses.is_dataclass(config) and not isinstance(config, type):  # vLLM's own: its key is left out of any dump
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, kind
    if hasattr(config, "__struct_fields__"):
        return {name: getattr(config, name) for name in config.__struct_fields__}, kind
    raise ValueError(f"config must be JSON text, a path, a dict or the engine's own object, got {type(config).__name__}")


def _engine(fields: Mapping[str, Any], kind: str) -> str:
    """Whose configuration it is."""
    package = kind.split(".")[0]
    if package in ("tensorrt_llm", "textseal"):
        return package.replace("_", "-")
    names = set(fields)
    if names & {"secret_key", "watermark_type", "secret_key_b", "key_routing"}:
        return "textseal"
    if fields.get("algorithm") == "gumbel_dual_key":
        return "tensorrt-llm"
    if names & {"watermark_key", "fraction", "strength"}:
        return "unigram"
    if names & (_GREEN - {"seeding_scheme", "context_width"}) or names & (_SYNTHID | {"num_candidates"}):
        return "transformers"
    if names & {"seeding_scheme", "hash_key", "select_green_tokens"}:
        return "transformers" if "context_width" in names else "lm-watermarking"
    if "algorithm" not in names and (names & (_SGLANG - {"key"}) or isinstance(fields.get("key"), str)):
        return "sglang"
    if names & _VLLM:
        return "vllm"
    raise ValueError(f"config has no field of a known engine, but {_listed(names)}; see the page 'Supported marks'")


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(repr, names))) or "none at all"


def _refuse_unknown(fields: Mapping[str, Any], known: set[str], engine: str) -> None:
    if unknown := set(fields) - known:
        raise ValueError(f"config has unknown fields {_listed(unknown)}; {engine} has {', '.join(sorted(known))}")


def _key_of(fields: Mapping[str, Any], name: str, key: Any) -> Any:
    """The key given, or the configuration's; an integer may be written in decimal or as 0x…"""
    found = fields.get(name) if key is None else key
    if found is None:
        raise ValueError(f"config has no {name}; give it as key")
    return found


def _integer(name: str, value: Any) -> Any:
    """An integer from its digits; anything else as it is, to be refused by the scheme."""
    if not isinstance(value, str):
        return value
    try:
        return int(value, 0)
    except ValueError:
        raise ValueError(f"{name} must be an integer, decimal or 0x…, got a text of {len(value)} characters") from None


def _given(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a mark that a configuration says, by ``names``: its own by ours. The rest are the mark's own."""
    return {ours: fields[theirs] for ours, theirs in names.items() if theirs in fields}


# the marks of vLLM's algorithms: since which release, and what the configuration calls their arguments
_VLLM_MARKS: dict[str, tuple[Callable[..., Watermark], tuple[int, int], dict[str, str]]] = {
    "gumbel": (VLLMGumbel, (0, 0), {}),
    "dual_key_gumbel": (VLLMDualKey, (0, 30), {"alpha": "alpha"}),
    "synthid": (VLLMSynthID, (0, 34), {"depth": "depth"}),
    "synthid_text": (VLLMSynthID, (0, 34), {"depth": "depth"}),
    "sbw": (SBW, (0, 34), {"seeding": "sbw_scheme", "gamma": "sbw_gamma", "delta": "sbw_delta"}),
    "red_green": (VLLMGreenList, (0, 34), {"gamma": "gamma", "delta": "delta"}),
}
_REPEATS = {"repeats": "deduplicate_contexts", "history": "deduplicate_contexts_max_history"}


def _vllm(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    algorithm = fields.get("algorithm", "gumbel")
    if algorithm not in _VLLM_MARKS:
        raise ValueError(f"algorithm={algorithm!r} is unknown to vLLM; known ones are {', '.join(sorted(_VLLM_MARKS))}")
    made, since, names = _VLLM_MARKS[algorithm]
    if version is not None:
        try:
            numbers = tuple(int(part) for part in version.removeprefix("v").split(".")[:2])
        except ValueError:
            raise ValueError(f"version must be vLLM's, as '0.33.0', got {version!r}") from None
        if numbers < since:
            raise ValueError(f"algorithm={algorithm!r} is not in vLLM {version}; check the version, or leave it out")
        if "alpha" in names and numbers == (0, 30):
            fields = {"alpha": 0.2} | fields
    if "synthid_depth" in fields:
        raise ValueError("synthid_depth belongs to a proposal with one function a layer, which is not supported; see depth")
    # alpha and SBW's fields stand in the configuration of every algorithm
    others = {"depth", "gamma", "delta"} - set(names.values())
    _refuse_unknown(fields, _VLLM - others, f"vLLM's {algorithm}")
    if fields.get("prf", "philox") != "philox":
        raise ValueError(f"prf={fields['prf']!r} is not supported; vLLM 0.33.0 has 'philox' only")
    own = _given(fields, _REPEATS | names)
    if fields.get("context_width") is not None:
        own["window"] = fields["context_width"]
    return made(_integer("key", _key_of(fields, "key", key)), vocab_size, **own)


def _sglang(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    if "keys" in fields:
        raise ValueError("SGLang's SynthID mark is not supported: its hash is not in the release that was read, 0.5.23")
    _refuse_unknown(fields, _SGLANG, "SGLang's Gumbel mark")
    said = {name: value for name, value in fields.items() if value is not None}
    names = {name: name for name in ("key_b", "mixing_probability", "max_probability")} | {"window": "context_window"}
    return SGLangGumbel(_key_of(fields, "key", key), vocab_size, **_given(said, names))


def _layers(fields: dict[str, Any], key: Any) -> Any:
    keys = _key_of(fields, "keys", key)
    if isinstance(keys, str):
        keys = keys.strip("[] ").split(",")
    if not isinstance(keys, Sequence):
        raise ValueError(f"keys must be a list of integers, one for each layer, got {type(keys).__name__}")
    return [_integer(f"keys[{number}]", one.strip() if isinstance(one, str) else one) for number, one in enumerate(keys)]


def _width(fields: dict[str, Any]) -> int:
    length = fields.get("ngram_len", 5)
    if isinstance(length, bool) or not isinstance(length, int) or length < 2:
        raise ValueError(f"ngram_len must be an integer of at least 2 (context and candidate), got {length!r}")
    return length - 1


def _transformers(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    if set(fields) & _GREEN and "keys" not in fields:
        given, secret = dict(fields), fields.get("hashing_key") if key is None else key
        if secret is not None:
            secret = _integer("hashing_key", secret)
            reason = "torch holds it in a signed 64-bit integer"
            given["hashing_key"] = checked_key(secret, 63, reason, "hashing_key")
        return TransformersGreenList(given, vocab_size)
    if set(fields) & {"num_candidates", "default_enabled", "enforce_all"}:
        return _sglang({"keys": None, **fields}, vocab_size, key, version)
    _refuse_unknown(fields, _SYNTHID, "a SynthIDTextWatermarkingConfig")
    if fields.get("debug_mode"):
        raise ValueError("debug_mode=True writes random tokens that no model chose; test what was written without it")
    names = {"table_size": "sampling_table_size", "table_seed": "sampling_table_seed"}
    names |= {name: name for name in ("context_history_size", "skip_first_ngram_calls")}
    said = {name: value for name, value in fields.items() if value is not None}
    return SynthID(_layers(fields, key), vocab_size, _width(fields), **_given(said, names))


def _reference(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    known = {"keys", "ngram_len", "context_history_size", "sampling_table_size", "sampling_table_seed", "device"}
    _refuse_unknown(fields, known, "synthid-text's configuration")  # it still names a table, which its hash no longer uses
    own = _given(fields, {"context_history_size": "context_history_size"})
    return SynthIDReference(_layers(fields, key), vocab_size, _width(fields), **own)


def _kirchenbauer(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    _refuse_unknown(fields, _KIRCHENBAUER, "lm-watermarking's WatermarkBase")
    chosen = fields.get("hash_key") if key is None else key
    own = _given(fields, {name: name for name in ("gamma", "delta", "select_green_tokens")})
    hash_key = None if chosen is None else _integer("hash_key", chosen)
    return KirchenbauerGreenList(vocab_size, fields.get("seeding_scheme") or "selfhash", hash_key=hash_key, **own)


def _unigram(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    _refuse_unknown(fields, _UNIGRAM, "Unigram's GPTWatermarkBase")
    if fields.get("vocab_size", vocab_size) != vocab_size:
        raise ValueError(f"config was made for vocab_size={fields['vocab_size']}, got {vocab_size}; give that one")
    secret = _integer("watermark_key", fields.get("watermark_key", 0) if key is None else key)
    return Unigram(secret, vocab_size, **_given(fields, {"gamma": "fraction", "delta": "strength"}))
