"""Models and tokenizer made here are ordinary transformers ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from radio_utils.presets import Build
from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.world import models

TEXTS = ["Question: What is numpy.add?\nAnswer: It adds arguments element-wise.", "naïve ρ = 5 %\t\n  two  spaces"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    models.train_tokenizer(TEXTS, 320, path)
    return path


def test_the_tokenizer_loses_nothing(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert 257 <= len(tokenizer) <= 320
    for text in [*TEXTS[:2], "bytes never seen: 漢字 🙂", " leading and trailing "]:
        ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
        assert tokenizer.decode(ids) == text
        assert min(ids) >= 0 and max(ids) < len(tokenizer)
    assert tokenizer.decode([tokenizer.eos_token_id]) == models.END_OF_TEXT
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.bos_token_id


def test_training_the_tokenizer_again_gives_the_same(folder: Path, tmp_path: Path) -> None:
    models.train_tokenizer(iter(TEXTS), 320, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("architecture", "kv_heads"), [("llama", 1), ("llama", 2), ("gpt_neox", 2)])
def test_new_models_are_seeded_and_survive_saving(architecture: str, kv_heads: int, tmp_path: Path) -> None:
    build = Build(architecture=architecture, width=48, layers=2, heads=2, key_value_heads=kv_heads)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    model = models.new_model(build, 321, 0, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    assert model.config.model_type == architecture and model.config.eos_token_id == 0
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 48
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    model.save_pretrained(tmp_path, safe_serialization=True)
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids).logits
        assert logits.shape == (1, 30, 321)
        torch.testing.assert_close(load_model(tmp_path)(input_ids=ids).logits, logits)
        torch.testing.assert_close(models.new_model(build, 321, 0, seed=5).eval()(input_ids=ids).logits, logits)
        assert not torch.allclose(models.new_model(build, 321, 0, seed=6).eval()(input_ids=ids).logits, logits)
