"""GGUF files as people have them: in folders with other things, and with what transformers does not read of them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import words

from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.suspects.exporting import write_gguf
from radio_utils.suspects.loading import identity, rows_in_config

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("one_thread")


# ----------------------------------------------------------------------------------------------------------------------
# Whatever lies beside a file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bob's file, and the folder and the file of another model with another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, seed, options in (("bob", 0, {}), ("other", 1, {"begins": True, "digits": True, "template": "other"})):
        folder = words.save_model(root / name, seed=seed, **options)
        write_gguf(folder, root / f"{name}.gguf")
    return root


def configured(folder: Path, models: Path) -> None:
    content = json.loads((models / "bob" / "config.json").read_text())
    changed = {"num_hidden_layers": 1, "vocab_size": 400, "rms_norm_eps": 0.5, "rope_parameters": {"rope_theta": 5.0}}
    (folder / "config.json").write_text(json.dumps(content | changed))


def answering_otherwise(folder: Path, models: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 5, "temperature": 9.0}')


def with_tokenizer(folder: Path, models: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(models / "other" / file, folder)
    (folder / "special_tokens_map.json").write_text('{"bos_token": "!", "eos_token": "?"}')
    (folder / "added_tokens.json").write_text('{"<|new|>": 352}')
    (folder / "vocab.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("tools")


def with_weights(folder: Path, models: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(models / "other" / file, folder)


def with_files(folder: Path, models: Path) -> None:
    for name in ("other.gguf", "model.gguf", "a.gguf"):
        shutil.copy(models / "other.gguf", folder / name)


def with_adapter(folder: Path, models: Path) -> None:
    """Whose base is a folder with another file of the same name."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(load_model(models / "bob"), config).save_pretrained(folder)
    base = folder.parent / "base"
    base.mkdir()
    shutil.copy(models / "other.gguf", base / "bob.gguf")
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | {"base_model_name_or_path": str(base)}))


def said(name: str | Path) -> tuple[Any, ...]:
    """All that is read of a name."""
    model, tokenizer, paths = load_model(name), load_tokenizer(name), ("_name_or_path", "quantization_config")
    return (
        {key: value for key, value in model.config.to_dict().items() if key not in paths},
        model.generation_config.to_dict(), tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template,
        tokenizer.special_tokens_map, identity(name), rows_in_config(name),
        {key: weight.tolist() for key, weight in model.state_dict().items()},
    )  # fmt: skip


@pytest.mark.parametrize("put", [configured, answering_otherwise, with_tokenizer, with_weights, with_files, with_adapter])
def test_a_file_is_read_alone(
    models: Path, put: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = said(models / "bob.gguf")
    (tmp_path / "theirs").mkdir()
    file = Path(shutil.copy(models / "bob.gguf", tmp_path / "theirs"))
    put(file.parent, models)
    names = [file, Path("theirs/bob.gguf")]
    if not [*file.parent.glob("*.safetensors"), *file.parent.glob("[ao]*.gguf")]:  # else it is not the folder's model
        names.append(file.parent)
    monkeypatch.chdir(tmp_path)
    for name in names:
        assert said(name) == expected
    assert expected[-3].keys() == {"bob.gguf"}


def test_a_file_of_that_name_where_python_runs_is_another(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(models / "other.gguf", tmp_path / "bob.gguf")
    monkeypatch.chdir(tmp_path)
    assert said(models / "bob.gguf") != said("bob.gguf")
    ours = load_model(models / "bob").state_dict()
    for name, weight in load_model(models / "bob.gguf").state_dict().items():
        assert torch.equal(weight, ours[name])
