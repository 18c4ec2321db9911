"""What an audit costs: a suspect of a million parameters, 2,000 texts of 128 tokens, a thousand decoys a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import radio_utils as ru
from radio_utils.presets import Build
from radio_utils.world import models

V, TEXTS, LENGTH = 2048, 2000, 128
KEY = "6f1d2c9e7ab84350d1e2f3a4b5c69788"


def marked_ids(wm: Any, generator: np.random.Generator) -> Any:
    """Random texts in which a green token is taken where one of three is green: int64 [TEXTS, LENGTH]."""
    ids = np.zeros((TEXTS, LENGTH), np.int64)
    ids[:, 0] = generator.integers(0, V, TEXTS)
    for t in range(1, LENGTH):
        offered = generator.integers(0, V, (TEXTS, 3))
        green = wm.scores(np.repeat(ids[:, t - 1 : t], 3, axis=0), offered.ravel()).reshape(TEXTS, 3)
        ids[:, t] = offered[np.arange(TEXTS), green.argmax(axis=1)]
    return ids


def write(path: Path, ids: Any) -> str:
    path.write_text("".join(json.dumps({"ids": row.tolist()}) + "\n" for row in ids))
    return str(path)


@pytest.mark.parametrize("contrastive", [False, True])
def test_the_statistics_cost_little_beside_the_model(tmp_path: Path, contrastive: bool) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    build = Build(architecture="gpt_neox", width=128, layers=4, heads=4, key_value_heads=4)
    for number, name in enumerate(("suspect", "base")):
        model = models.new_model(build, V, 0, seed=number)
        assert 0.9e6 < sum(one.numel() for one in model.parameters()) < 1.5e6
        model.save_pretrained(tmp_path / name)
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(str(tmp_path / name))
    generator = np.random.default_rng(0)
    wm = ru.GreenList(KEY, V, window=1)
    files = {"watermarked_texts": write(tmp_path / "marked.jsonl", marked_ids(wm, generator))}
    if contrastive:
        files |= {"fresh_texts": write(tmp_path / "plain.jsonl", generator.integers(0, V, (TEXTS, LENGTH)))}
        files |= {"reference": str(tmp_path / "base")}
    verdict = ru.audit_suspect(
        str(tmp_path / "suspect"), key=KEY, window=1, output_dir=str(tmp_path / "out"), **files
    )  # fmt: skip
    assert not verdict.convicted
    assert sum(test.applied for test in verdict.tests) == 1 + contrastive
    assert verdict.seconds["statistics"] < 0.05 * verdict.seconds["model"]
