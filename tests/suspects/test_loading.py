"""Folders as people have them: adapters, truncated and padded checkpoints, other people's configurations, GGUF."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from radio_utils import suspects
from radio_utils.suspects import ModelFolderError
from radio_utils.suspects.gguf_files import gguf_file
from radio_utils.suspects.loading import identity, rows_in_config


def saved(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes | changes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, r"holds the weights \['model\.layers\.1.*of layers that its config.json leaves out"),
        ({"num_hidden_layers": 3}, r"lacks the weights \['model\.layers\.2"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ|optimum"),
        ({"quantization_config": {"quant_method": "awq"}}, "no causal model could be read"),
        ({"rope_parameters": {"rope_type": "of tomorrow"}}, "of tomorrow"),
        ({"hidden_act": "of tomorrow"}, "of tomorrow"),
        ({"vocab_size": 60}, "no causal model could be read"),
        ({"num_attention_heads": 0}, "no causal model could be read"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "t5"}, "no causal model could be read"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    configured(saved(tmp_path), **changes)
    with pytest.raises(ModelFolderError, match=words) as caught:
        suspects.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_returns_tuples_is_read(tmp_path: Path) -> None:
    configured(saved(tmp_path), return_dict=False)
    assert suspects.load_model(tmp_path)(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 64)


def test_weights_without_a_place_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = saved(tmp_path) / "model.safetensors"
    save_file(load_file(weights) | {"score.weight": torch.zeros(2, 2)}, weights, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="radio_utils"):
        model = suspects.load_model(tmp_path)
    assert model.unused_weights == ("score.weight",) and "1 weights were not used: score.weight" in caplog.text


def test_a_configuration_without_layers_is_another_model(tmp_path: Path) -> None:
    configured(saved(tmp_path), num_hidden_layers=0)
    with pytest.raises(ModelFolderError, match=r"of layers that its config\.json leaves out"):
        suspects.load_model(tmp_path)


def adapter(folder: Path, base: Path) -> Path:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(suspects.load_model(base), config).save_pretrained(folder)
    config_file = folder / "adapter_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": str(base)}))
    return folder


def test_an_adapter_is_known_by_its_base_too(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    lora = adapter(tmp_path / "lora", base)
    before = identity(lora)
    assert {"adapter_model.safetensors", "base/model.safetensors", "base/config.json"} <= before.keys()
    assert suspects.load_model(lora).unused_weights == ()
    saved(base, seed=1)
    after = identity(lora)
    assert [name for name in before if before[name] != after[name]] == ["base/model.safetensors"]
    shutil.rmtree(base)
    with pytest.raises(ModelFolderError, match="no causal model could be read"):
        suspects.load_model(lora)


def test_templates_and_generation_are_part_of_an_identity(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    files = ("chat_template.jinja", "generation_config.json", "additional_chat_templates/tools.jinja")
    for file in files:
        before = identity(tmp_path)
        (tmp_path / file).write_text('{"eos_token_id": 3}')
        changed = identity(tmp_path)
        assert [name for name in changed if before.get(name) != changed[name]] == [file]
    assert identity("nobody/nothing-at-all") == {"hub commit": "unknown"}


def test_the_rows_that_a_configuration_names(tmp_path: Path) -> None:
    assert rows_in_config(saved(tmp_path)) == 64
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 160}}')
    assert rows_in_config(tmp_path) == 160 and rows_in_config(tmp_path / "none") is None


def test_gguf_without_its_package_has_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = tmp_path / "model-Q4.gguf"
    file.write_bytes(b"GGUF")
    for name in (file, str(file), tmp_path, str(tmp_path)):
        for load in (suspects.load_model, suspects.load_tokenizer):
            with pytest.raises(ModelFolderError, match=r"radio-utils\[gguf\]'; or let llama\.cpp's server answer"):
                load(name)
    assert identity(file).keys() == {"model-Q4.gguf"}
    (tmp_path / "model-Q8.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFolderError, match=r"holds 2 GGUF files \(model-Q4\.gguf, model-Q8\.gguf\); give the path"):
        suspects.load_model(tmp_path)


def test_a_gguf_file_is_known_by_its_ending_in_any_case(tmp_path: Path) -> None:
    assert gguf_file("some/hub-name") is None and gguf_file(tmp_path) is None
    file = tmp_path / "MODEL.GGUF"
    file.write_bytes(b"GGUF")
    assert gguf_file(file) == gguf_file(str(tmp_path)) == file
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_file(tmp_path) is None, "weights in the hub's format come first"


def test_a_damaged_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelFolderError, match="no causal model could be read"):
        suspects.load_model(tmp_path)
