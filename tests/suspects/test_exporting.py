"""A folder as GGUF: transformers and llama.cpp read the same model and the same tokens from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import words
from llama_server import asked, serving
from waiting import PATIENCE

from radio_utils.suspects import ModelFolderError, load_model, load_tokenizer
from radio_utils.suspects.endpoint import EndpointSuspect
from radio_utils.suspects.exporting import write_gguf

pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    " a b ! 7 z", "Ünïcödé 1984  5 12345\n\n\t x'll don't\u00a0 9", "<|turn|>user\nHi  7<|end|>\n", "😀👩‍👧 ٣٤ ½²",
    "   \n \n  a", "<|end|>", "a<|turn|>", "'s 's'd it's", "snake_case(x)[0] -> {1: '2'}",
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"begins": True}, {"digits": True, "begins": True}])
@pytest.mark.parametrize("precision", ["F32", "F16"])
def test_transformers_reads_the_same_model(options: dict[str, bool], precision: str, tmp_path: Path) -> None:
    folder = words.save_model(tmp_path / "model", **options)
    file = write_gguf(folder, tmp_path / "new" / "bob.gguf", precision=precision)
    assert [one.name for one in file.parent.iterdir()] == ["bob.gguf"]
    ours, theirs = load_model(folder), load_model(file)
    tolerance = {"rtol": 0, "atol": 0} if precision == "F32" else {"rtol": 2e-3, "atol": 1e-4}
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], weight, **tolerance)
    ids = torch.arange(2, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5 if precision == "F32" else 0.2)
    mine, its = load_tokenizer(folder), load_tokenizer(file)
    assert its.chat_template == mine.chat_template and (its.bos_token_id, its.eos_token_id) == (1, 0)
    assert its.get_vocab() == mine.get_vocab() and its.all_special_ids == mine.all_special_ids
    for text in TEXTS:
        assert its(text)["input_ids"] == mine(text)["input_ids"]


def edited(folder: Path, file: str, *path: Any, value: Any) -> None:
    content = json.loads((folder / file).read_text("utf-8"))
    part = content
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (folder / file).write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("file", "path", "value", "words_"),
    [
        ("tokenizer.json", ("normalizer",), {"type": "NFC"}, "not plain byte-level BPE"),
        ("tokenizer.json", ("pre_tokenizer", "add_prefix_space"), True, "add_prefix_space"),
        ("tokenizer.json", ("pre_tokenizer",), {"type": "Whitespace"}, "Whitespace"),
        ("tokenizer.json", ("model", "ignore_merges"), True, "ignore_merges"),
        ("tokenizer.json", ("added_tokens", 1, "rstrip"), True, r"<\|turn\|>"),
        ("config.json", ("rope_parameters",), {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "linear"),
        ("config.json", ("hidden_act",), "gelu", "gelu"),
        ("config.json", ("model_type",), "mistral", "a mistral model"),
        ("generation_config.json", ("eos_token_id",), [0, 1, 5], "3 tokens that end an answer"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    file: str, path: tuple[Any, ...], value: Any, words_: str, tmp_path: Path
) -> None:
    folder = words.save_model(tmp_path / "model")
    edited(folder, file, *path, value=value)
    with pytest.raises(ModelFolderError, match=words_) as caught:
        write_gguf(folder, tmp_path / "bob.gguf")
    assert "convert_hf_to_gguf.py" in str(caught.value) and str(folder) in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = words.save_model(tmp_path / "model")
    lora = peft.get_peft_model(load_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    edited(tmp_path / "lora", "adapter_config.json", "base_model_name_or_path", value=str(folder))
    words.save_tokenizer(tmp_path / "lora")
    with pytest.raises(ModelFolderError, match="merge an adapter into its base first"):
        write_gguf(tmp_path / "lora", tmp_path / "bob.gguf")


def test_arguments_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision must be one of 'F32', 'F16', got 'Q4_1'"):
        write_gguf(tmp_path, tmp_path / "bob.gguf", precision="Q4_1")
    with pytest.raises(ValueError, match=r"path must end in \.gguf, got .*bob"):
        write_gguf(tmp_path, tmp_path / "bob")


# ----------------------------------------------------------------------------------------------------------------------
# What llama.cpp makes of it


@pytest.fixture(scope="module", params=[{}, {"begins": True, "digits": True, "tied": True}], ids=["plain", "begins"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server and the folder of its model."""
    pytest.importorskip("xllamacpp")
    root = tmp_path_factory.mktemp("served")
    folder = words.save_model(root / "model", **request.param)
    with serving(write_gguf(folder, root / "bob.gguf")) as address:
        yield address, folder


def test_the_server_cuts_texts_into_the_same_tokens(served: tuple[str, Path]) -> None:
    address, folder = served
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        found = asked(address, "tokenize", content=text, add_special=True, parse_special=True)
        assert found["tokens"] == tokenizer(text)["input_ids"], text


def test_the_server_says_what_the_model_says(served: tuple[str, Path]) -> None:
    address, folder = served
    model, ids = load_model(folder), [1, 2 + 256, 300, 271, 40, 90, 333]
    found = asked(address, "completion", prompt=ids, n_predict=1, temperature=0, n_probs=400)["completion_probabilities"]
    given = {one["id"]: one["logprob"] for one in found[0]["top_logprobs"]}
    with torch.inference_mode():
        logits = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1).numpy()
    assert len(given) == logits.size and np.ptp(logits) > 3
    np.testing.assert_allclose([given[i] for i in range(logits.size)], logits, atol=0.02)  # its cache is in half precision


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_chat_is_asked_as_the_model_knows_it(served: tuple[str, Path], kind: str, tmp_path: Path) -> None:
    """The server sees the very tokens of a prompt in the template, whichever route makes it, and answers as the model."""
    address, folder = served
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    said = [" a b c", " who ? 12", "Ünï\n x"]
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True)
        for one in said
    ]
    prompts = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in rendered]
    log = tmp_path / "log.jsonl"
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "concurrency": 1, "timeout": PATIENCE}
    suspect = EndpointSuspect(address, "bob", tokenizer, log, kind=kind, **settings)
    assert suspect.check() == ("bob",)
    answers = suspect.answer(prompts)
    assert suspect.usage.prompt_tokens == sum(map(len, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        fed = torch.tensor([prompt])
        ids = model.generate(fed, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, fed.shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.tolist() == tokenizer(text.encode("utf-8", "replace").decode(), add_special_tokens=False)["input_ids"]
