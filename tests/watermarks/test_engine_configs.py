"""From the configuration that an engine was started with to its mark; the key is never printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, WatermarkingConfig

from radio_utils import engines
from radio_utils.compat import TransformersGreenList
from radio_utils.engines import from_config

V = 1000
SECRET = 0x5EC2E7_5EC2E7
VLLM: dict[str, Any] = {"algorithm": "gumbel", "key": SECRET}
CASES: list[tuple[dict[str, Any], Any]] = [
    (VLLM, engines.VLLMGumbel(SECRET, V)),
    ({"key": SECRET}, engines.VLLMGumbel(SECRET, V)),
    (VLLM | {"context_width": 2, "deduplicate_contexts": "none"}, engines.VLLMGumbel(SECRET, V, 2)),
    (VLLM | {"algorithm": "dual_key_gumbel"}, engines.VLLMDualKey(SECRET, V, alpha=0.1)),
    (VLLM | {"algorithm": "dual_key_gumbel", "alpha": 0.4}, engines.VLLMDualKey(SECRET, V, alpha=0.4)),
    (VLLM | {"algorithm": "synthid", "depth": 8}, engines.VLLMSynthID(SECRET, V, depth=8)),
    (VLLM | {"algorithm": "sbw"}, engines.SBW(SECRET, V, 4, "selfhash")),
    (VLLM | {"algorithm": "sbw", "sbw_scheme": "lefthash", "sbw_gamma": 0.2}, engines.SBW(SECRET, V, 1, "lefthash", 0.2)),
    (VLLM | {"algorithm": "red_green", "gamma": 0.3}, engines.VLLMGreenList(SECRET, V, gamma=0.3)),
    ({"key": f"{SECRET:x}", "context_window": 3}, engines.SGLangGumbel(SECRET, V, 3)),
    ({"key": "0x2a"}, engines.SGLangGumbel(42, V)),
    (
        {"key": "2a", "key_b": f"{SECRET:x}", "mixing_probability": 0.2, "enforce_all": True},
        engines.SGLangGumbel(42, V, key_b=SECRET, mixing_probability=0.2),
    ),
    ({"keys": [SECRET, 5], "ngram_len": 3}, engines.SynthID([SECRET, 5], V, 2)),
    ({"hashing_key": SECRET, "bias": 2.0}, TransformersGreenList({"hashing_key": SECRET}, V)),
    (
        {"seeding_scheme": "minhash", "gamma": 0.5, "hash_key": SECRET},
        engines.KirchenbauerGreenList(V, "minhash", 0.5, hash_key=SECRET),
    ),
    ({"watermark_key": SECRET, "fraction": 0.4}, engines.Unigram(SECRET, V, 0.4)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_dict_text_file_and_key_beside_give_one_mark(case: int, tmp_path: Path) -> None:
    config, expected = CASES[case]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    for given in (config, json.dumps(config), file, str(file)):
        assert from_config(given, V).fingerprint == expected.fingerprint
    name = next(n for n in ("key", "keys", "hashing_key", "hash_key", "watermark_key") if n in config)
    engine = "sglang" if isinstance(config[name], str) else None
    rest = {field: value for field, value in config.items() if field != name}
    rest = rest or ({"context_window": 4} if engine else {"algorithm": "gumbel"})
    assert from_config(rest, V, key=config[name], engine=engine).fingerprint == expected.fingerprint


def test_objects_and_nested_configurations() -> None:
    expected = TransformersGreenList({"hashing_key": 99, "bias": 3.0}, V).fingerprint
    own = WatermarkingConfig(hashing_key=99, bias=3.0)
    assert from_config(own, V).fingerprint == expected
    assert from_config(GenerationConfig(watermarking_config=own), V).fingerprint == expected

    @dataclasses.dataclass
    class WatermarkConfig:  # as vLLM's: the key is a field that no dump shows
        key: int
        algorithm: str = "gumbel"
        context_width: int = 4

    assert from_config(WatermarkConfig(SECRET), V).fingerprint == engines.VLLMGumbel(SECRET, V).fingerprint
    assert from_config({"watermark_config": VLLM}, V).fingerprint == engines.VLLMGumbel(SECRET, V).fingerprint
    assert from_config(VLLM, V, key="0x2a").fingerprint == engines.VLLMGumbel(42, V).fingerprint
    assert (
        from_config({"keys": None, "ngram_len": 2}, V, key="7, 8").fingerprint == engines.SynthID([7, 8], V, 1).fingerprint
    )
    reference = from_config({"keys": [7], "ngram_len": 2}, V, engine="synthid-text")
    assert reference.fingerprint == engines.SynthIDReference([7], V, 1).fingerprint


def test_versions_differ() -> None:
    dual = VLLM | {"algorithm": "dual_key_gumbel"}
    assert from_config(dual, V, version="0.30.1").parameters["alpha"] == 0.2
    assert from_config(dual, V, version="v0.33.0").parameters["alpha"] == 0.1
    for config, version in ((dual, "0.29.0"), (VLLM | {"algorithm": "sbw"}, "0.33.0")):
        with pytest.raises(ValueError, match=f"not in vLLM {version}"):
            from_config(config, V, version=version)


WRONG: list[tuple[Any, str]] = [
    (VLLM | {"algorithm": "kgw"}, "algorithm='kgw' is unknown"),
    (VLLM | {"strange": 1}, "unknown fields 'strange'"),
    (VLLM | {"prf": "hmac_sha256"}, "prf='hmac_sha256' is not supported"),
    (VLLM | {"key": SECRET << 40}, "bits"),
    (VLLM | {"key": str(SECRET) + "z"}, "."),
    (VLLM | {"context_width": 0}, "window must be"),
    (VLLM | {"algorithm": "synthid", "synthid_depth": 3}, "synthid_depth"),
    (VLLM | {"algorithm": "gumbel_dual_key"}, "tensorrt-llm"),
    ({"algorithm": "gumbel"}, "no key"),
    ({"key": f"{SECRET:x}", "strange": 1}, "unknown fields 'strange'"),
    ({"key": f"{SECRET:x}{SECRET:x}"}, "hexadecimal"),
    ({"keys": [SECRET], "num_candidates": 10}, "SGLang's SynthID"),
    ({"keys": [SECRET << 40], "ngram_len": 5}, "bits"),
    ({"keys": [SECRET], "ngram_len": 1}, "ngram_len"),
    ({"keys": [SECRET], "debug_mode": True}, "debug_mode"),
    ({"keys": [SECRET], "strange": 2}, "unknown fields 'strange'"),
    ({"hashing_key": SECRET << 40}, "hashing_key must be"),
    ({"hashing_key": SECRET, "strange": 2}, "strange"),
    ({"secret_key": SECRET, "watermark_type": "textseal"}, "'textseal' is not supported"),
    ({"seeding_scheme": f"ff-no_prf-2-True-{SECRET}", "gamma": 0.5}, "seeding_scheme is unknown"),
    ({"watermark_key": SECRET, "vocab_size": 7}, "vocab_size=7"),
    ({"colour": SECRET}, "no field of a known engine"),
    ("{" + f'"key": {SECRET}', "no JSON"),
    ("no/such/file.json", "no file that can be read"),
    (SECRET, "got int"),
    ([SECRET], "got list"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_is_wrong_is_said_in_one_sentence_without_the_key(case: int) -> None:
    config, says = WRONG[case]
    with pytest.raises(ValueError, match=says) as error:
        from_config(config, V)
    message = str(error.value)
    assert "\n" not in message and len(message) < 420
    for form in (str(SECRET), f"{SECRET:x}", str(SECRET << 40)):
        assert form not in message


def test_no_mark_prints_its_key() -> None:
    for _, wm in CASES:
        for form in (str(SECRET), f"{SECRET:x}"):
            assert form not in repr(wm) and form not in wm.fingerprint and form not in str(wm.parameters)
