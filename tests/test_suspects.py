"""Suspects from folders in the hub's format: the kinds of model that the presets name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radio_utils import decoding, suspects
from radio_utils.suspects import LocalSuspect, ModelFolderError, Suspect
from radio_utils.world import models

VOCABULARY = 300
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


def tiny(kind: str) -> Any:
    """Random weights of the architectures of the laptop, colab and paper presets, and of GPT-2."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **sizes, num_key_value_heads=1))
    if kind == "gpt_neox":  # untied, with room beyond the tokenizer, as Pythia and RedPajama-INCITE have
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**{**SMALL, "vocab_size": VOCABULARY + 12}, **sizes))
    return hf.GPT2LMHeadModel(hf.GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2, n_positions=64))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["the quick brown fox jumps over the lazy dog and the cat", "what is the fox"] * 5
    models.train_tokenizer(texts, VOCABULARY, folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_a_saved_model_loads_and_answers(kind: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    original = tiny(kind)
    original.save_pretrained(tmp_path, safe_serialization=True)
    loaded = suspects.load_model(tmp_path)
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(input_ids=ids).logits, original.eval()(input_ids=ids).logits)
    assert not loaded.training and loaded.dtype == torch.float32
    assert suspects.load_model(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16

    tokenizer = suspects.load_tokenizer(tokenizer_folder)
    prompts = tokenizer(["what is the", "the quick brown"], add_special_tokens=False)["input_ids"]
    suspect = LocalSuspect(loaded, stop_tokens=(0,), max_new_tokens=7, seed=4)
    assert isinstance(suspect, Suspect)
    answers = suspect.answer(prompts)
    assert len(answers) == 2 and all(isinstance(a, np.ndarray) and a.size <= 7 and 0 not in a for a in answers)
    again = suspect.answer(prompts)
    assert all(np.array_equal(a, b) for a, b in zip(answers, again, strict=True))
    other = LocalSuspect(loaded, stop_tokens=(0,), max_new_tokens=7, seed=5).answer(prompts)
    assert any(not np.array_equal(a, b) for a, b in zip(answers, other, strict=True))


def test_greedy_suspects_agree_with_transformers_generate(tmp_path: Path) -> None:
    model = tiny("llama")
    prompt = [5, 6, 7]
    suspect = LocalSuspect(model.eval(), stop_tokens=(0,), sampling=decoding.Sampling(temperature=0), max_new_tokens=6)
    expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, pad_token_id=0)[0, 3:].tolist()
    assert suspect.answer([prompt])[0].tolist() == [token for token in expected if token != 0]


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="holds no tokenizer; save one there"):
        suspects.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFolderError, match="no tokenizer could be read"):
        suspects.load_tokenizer(tmp_path)


def test_a_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    for load in (suspects.load_model, suspects.load_tokenizer):
        for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere-at-all"):
            with pytest.raises(ModelFolderError, match="does not exist"):
                load(name)
    with pytest.raises(ModelFolderError, match="no causal model could be read"):
        suspects.load_model(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        suspects.load_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match="safetensors"):
        suspects.load_model(tmp_path)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "sly", "auto_map": {"AutoConfig": "sly.Config", "AutoModelForCausalLM": "sly.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "sly.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(ModelFolderError):
        suspects.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_another_size_is_named(tokenizer_folder: Path) -> None:
    tokenizer = suspects.load_tokenizer(tokenizer_folder)
    suspects.check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(ValueError, match=f"has {len(tokenizer)} tokens but the watermark's vocab_size is 32000"):
        suspects.check_vocabulary(tokenizer, 32_000)


def test_errors_are_value_errors() -> None:
    assert issubclass(ModelFolderError, ValueError)


def test_a_damaged_model_is_never_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = tmp_path / "whole"
    tiny("gpt_neox").save_pretrained(whole, safe_serialization=True)
    weights = whole / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if "attention" in name and name.endswith("weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match="lacks the weights"):
        suspects.load_model(whole)
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelFolderError, match="no causal model could be read"):
        suspects.load_model(whole)


def test_tokenizers_are_compared_by_content(tokenizer_folder: Path, tmp_path: Path) -> None:
    first = suspects.load_tokenizer(tokenizer_folder)
    suspects.check_same_tokenizer(first, suspects.load_tokenizer(tokenizer_folder))
    models.train_tokenizer(["zebras zigzag across zones of azure haze"] * 9, VOCABULARY, tmp_path)
    other = suspects.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="the two tokenizers differ in"):
        suspects.check_same_tokenizer(first, other)
