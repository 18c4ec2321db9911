"""How models are fed: the tokens before a text, and the chat template around a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_architectures import plain

from radio_utils import membership, reading, retokenising
from radio_utils.suspects import LocalSuspect
from radio_utils.suspects.feeding import Feeding, TemplateError, opening
from radio_utils.suspects.vocabulary import VocabularySizes

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<user> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
SPECIAL = {"<s>": 40, "</s>": 41, "<user>": 42, "<end>": 43, "<bot>": 44}


def made(bos: bool = True, template: str | None = TEMPLATE, gap: int = 0) -> Any:
    """Forty words and five signs; ``gap`` ids are skipped before the signs."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    vocabulary = {f"w{i}": i for i in range(40)} | {sign: number + gap for sign, number in SPECIAL.items()}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 40 + gap), ("</s>", 41 + gap)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<end>", "<bot>"]})
    tokenizer.chat_template = template
    return tokenizer


def model(rows: int = 45) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=rows, max_position_embeddings=64, initializer_range=0.3, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 40, size) for size in (4, 7, 2)]
TEXTS = [RNG.integers(0, 40, size) for size in (9, 5, 12)]


@pytest.mark.parametrize("words", [["A", "C", "G", "T"], ["\u4e2d", "\u6587"]])
@pytest.mark.parametrize("drops", [True, False])
def test_an_opening_token_is_found_without_the_letter_a(words: list[str], drops: bool) -> None:
    """What a tokenizer does not know it drops, or raises."""
    from tokenizers import Tokenizer, models, processors

    vocabulary = {word: number for number, word in enumerate([*words, "<s>"])}
    backend = Tokenizer(models.BPE(vocabulary, []) if drops else models.WordLevel(vocabulary, unk_token="none"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(words))])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert opening(tokenizer) == [len(words)]


def test_a_word_that_is_unknown_is_no_sign_of_a_template() -> None:
    tokenizer = made(bos=False, template="Question: {{ messages[0]['content'] }} Answer:")
    tokenizer.unk_token = "w0"  # as which it reads the template's words
    feeding = Feeding.of(tokenizer, "auto")
    assert feeding.prompt(np.array([0, 3])).tolist() == [0, 0, 3, 0]


def test_what_stands_before_a_text() -> None:
    assert opening(made()) == [40] and opening(made(bos=False)) == []
    feeding = Feeding.of(made())
    assert feeding.text(np.array([3, 4])).tolist() == [40, 3, 4] == feeding.text(np.array([40, 3, 4])).tolist()
    assert feeding.prompt(np.array([], np.int64)).tolist() == [40]
    assert "behind <s>" in feeding.words and "no chat template" in feeding.words
    assert Feeding.of(made(bos=False)).bare


def test_prompts_in_a_template() -> None:
    feeding = Feeding.of(made(), "auto")
    turn = [40, 42, 3, 4, 43, 44]
    assert feeding.prompt(np.array([3, 4])).tolist() == turn
    assert feeding.prompt(np.array(turn)).tolist() == turn, "written in the template already"
    assert feeding.prompt(np.array([42, 3, 43, 44])).tolist() == [40, 42, 3, 43, 44]
    assert feeding.prompt(np.array([40])).tolist() == [40], "an opening token is no turn of a chat"
    assert feeding.without_template().prompt(np.array([3, 4])).tolist() == [40, 3, 4]
    assert Feeding.of(made(template=None), "auto").template is None
    assert "in the chat template" in feeding.words
    digests = {Feeding.of(made(bos=bos), name).digest for bos in (True, False) for name in ("auto", "none")}
    assert len(digests) == 4


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    with pytest.raises(TemplateError, match=r"cannot be read .*give 'auto', 'none' or a Jinja file"):
        Feeding.of(made(), str(file))
    for source, words in [
        ("{{ raise_exception('no system turn') }}", r"cannot be filled in \(no system turn\)"),
        ("{% for %}", "cannot be filled in"),
        ("{{ 'always this' }}", "does not show the prompt"),
    ]:
        file.write_text(source)
        with pytest.raises(TemplateError, match=words):
            Feeding.of(made(), str(file))
    file.write_text("Q: {{ messages[0]['content'] }} A:")
    assert Feeding.of(made(), str(file)).template == file.read_text()


