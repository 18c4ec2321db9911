"""Names of models and of sets of pairs: an object and its text are the same name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio_utils.world.mixtures import ShareError
from radio_utils.world.names import (
    SETS,
    Bob,
    ManyKeys,
    Name,
    Pretrained,
    Purified,
    Redrawn,
    Texts,
    Twin,
    fine_tuned,
    named,
    parse,
)  # fmt: skip

SHARES = st.floats(0, 1)
NAMES: st.SearchStrategy[Name] = st.one_of(
    st.sampled_from([Pretrained("alice"), Pretrained("base"), Twin(), *map(Texts, SETS)]),
    SHARES.map(Bob), SHARES.map(Purified), SHARES.map(Redrawn), st.integers(1, 10**9).map(ManyKeys),
)  # fmt: skip


@given(NAMES)
def test_a_name_and_its_text_are_one(name: Name) -> None:
    assert parse(str(name)) == named(name) == name
    assert named(name.rho if isinstance(name, Bob) else str(name)) == name


def test_the_texts_that_chapters_write() -> None:
    names = (Purified(0.5), Redrawn(0.25), ManyKeys(2), Texts("fresh"), Twin(), Pretrained("base"))
    assert [str(one) for one in names] == [
        "purified/0.5", "redrawn/0.25", "keys/2", "pairs/fresh", "twin", "base"
    ]  # fmt: skip
    assert named(1) == named(1.0) == Bob(1.0) != Purified(1.0)


@pytest.mark.parametrize(
    "text", ["", "Twin", "0.5", "nan", "pairs", "pairs/", "keys/", "keys/0", "keys/1.5", "keys/inf", "redrawn/x", "bob/0.5"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown model '{text}'; give a share, 'twin'"):
        named(text)


def test_values_are_checked_when_a_name_is_made() -> None:
    for make in (Bob, Purified, Redrawn, named):
        for share in (-0.1, 1.5, float("nan")):
            with pytest.raises(ShareError, match="must be a share"):
                make(share)
    with pytest.raises(ValueError, match="unknown set of pairs 'stale'; choose one of watermarked"):
        parse("pairs/stale")
    for other in ("alice", "pairs/fresh"):
        with pytest.raises(ValueError, match=f"unknown model '{other}'"):
            fine_tuned(other)
