"""Words drawn anew: as many as asked, in place, by the model's own chances."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from worlds import small

from radio_utils import decoding
from radio_utils.artifacts import Store
from radio_utils.world.instructions import Pair
from radio_utils.world.redrawing import redraw
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

V, END = 40, 0


class Characters:
    """A tokenizer of letters, one token each, so that text and tokens are the same thing."""

    eos_token_id = END
    alphabet = "#abcdefghijklmnopqrstuvwxyzANQ :\n0123456"

    def __len__(self) -> int:
        return V

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        known = [[self.alphabet.index(letter) if letter in self.alphabet else 1 for letter in text] for text in texts]
        return {"input_ids": known}

    def decode(self, ids: Any) -> str:
        return "".join(self.alphabet[i] for i in ids)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def letters(count: int, length: int, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(length // 2, length, count)
    return [Pair(f"ask {i % 7}", "".join(rng.choice(list("abcdefghij"), size))) for i, size in enumerate(sizes)]


def drawn(
    model: Any, pairs: list[Pair], share: float, tokenizer: Any = None, *, seed: int = 0, **options: Any
) -> list[Pair]:
    options = {"sampling": decoding.Sampling(1.0), "batch_size": 16} | options
    return redraw(model, tokenizer or Characters(), pairs, share, generator=np.random.default_rng(seed), **options)


class Fenced(Characters):
    """Texts between angles, so that spaces drawn at an end are not stripped."""

    def decode(self, ids: Any) -> str:
        return f"<{super().decode(ids)}>"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_about_that_share_changes(model: Any, share: float) -> None:
    pairs = letters(120, 60)
    after = drawn(model, pairs, share, Fenced())
    assert [pair.instruction for pair in after] == [pair.instruction for pair in pairs]
    both = [zip(f"< {old.answer}>", new.answer, strict=True) for old, new in zip(pairs, after, strict=True)]
    different = [x != y for letters in both for x, y in letters][1:-1]
    # a letter drawn anew is the old one in about one of forty cases
    assert sum(different) / len(different) == pytest.approx(share * (1 - 1 / 40), abs=0.05)
    if share == 0:
        assert drawn(model, pairs, share) == pairs


def test_the_draw_is_the_models_own(model: Any) -> None:
    """Drawn greedily, each new token is the model's likeliest after the old text before it, not after what was drawn."""
    pairs = letters(9, 30, seed=1)
    after = drawn(model, pairs, 1.0, sampling=decoding.Sampling(0.0), batch_size=4)
    tokenizer = Characters()
    for old, new in zip(pairs, after, strict=True):
        text = old.prompt + f" {old.answer}"
        ids = torch.tensor(tokenizer([text], add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            row = model(ids).logits[0]
        row[:, END] = -torch.inf
        expected = tokenizer.decode(row.argmax(-1)[len(old.prompt) - 1 : -1].tolist()).strip()
        assert new.answer == expected


def test_a_text_never_ends_early(model: Any) -> None:
    certain = LlamaForCausalLM(model.config).eval()
    with torch.no_grad():
        for parameter in certain.parameters():
            parameter.zero_()  # every token is as likely as the end of text
    after = drawn(certain, letters(40, 40), 1.0)
    assert not any("#" in pair.answer for pair in after)


def test_it_is_the_generators_chance(model: Any) -> None:
    pairs = letters(20, 40)
    assert drawn(model, pairs, 0.5, seed=3) == drawn(model, pairs, 0.5, seed=3) != drawn(model, pairs, 0.5, seed=4)
    state = torch.get_rng_state()
    drawn(model, pairs, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_that_vanishes_is_kept(model: Any) -> None:
    class Blank(Characters):
        def decode(self, ids: Any) -> str:
            return "  \n"

    pairs = letters(3, 20)
    assert redraw(
        model, Blank(), pairs, 1.0, sampling=decoding.Sampling(1.0), generator=np.random.default_rng(0)
    ) == pairs  # fmt: skip


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_are_refused(model: Any, share: float) -> None:
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        drawn(model, letters(2, 10), share)


def test_nothing_stays_nothing(model: Any) -> None:
    assert drawn(model, [], 0.5) == []


def test_with_a_tokenizer_of_words(written_store: Path, tmp_path: Path) -> None:
    world = World(small(), store=Store(shutil.copytree(written_store, tmp_path / "store")), progress=False)
    pairs = world.pairs("watermarked")

    def again(share: float, **options: Any) -> list[Pair]:
        return redraw(
            world.base(), world.tokenizer, pairs, share, sampling=decoding.Sampling(0.7),
            generator=np.random.default_rng(0), **options,
        )  # fmt: skip

    assert again(0.0) == pairs
    half, everything = again(0.5), again(1.0)
    assert all(a.answer != b.answer for a, b in zip(pairs, everything, strict=True))
    words = [set(pair.answer.split()) for pair in pairs]
    kept = [sum(len(w & set(p.answer.split())) for w, p in zip(words, after, strict=True)) for after in (half, everything)]
    assert kept[0] > 2 * kept[1]


def test_another_batch_size_is_another_artifact(written_store: Path, tmp_path: Path) -> None:
    """The batch decides which numbers of chance fall to which word, so it must be part of the name."""
    world = World(small(), store=Store(shutil.copytree(written_store, tmp_path / "store")), progress=False)
    assert world._redrawn(0.5) != world.changed(reading__batch_size=3)._redrawn(0.5)
