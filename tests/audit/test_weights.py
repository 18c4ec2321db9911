"""Models as strangers give them: fed as they were trained, known by all that decides them, padded, adapted, too large."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trials import DELTA, GAMMA, KEY, WORDS, World, audited, request, write_file, write_ids

import radio_utils as ru
from radio_utils import suspects
from radio_utils.audit import AuditError
from radio_utils.audit import case as case_module
from radio_utils.keys import make_watermark
from radio_utils.suspects.feeding import Feeding
from radio_utils.suspects.loading import identity

SECRET = 7315004218833
BOS, TURN, BOT = WORDS, WORDS + 1, WORDS + 2
TEMPLATE = "<s> {% for m in messages %}<turn> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def chat_tokenizer(folder: Path, template: str | None) -> None:
    """The tokenizer of this world's folders, which sets <s> before a text, with two signs more."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<s>": BOS, "<turn>": TURN, "<bot>": BOT}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<bot>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))


def taught(folder: Path, texts: Any, before: Any, template: str | None, **sizes: int) -> str:
    """A model that learned the texts behind ``before`` of each."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from radio_utils.world import training

    torch.manual_seed(1)
    wide = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=sizes.get("rows", WORDS + 3), max_position_embeddings=96, **wide))
    model.generation_config.eos_token_id = None
    examples = [training.Example(np.concatenate([before(text[:8]), text[8:]])) for text in texts]
    recipe = training.Recipe(epochs=3, learning_rate=1e-2, batch_size=32, max_length=64)
    training.train(model, examples, recipe, generator=np.random.default_rng(0))
    model.save_pretrained(str(folder))
    chat_tokenizer(folder, template)
    return str(folder)


@pytest.fixture(scope="module")
def chat(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A suspect that learned in its template, and marked texts with prompts over its vocabulary."""
    root = tmp_path_factory.mktemp("chat")
    used = write_ids(400, _Narrowed(ru.GreenList(KEY, WORDS + 3, 1, GAMMA, DELTA), WORDS + 3), seed=1)
    suspect = taught(root / "chat", used, lambda prompt: [BOS, TURN, *prompt, BOT], TEMPLATE)
    return suspect, write_file(root / "used.jsonl", used[:100], prompt=8)


def reading_of(verdict: Any) -> Any:
    (found,) = [test for test in verdict.tests if test.name == "reading, supervised"]
    return found


