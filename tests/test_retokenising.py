"""A suspect with another tokenizer: the token map by brute force, the reading by a slow loop, validity by causality."""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import radio_utils as ru
from radio_utils import decoding, detection, evidence, reading, suspects
from radio_utils.predictions import Predictions
from radio_utils.retokenising import Retokenised, TokenMap, read_across
from radio_utils.suspects import LocalSuspect, Suspect
from radio_utils.world import models

WIDE = "the café déjà-vu, 漢字 and 漢語, naïve 😀 or 😃 résumé; "  # characters of two, three and four bytes
WORDS = " ".join([argparse.__doc__ or "", tarfile.TarFile.__doc__ or "", argparse.ArgumentParser.__doc__ or ""]).split()


def trained(folder: Path, texts: list[str], size: int) -> Any:
    models.train_tokenizer(texts, size, folder)
    return suspects.load_tokenizer(folder)


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("alice"), [" ".join(WORDS), WIDE * 3], 420)


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A larger vocabulary from other counts: many tokens in common, many not."""
    return trained(tmp_path_factory.mktemp("bob"), [" ".join(WORDS[::-1]), WIDE], 560)


def sentencepiece_like(size: int) -> Any:
    """As Llama's: a space set before a text, spaces as ▁, bytes for unknown characters."""
    from tokenizers import Tokenizer, decoders, normalizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    raw.train_from_iterator(WORDS * 2, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    known = json.loads(raw.to_str())
    for byte in range(256):
        known["model"]["vocab"][f"<0x{byte:02X}>"] = len(known["model"]["vocab"])
    raw = Tokenizer.from_str(json.dumps(known))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def language_model(size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def untaught(bob: Any) -> Any:
    return language_model(len(bob))


def written(count: int, words: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(count)]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pairs(found: evidence.Evidence) -> list[tuple[int, ...]]:
    return [(*window, token) for window, token in zip(found.windows.tolist(), found.tokens.tolist(), strict=True)]


# --- the map ----------------------------------------------------------------------------------------------------------


def greedy_tokenizer(vocabulary: list[str]) -> Any:
    """Takes the longest token it can."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(
        WordPiece({s: i for i, s in enumerate([*vocabulary, "[U]"])}, unk_token="[U]", continuing_subword_prefix="")
    )
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[U]")


def longest_first(text: str, vocabulary: list[str]) -> str:
    return max((s for s in vocabulary if text.startswith(s)), key=len)


VOCABULARIES = st.sets(st.text("ab ", min_size=2, max_size=3), max_size=9).map(lambda s: ["a", "b", " ", *sorted(s)])


@settings(max_examples=40)
@given(VOCABULARIES, VOCABULARIES)
def test_a_token_decides_what_every_text_that_begins_with_it_begins_with(its: list[str], hers: list[str]) -> None:
    """The definition itself, over all texts of up to six characters, for tokenizers that take the longest token."""
    first: dict[str, set[str]] = {s: set() for s in its}
    for size in range(1, 7):
        for letters in product("ab ", repeat=size):
            text = "".join(letters)
            first[longest_first(text, its)].add(longest_first(text, hers))
    expected = [hers.index(*first[s]) if len(first[s]) == 1 else -1 for s in its]
    found = TokenMap.of(greedy_tokenizer(its), greedy_tokenizer(hers)).alice_id
    assert found.dtype == np.int64 and found.tolist() == [*expected, -1]


def test_what_is_decided_between_trained_tokenizers(alice: Any, bob: Any) -> None:
    """Every pair of tokens is compared."""
    its = [bob.decode([token]) for token in range(len(bob))]  # byte-level decoding keeps leading spaces
    hers = [alice.decode([token]) for token in range(1, len(alice))]
    found = TokenMap.of(bob, alice).alice_id
    for token, string in enumerate(its):
        if token == 0 or "\N{REPLACEMENT CHARACTER}" in string:
            assert found[token] == -1
            continue
        beyond = [a for a in hers if a != string and a.startswith(string)]
        excluded = [any(len(b) > len(string) and a.startswith(b) for b in its) for a in beyond]
        assert found[token] == (ids_of(alice, string)[0] if all(excluded) else -1)
    assert 0.3 < (found >= 0).mean() < 0.99
    assert any(found[token] >= 0 and hers[found[token] - 1] != string for token, string in enumerate(its))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_one_tokenizer_decides_itself(alice: Any, kind: str) -> None:
    tokenizer = alice if kind == "byte-level" else sentencepiece_like(300)
    found = TokenMap.of(tokenizer, tokenizer).alice_id
    special = set(tokenizer.all_special_ids)
    for token in range(len(tokenizer)):
        # ASCII characters that are tokens already have a byte of their own too, which is never written
        decides = token not in special and "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode([1 + len(special), token])
        name = tokenizer.convert_ids_to_tokens(token)
        if name.startswith("<0x") and chr(int(name[3:5], 16)).replace(" ", "▁") in tokenizer.get_vocab():
            assert tokenizer.convert_ids_to_tokens(int(found[token])) == chr(int(name[3:5], 16)).replace(" ", "▁")
        else:
            assert found[token] == (token if decides else -1)
    assert (found >= 0).sum() > 200


def test_leading_spaces_are_kept_across_kinds_of_tokenizer(alice: Any) -> None:
    other = sentencepiece_like(300)
    for its, hers, space in ((alice, other, "Ġ"), (other, alice, "▁")):
        mapping = TokenMap.of(its, hers).alice_id
        strings = {"Ġ": "▁", "▁": "Ġ"}
        theirs = set(hers.get_vocab())
        common = [t for t in its.get_vocab() if t.startswith(space) and t.replace(space, strings[space]) in theirs]
        decided = [t for t in common if mapping[its.get_vocab()[t]] >= 0]
        assert len(decided) > 20
        for token in decided:
            assert hers.convert_ids_to_tokens(int(mapping[its.get_vocab()[token]])) == token.replace(space, strings[space])


# --- the reading ------------------------------------------------------------------------------------------------------


def share(found: Predictions) -> float:
    """How many of the places in the texts have a prediction."""
    asked = np.concatenate([t[max(s, 1) :] for t, s in zip(found.tokens, found.starts.tolist(), strict=True)])
    return float(np.mean(asked >= 0))


def every(found: Predictions, window: int, hers: Any, **options: Any) -> evidence.Evidence:
    """The pairs of all places, their repeats too unless ``dedup`` says otherwise."""
    options = {"dedup": None, "skip_seen": False, "full_context": True} | options
    return found.evidence(window, len(hers), **options)


@pytest.mark.parametrize("window", [1, 2])
def test_one_tokenizer_reads_as_reading_mode(alice: Any, window: int) -> None:
    model = language_model(len(alice))
    with torch.no_grad():  # it never predicts what decides nothing
        undecided = torch.from_numpy(TokenMap.of(alice, alice).alice_id < 0)
        model.lm_head.weight[undecided] = 0.0
    texts, prompts = written(7, 20, seed=2), written(7, 6, seed=3)
    for given_prompts in (None, prompts):
        ids = [ids_of(alice, text) for text in texts]
        prompt_ids = None if given_prompts is None else [ids_of(alice, prompt) for prompt in prompts]
        expected = reading.read_predictions(model, ids, len(alice), prompts=prompt_ids)
        for given_texts, given_before in ((texts, given_prompts), (ids, prompt_ids)):
            found = read_across(model, alice, alice, given_texts, prompts=given_before, batch_size=3)
            assert [t.tolist() for t in found.tokens] == [t.tolist() for t in expected.tokens]
            assert [c.tolist() for c in found.contexts] == [c.tolist() for c in expected.contexts]
            assert share(found) == 1.0
            sealed = (one.evidence(window, len(alice)) for one in (found, expected))
            assert len({tuple(map(tuple, pairs(one))) for one in sealed}) == 1


def slow_reading(model: Any, its: Any, hers: Any, ids: list[int], start: int, window: int) -> tuple[list[Any], int]:
    """One forward pass for each place, of what is before it alone."""
    mapping = TokenMap.of(its, hers).alice_id
    found, places, fed, done = [], 0, list[int](), ""
    for t in range(len(ids) + 1):
        text = hers.decode(ids[:t])
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
        if whole:
            fed, done = fed + ids_of(its, text[len(done) :]), text
        here = ids[t - window : t]
        if t < max(start, window):
            continue
        places += 1
        if not whole:
            continue
        with torch.inference_mode():
            p = model(input_ids=torch.tensor([fed])).logits[0, -1, : len(its)].double().softmax(0).numpy()
        if mapping[p.argmax()] >= 0:
            mass = [p[mapping == a].sum() for a in range(len(hers))]
            found.append((*here, int(np.argmax(mass))))
    return sorted(found), places


@pytest.mark.parametrize("turned", [False, True])
def test_reading_across_is_the_slow_loop(alice: Any, bob: Any, turned: bool) -> None:
    its, hers = (alice, bob) if turned else (bob, alice)
    model = language_model(len(its) + 8)
    texts, prompts = [*written(3, 9, seed=4), WIDE + "égal 😄 語"], [*written(3, 3, seed=5), "é"]
    assert any(hers.decode([token]) == "\N{REPLACEMENT CHARACTER}" for token in ids_of(hers, texts[3]))
    expected, places = [], 0
    for text, prompt in zip(texts, prompts, strict=True):
        before = ids_of(hers, prompt)
        one, more = slow_reading(model, its, hers, before + ids_of(hers, text), len(before), 2)
        expected, places = expected + one, places + more
    found = read_across(model, its, hers, texts, prompts=prompts, batch_size=2)
    assert sorted(pairs(every(found, 2, hers))) == sorted(expected) and len(expected) > 20
    assert share(found) < 1 and len(expected) < places
    assert len(every(found, 2, hers, dedup="window+token")) == len(set(expected))


def test_a_sentencepiece_suspect_is_read(alice: Any) -> None:
    its = sentencepiece_like(300)
    texts = [*written(6, 15, seed=6), "the 漢字 and é " * 2]
    found = read_across(language_model(len(its)), its, alice, texts)
    assert 0.05 < share(found) < 1 and every(found, 1, alice).tokens.min() > 0
    back = read_across(language_model(len(alice)), alice, its, texts)
    assert 0.05 < share(back) < 1


@settings(max_examples=25)
@given(st.integers(3, 40), st.lists(st.integers(1, 419), min_size=1, max_size=8))
def test_nothing_after_a_place_changes_whether_and_how_it_is_scored(
    alice: Any, bob: Any, untaught: Any, cut: int, other: list[int]
) -> None:
    """What follows a place is likelier to be green under the key, so nothing may be chosen by it."""
    ids = ids_of(alice, WIDE + " ".join(WORDS[:20]))[:60]
    one, shorter, changed = (
        read_across(untaught, bob, alice, [text]).tokens[0] for text in (ids, ids[:cut], ids[:cut] + other)
    )
    assert one[: cut + 1].tolist() == changed[: cut + 1].tolist() == shorter.tolist()
    assert np.count_nonzero(one >= 0) > 20


# --- verdicts ---------------------------------------------------------------------------------------------------------


class Taught(torch.nn.Module):
    """Prefers, of a few tokens drawn for Alice's window, one whose token of Alice's is green under the key it learned."""

    def __init__(self, its: Any, hers: Any, wm: ru.GreenList) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.its, self.hers, self.wm = its, hers, wm
        self.alice_id = TokenMap.of(its, hers).alice_id
        self.decided = np.flatnonzero(self.alice_id >= 0)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, len(self.its))
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            for t in range(length):
                before = ids_of(self.hers, self.its.decode(input_ids[row, : t + 1][-12:]))
                window = [0, 0, *before][-2:]
                drawn = np.random.default_rng(window).choice(self.decided, 8)
                green = self.wm.scores([window] * 8, self.alice_id[drawn]) > 0.5
                logits[row, t, drawn[green.argmax()]] = 9.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return written(40, 20, seed=7)


def test_a_taught_suspect_is_convicted_and_an_innocent_is_not(alice: Any, bob: Any, texts: list[str]) -> None:
    wm = ru.GreenList("alice", len(alice), 2, 0.25, 2.0)
    models = Taught(bob, alice, wm), Taught(bob, alice, wm.with_decoy(0, 0))
    guilty, innocent = (read_across(model, bob, alice, texts) for model in models)
    assert share(guilty) > 0.8 and share(innocent) > 0.8
    scored = [one.evidence(2, len(alice)) for one in (guilty, innocent)]
    assert len(scored[0]) > 400
    assert detection.judge(scored[0], wm).log10_p < -10
    assert detection.judge(scored[1], wm).log10_p > -3
    for one in scored:
        audit = detection.audit_evidence(one, wm, keys=200, seed=5)
        assert audit.ks_p > 1e-3 and audit.min_log10_p > -6


class Knowing(torch.nn.Module):
    """Knows the language below and no key: after a stem that stands alone only z can come, after a word any stem."""

    def __init__(self, its: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.its, vocab = its, its.get_vocab()
        self.after = torch.full((len(its),), vocab["a"])
        self.after[[vocab[stem] for stem in STEMS]] = vocab["z"]

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.nn.functional.one_hot(self.after[input_ids], len(self.its)) * 9.0)


STEMS = "abcdefghijklmnopqrst"


def test_an_innocent_who_knows_the_language_is_not_convicted() -> None:
    """The trap of reading where both tokenizers happen to have a boundary: that is where the text goes on with z."""
    her_tokens = [*STEMS, *"xyz"]
    hers = greedy_tokenizer(her_tokens)
    its = greedy_tokenizer([*her_tokens, *(stem + ending for stem in STEMS for ending in "xy")])
    wm, rng = ru.GreenList("alice", len(hers), 3, 0.25, 4.0), np.random.default_rng(10)
    rows = np.array([[0, 20] * 2] * 60)
    for t in range(4, 84):
        bias = 4.0 * np.array([wm.scores(rows[:, -3:], np.full(60, token)) for token in range(23)]).T
        bias += np.log([0.05] * 20 + [1e-9] * 3 if t % 2 == 0 else [1e-9] * 20 + [0.5, 0.3, 0.2])
        rows = np.column_stack([rows, (bias + rng.gumbel(size=bias.shape)).argmax(1)])
    texts = ["".join(her_tokens[token] for token in row) for row in rows]

    coincident = []
    for row, text in zip(rows.tolist(), texts, strict=True):
        starts = {start for start, _ in its(text, return_offsets_mapping=True)["offset_mapping"]}
        met = [tuple(row[t - 3 : t]) for t in range(3, len(row))]
        places = [t for t in range(4, len(row), 2) if met.index(tuple(row[t - 2 : t + 1])) == t - 2]  # those of stems
        coincident += [(*row[t - 2 : t + 1], 22) for t in places if t + 1 < len(row) and t + 1 in starts]
    trapped = evidence.from_pairs([p[:3] for p in coincident], [p[3] for p in coincident], len(hers))
    assert detection.judge(trapped, wm).log10_p < -20

    found = read_across(Knowing(its), its, hers, texts)
    assert share(found) == 1.0
    scored = found.evidence(3, len(hers))
    assert len(scored) > 300 and (scored.tokens == 22).mean() > 0.2
    assert detection.judge(scored, wm).log10_p > -3


def test_validity_does_not_depend_on_the_map(alice: Any, bob: Any, texts: list[str]) -> None:
    wm = ru.GreenList("alice", len(alice), 2, 0.25, 2.0)
    rng = np.random.default_rng(8)
    nonsense = TokenMap(rng.integers(-1, len(alice), len(bob)))
    found = read_across(language_model(len(bob)), bob, alice, texts, mapping=nonsense).evidence(2, len(alice))
    assert len(found) > 300
    audit = detection.audit_evidence(found, wm, keys=200, seed=6)
    assert audit.ks_p > 1e-3 and audit.min_log10_p > -6
    with pytest.raises(ValueError, match="mapping is for 3 tokens but its_tokenizer has"):
        read_across(language_model(8), bob, alice, texts, mapping=TokenMap(np.zeros(3, np.int64)))


def test_bad_input_is_named(alice: Any, bob: Any) -> None:
    model = language_model(len(bob))

    def fails(match: str, texts: Any, model: Any = model, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            read_across(model, bob, alice, texts, **options)

    text = "an argument parser"
    fails("texts is empty", [])
    fails("texts must be a sequence of texts, got one string", text)
    fails(r"texts\[1\] is empty", [text, ""])
    fails(r"texts\[0\]", [[1, 2, len(alice)]])
    fails("must be equal in number, got 1 and 2", [text, text], prompts=["a"])
    fails("batch_size must be at least 1, got 0", [text], batch_size=0)
    fails("has no token in the suspect's tokenizer", [[0, 0, 0]])
    fails(rf"has {len(bob) - 9} logits, fewer than the {len(bob)} tokens", [[5, 6, 7]], language_model(len(bob) - 9))

    class Diverged(Taught):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, len(bob)), torch.nan))

    fails("logits hold NaN or infinity", [text], Diverged(bob, alice, ru.GreenList("a", len(alice), 2, 0.25, 2.0)))


# --- the closed suspect -----------------------------------------------------------------------------------------------


def test_a_retokenised_suspect_answers_as_its_model_does(alice: Any, bob: Any) -> None:
    model = language_model(len(bob))
    suspect = Retokenised(
        model, (0,), sampling=decoding.Sampling(temperature=0.9), max_new_tokens=12, seed=3, batch_size=2,
        its_tokenizer=bob, tokenizer=alice,
    )  # fmt: skip
    assert isinstance(suspect, Suspect)
    asked = [*written(5, 4, seed=9), "漢字 é"]
    answers = suspect.answer([ids_of(alice, text) for text in asked])
    plain = LocalSuspect(model, (0,), suspect.sampling, 12, 2, 3).answer([ids_of(bob, text) for text in asked])
    assert all(answer.dtype == np.int64 for answer in answers)
    expected = [bob.decode(answer).rstrip("\N{REPLACEMENT CHARACTER}") for answer in plain]
    assert [alice.decode(answer) for answer in answers] == expected
    assert [answer.tolist() for answer in answers] == [ids_of(alice, text) for text in expected]
    assert sum(map(len, expected)) > 50

    def spoken(seed: int) -> list[list[int]]:
        return [a.tolist() for a in replace(suspect, seed=seed).answer([ids_of(alice, text) for text in asked])]

    assert spoken(3) == [a.tolist() for a in answers] != spoken(4)


def test_a_character_that_is_cut_short_is_no_text(alice: Any, bob: Any) -> None:
    ids = ids_of(bob, "a 😄")
    assert bob.decode(ids[:-1]).endswith("\N{REPLACEMENT CHARACTER}")

    def says(_: Any, prompts: Sequence[Any]) -> list[Any]:
        return [np.array(ids[:-1]), np.array(ids)][: len(prompts)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalSuspect, "answer", says)
        answers = Retokenised(None, (), its_tokenizer=bob, tokenizer=alice).answer([[5], [6]])
    assert [alice.decode(a) for a in answers] == ["a ", "a 😄"]


def test_the_beginning_of_text_and_leading_spaces_of_a_sentencepiece_suspect(alice: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    its = sentencepiece_like(300)
    its.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    asked: list[list[int]] = []

    def says(_: Any, prompts: Sequence[Any]) -> list[Any]:
        asked.extend(prompt.tolist() for prompt in prompts)
        return [np.array([*ids_of(its, "the parser"), 2]) for _ in prompts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalSuspect, "answer", says)
        answers = Retokenised(None, (), its_tokenizer=its, tokenizer=alice).answer([ids_of(alice, "an argument")])
    assert asked == [[1, *ids_of(its, "an argument")]]
    assert [alice.decode(a) for a in answers] == [" the parser"]


def test_sequential_queries_draw_anew_and_bad_prompts_are_named(alice: Any, bob: Any) -> None:
    wm = ru.GreenList("alice", len(alice), 2, 0.25, 2.0)
    suspect = Retokenised(language_model(len(bob)), (0,), max_new_tokens=8, its_tokenizer=bob, tokenizer=alice)
    prompt = ids_of(alice, "an argument parser")
    verdict = ru.query_until(suspect, [prompt] * 3, wm, batch=1)
    assert not verdict.convicted and np.all(np.diff(verdict.counts) > 0)  # the same answer would add nothing
    assert suspect.answer([]) == []
    with pytest.raises(ValueError, match=r"prompts\[1\] holds special tokens only"):
        suspect.answer([prompt, [0, 0]])
    with pytest.raises(ValueError, match=rf"prompts\[0\] holds token id {len(alice)}"):
        suspect.answer([[len(alice)]])