@pytest.mark.parametrize("template", ["none", "auto"])
def test_reading_is_that_of_what_is_fed(template: str) -> None:
    suspect, feeding = model(), Feeding.of(made(), template)
    found = reading.read_predictions(suspect, TEXTS, 45, prompts=PROMPTS, feeding=feeding, batch_size=2)
    across = retokenising.read_across(suspect, made(), made(bos=False), TEXTS, prompts=PROMPTS, feeding=feeding)
    bare = reading.read_predictions(suspect, TEXTS, 45, feeding=feeding)
    for i, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        before = [40, 42, *prompt, 43, 44] if template == "auto" else [40, *prompt]
        logits = plain(suspect, [*before, *text]).argmax(-1)[len(before) - 1 :].tolist()
        assert found.tokens[i][prompt.size :].tolist() == logits
        known = across.tokens[i][prompt.size :]
        assert all(ours in (-1, theirs) for ours, theirs in zip(known.tolist(), logits, strict=True)) and max(known) >= 0
        assert bare.tokens[i][1:].tolist() == plain(suspect, [40, *text]).argmax(-1)[1:].tolist()


def test_two_models_are_fed_each_its_own_way() -> None:
    suspect, other, feeding = model(), model(), [Feeding.of(made(), "auto"), Feeding.of(made(bos=False, template=None))]
    texts = [np.random.default_rng(i).integers(0, 40, 12) for i in range(8)]
    prompts = [text[:4] for text in texts]
    same = reading.read_contrast(suspect, other, texts, 1, 45, prompts=prompts)
    assert not same.weights.any(), "one model, fed alike"
    assert reading.read_contrast(suspect, other, texts, 1, 45, prompts=prompts, feeding=feeding).weights.any()
    with pytest.raises(ValueError, match="feeding must be one for each of the 2 models"):
        reading.read_contrast(suspect, other, texts, 1, 45, feeding=feeding[:1])


@pytest.mark.parametrize("template", ["none", "auto"])
def test_answers_and_losses_are_those_of_what_is_fed(template: str) -> None:
    from radio_utils.decoding import Sampling

    suspect, tokenizer = model(), made()
    feeding = Feeding.of(tokenizer, template)
    asked = LocalSuspect(suspect, (), sampling=Sampling(0.0), max_new_tokens=4, feeding=feeding).answer(PROMPTS)
    words = [" ".join(f"w{i}" for i in ids) for ids in PROMPTS]
    texts = [" ".join(f"w{i}" for i in ids) for ids in TEXTS]
    losses = membership.losses(suspect, tokenizer, texts, prompts=words, chat_template=template)
    alone = membership.losses(suspect, tokenizer, texts)
    for i, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        before = [40, 42, *prompt, 43, 44] if template == "auto" else [40, *prompt]
        for place in range(4):
            assert asked[i][place] == int(plain(suspect, [*before, *asked[i][:place]])[-1].argmax())
        for loss, start in ((losses[i], before), (alone[i], [40])):
            log_p = plain(suspect, [*start, *text]).log_softmax(-1)[len(start) - 1 : -1]
            assert loss == pytest.approx(-float(log_p[range(text.size), text].sum()), rel=1e-4)


def test_the_sizes_of_a_vocabulary() -> None:
    assert VocabularySizes.of(made()) == VocabularySizes(45, 45, 44)
    gap = made(gap=10)
    sizes = VocabularySizes.of(gap, model(64))
    assert (sizes.ids, sizes.highest, sizes.rows, sizes.size) == (45, 54, 64, 55) and sizes.length < sizes.size
    texts = [np.append(text, 54) for text in TEXTS]  # the highest id lies beyond len(tokenizer)
    found = retokenising.read_across(model(64), gap, gap, texts)
    assert max(tokens.max() for tokens in found.tokens) >= 0
    with pytest.raises(ValueError, match=r"fewer than the 55 tokens of its_tokenizer"):
        retokenising.read_across(model(50), gap, gap, TEXTS)
