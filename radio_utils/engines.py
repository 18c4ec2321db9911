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


def _vllm(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    algorithm = fields.get("algorithm", "gumbel")
    released = {"gumbel": (0, 0), "dual_key_gumbel": (0, 30)}
    known = {*released, "synthid", "synthid_text", "sbw", "red_green"}
    if algorithm not in known:
        raise ValueError(f"algorithm={algorithm!r} is unknown to vLLM; known ones are {', '.join(sorted(known))}")
    if version is not None:
        try:
            numbers = tuple(int(part) for part in version.removeprefix("v").split(".")[:2])
        except ValueError:
            raise ValueError(f"version must be vLLM's, as '0.33.0', got {version!r}") from None
        if numbers < released.get(algorithm, (0, 34)):
            raise ValueError(f"algorithm={algorithm!r} is not in vLLM {version}; check the version, or leave it out")
    if "synthid_depth" in fields:
        raise ValueError("synthid_depth belongs to a proposal with one function a layer, which is not supported; see depth")
    own = {
        "gumbel": set[str](), "dual_key_gumbel": set[str](), "synthid": {"depth"}, "synthid_text": {"depth"},
        "sbw": {"sbw_scheme", "sbw_gamma", "sbw_delta"}, "red_green": {"gamma", "delta"},
    }  # fmt: skip
    everywhere = _VLLM - set().union(*own.values())
    _refuse_unknown(fields, everywhere | own[algorithm] | own["sbw"], f"vLLM's {algorithm}")
    if fields.get("prf", "philox") != "philox":
        raise ValueError(f"prf={fields['prf']!r} is not supported; vLLM 0.33.0 has 'philox' only")
    secret = _integer("key", _key_of(fields, "key", key))
    common: dict[str, Any] = {
        "repeats": fields.get("deduplicate_contexts", "single_turn"),
        "history": fields.get("deduplicate_contexts_max_history", 8192),
    }
    width = fields.get("context_width")
    if algorithm == "sbw":
        return SBW(
            secret, vocab_size, width, fields.get("sbw_scheme", "selfhash"), fields.get("sbw_gamma", 0.5),
            fields.get("sbw_delta", 2.0), **common,
        )  # fmt: skip
    width = 4 if width is None else width
    if algorithm == "gumbel":
        return VLLMGumbel(secret, vocab_size, width, **common)
    if algorithm == "dual_key_gumbel":
        default = 0.2 if version is not None and numbers == (0, 30) else 0.1
        return VLLMDualKey(secret, vocab_size, width, fields.get("alpha", default), **common)
    if algorithm == "red_green":
        return VLLMGreenList(secret, vocab_size, width, fields.get("gamma", 0.25), fields.get("delta", 2.0), **common)
    return VLLMSynthID(secret, vocab_size, width, fields.get("depth", 32), **common)


def _sglang(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    if "keys" in fields:
        raise ValueError("SGLang's SynthID mark is not supported: its hash is not in the release that was read, 0.5.23")
    _refuse_unknown(fields, _SGLANG, "SGLang's Gumbel mark")
    given = {name: value for name, value in fields.items() if value is not None}
    return SGLangGumbel(
        _key_of(fields, "key", key), vocab_size, given.get("context_window", 4), key_b=given.get("key_b"),
        mixing_probability=given.get("mixing_probability", 0.5), max_probability=given.get("max_probability", 1.0),
    )  # fmt: skip


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
    arguments = {
        "sampling_table_size": "table_size", "sampling_table_seed": "table_seed",
        "context_history_size": "context_history_size", "skip_first_ngram_calls": "skip_first_ngram_calls",
    }  # fmt: skip
    own: dict[str, Any] = {ours: fields[theirs] for theirs, ours in arguments.items() if fields.get(theirs) is not None}
    return SynthID(_layers(fields, key), vocab_size, _width(fields), **own)


def _reference(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    known = {"keys", "ngram_len", "context_history_size", "sampling_table_size", "sampling_table_seed", "device"}
    _refuse_unknown(fields, known, "synthid-text's configuration")  # it still names a table, which its hash no longer uses
    history = fields.get("context_history_size", 1024)
    return SynthIDReference(_layers(fields, key), vocab_size, _width(fields), context_history_size=history)


def _kirchenbauer(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    _refuse_unknown(fields, _KIRCHENBAUER, "lm-watermarking's WatermarkBase")
    chosen = fields.get("hash_key") if key is None else key
    return KirchenbauerGreenList(
        vocab_size, fields.get("seeding_scheme") or "selfhash", fields.get("gamma", 0.25), fields.get("delta", 2.0),
        hash_key=None if chosen is None else _integer("hash_key", chosen),
        select_green_tokens=fields.get("select_green_tokens", True),
    )  # fmt: skip


def _unigram(fields: dict[str, Any], vocab_size: int, key: Any, version: str | None) -> Watermark:
    _refuse_unknown(fields, _UNIGRAM, "Unigram's GPTWatermarkBase")
    if fields.get("vocab_size", vocab_size) != vocab_size:
        raise ValueError(f"config was made for vocab_size={fields['vocab_size']}, got {vocab_size}; give that one")
    secret = _integer("watermark_key", fields.get("watermark_key", 0) if key is None else key)
    return Unigram(secret, vocab_size, fields.get("fraction", 0.5), fields.get("strength", 2.0))