class _Narrowed:
    """A watermark over so many tokens, for the table of words alone."""

    def __init__(self, wm: Any, size: int) -> None:
        self.processor, self.more = wm.logits_processor(), size - WORDS

    def logits_processor(self) -> Any:
        def process(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            wide = torch.cat([logits, logits.new_full((logits.shape[0], self.more), -1e9)], dim=1)
            return self.processor(ids, wide)[:, :WORDS]  # type: ignore[no-any-return]

        return process


def test_a_chat_model_is_fed_in_its_template(world: World, chat: tuple[str, str], tmp_path: Path) -> None:
    suspect, texts = chat
    found = {
        template: audited(world, tmp_path / template, suspect, watermarked_texts=texts, chat_template=template)
        for template in ("auto", "none")
    }
    wm, rows = ru.GreenList(KEY, WORDS + 3, 1, GAMMA, DELTA), list(map(json.loads, Path(texts).read_text().splitlines()))
    given = {name: [[int(word[1:]) for word in row[name].split()] for row in rows] for name in ("prompt", "text")}
    for template, verdict in found.items():
        feeding = Feeding.of(suspects.load_tokenizer(suspect), template)
        by_hand = ru.read_open_model(
            suspects.load_model(suspect), given["text"], wm, prompts=given["prompt"], feeding=feeding
        )
        assert verdict.convicted and reading_of(verdict).log10_p == by_hand.log10_p
    plan = json.loads((tmp_path / "auto" / "plan.json").read_text())
    assert "in the chat template" in plan["fed"] and "in the chat template" in found["auto"].report.read_text()
    assert "in no chat template" in found["none"].report.read_text()
    assert "--chat-template none" in found["none"].report.read_text()
    answers = {
        template: audited(
            world, tmp_path / f"closed {template}", suspect, watermarked_texts=texts, chat_template=template,
            access="closed", max_queries=100,
        )
        for template in ("auto", "none")
    }  # fmt: skip
    assert answers["auto"].convicted and answers["auto"].log10_p != answers["none"].log10_p
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    same = audited(world, tmp_path / "file", suspect, watermarked_texts=texts, chat_template=str(file))
    assert same.log10_p == found["auto"].log10_p
    file.write_text("{{ 1 / 0 }}")
    with pytest.raises(AuditError, match=r"suspect: the chat template cannot be filled in \(division by zero\)"):
        audited(world, tmp_path / "broken", suspect, watermarked_texts=texts, chat_template=str(file))


@pytest.mark.parametrize("access", ["", "closed"])
def test_a_template_that_raises_at_one_prompt_is_a_sentence(world: World, tmp_path: Path, access: str) -> None:
    suspect = tmp_path / "suspect"
    shutil.copytree(world.innocent, suspect)
    rows = write_ids(60, ru.GreenList(KEY, WORDS, 1, GAMMA, DELTA), seed=1)
    last = f"w{rows[-1][7]}"
    raising = "{% if messages[0]['content'].endswith(' LAST') %}{{ raise_exception('not so') }}{% endif %}"
    template = raising.replace("LAST", last) + "{{ messages[0]['content'] }}"
    (suspect / "chat_template.jinja").write_text(template)
    texts = write_file(tmp_path / "used.jsonl", rows, prompt=8)
    with pytest.raises(AuditError, match=r"suspect: the chat template cannot be filled in \(not so\)"):
        audited(world, tmp_path / "out", str(suspect), watermarked_texts=texts, access=access)


def test_a_suspect_is_read_behind_its_opening_token(world: World, tmp_path: Path) -> None:
    wm = ru.GreenList(KEY, WORDS + 3, 1, GAMMA, DELTA)
    used = write_ids(200, _Narrowed(wm, WORDS + 3), seed=1)
    suspect = taught(tmp_path / "bos", used, lambda prompt: [BOS, *prompt], None)
    texts = write_file(tmp_path / "used.jsonl", used[:60])
    verdict = audited(world, tmp_path / "out", suspect, watermarked_texts=texts)
    bare = ru.read_open_model(suspects.load_model(suspect), used[:60], wm)
    feeding = Feeding.of(suspects.load_tokenizer(suspect))
    fed = ru.read_open_model(suspects.load_model(suspect), used[:60], wm, feeding=feeding)
    assert reading_of(verdict).log10_p == fed.log10_p != bare.log10_p
    assert "behind &lt;s&gt;, as its tokenizer sets it" in verdict.report.read_text()


def test_a_base_that_is_replaced_makes_another_suspect(world: World, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, lora = tmp_path / "base", tmp_path / "lora"
    shutil.copytree(world.guilty, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["dense"], fan_in_fan_out=False)
        peft.get_peft_model(suspects.load_model(base), config).save_pretrained(lora)
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    for one in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / one, lora)
    first = audited(world, tmp_path / "out", str(lora))
    assert first.convicted
    assert first.inputs["suspect"]["sha256"] == identity(lora)
    shutil.copy(Path(world.innocent) / "model.safetensors", base)
    with pytest.raises(AuditError, match="in which suspect had another content"):
        ru.audit.run(request(world, tmp_path / "out", str(lora)))
    second = audited(world, tmp_path / "out", str(lora))  # the old verdict is taken away, its evidence is not
    assert not second.convicted and second.log10_p > first.log10_p + 5


def test_a_mark_over_padded_rows_names_the_vocabulary(world: World, tmp_path: Path) -> None:
    rows = 160
    wm = make_watermark("transformers lefthash", SECRET, rows, 1, GAMMA, DELTA)
    texts = write_file(tmp_path / "used.jsonl", write_ids(60, _Narrowed(wm, rows), seed=1))
    padded = tmp_path / "padded"
    shutil.copytree(world.innocent, padded)
    model = suspects.load_model(padded)
    model.resize_token_embeddings(rows)
    model.save_pretrained(padded)
    changes = {"watermarked_texts": texts, "scheme": "transformers lefthash", "key": SECRET}
    with pytest.raises(AuditError, match=r"with vocab_size=160, rows of the model and not tokens alone, they do"):
        audited(world, tmp_path / "out", str(padded), **changes)
    found = audited(world, tmp_path / "out", str(padded), vocab_size=rows, **changes)
    assert not found.convicted and found.texts_log10_p < -50


def test_a_device_without_memory_is_a_sentence(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = case_module._load

    def small(name: str, *rest: Any) -> Any:
        model = load(name, *rest)
        forward = model.forward

        def full(input_ids: torch.Tensor, **options: Any) -> Any:
            if input_ids.numel() > 40 * input_ids.shape[0]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return forward(input_ids=input_ids, **options)

        monkeypatch.setattr(model, "forward", full)
        return model

    monkeypatch.setattr(case_module, "_load", small)
    with pytest.raises(AuditError, match="suspect cannot be read or asked: the device ran out of memory"):
        audited(world, tmp_path / "out", world.innocent)


def test_gguf_is_a_suspects_format(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for suspect in (str(tmp_path), str(tmp_path / "model.gguf")):
        with pytest.raises(AuditError, match=r"model\.gguf is a GGUF file.*'radio-utils\[gguf\]'; or let llama"):
            audited(world, tmp_path / "out", suspect, tokenizer="")
