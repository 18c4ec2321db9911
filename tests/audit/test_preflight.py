"""What is found wrong before anything is spent: each wrong parameter by its name, and never a right one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trials import DELTA, GAMMA, KEY, LENGTH, WORDS, write_ids

from radio_utils import GreenList, GumbelMax, detection, planning
from radio_utils.audit import AuditError, Request, preflight
from radio_utils.audit.texts import Texts
from radio_utils.keys import make_watermark


def texts_of(ids: Any) -> Texts:
    return Texts("watermarked_texts", "marked.jsonl", "", 0, list(ids), None)


def checked(texts: Texts, **changes: Any) -> None:
    request = Request(**({"suspect": "bob", "watermarked_texts": "marked.jsonl", "key": KEY, "window": 1} | changes))
    wm = request.watermark(WORDS)
    preflight.check_marked(texts, preflight.detected(texts, wm), wm, request)


@pytest.fixture(scope="module")
def marked() -> Texts:
    return texts_of(write_ids(60, GreenList(KEY, WORDS, 1, GAMMA, DELTA), seed=1))


def test_the_right_parameters_pass(marked: Texts) -> None:
    checked(marked, gamma=GAMMA)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "another"}, "do not carry this watermark .*check the key, the scheme, the tokenizer"),
        ({"window": 2}, r"with window=1 they do \(log10 p = -\d+\.\d\): correct that parameter"),
        ({"window": 3}, "with window=1 they do"),
        ({"scheme": "gumbel max"}, "with scheme='green list' they do|do not carry"),
        ({"gamma": 0.5}, "colours fit gamma=0.25 far better"),
        ({"gamma": 0.1}, "gamma=0.25"),
        ({"gamma": 0.4}, "gamma=0.25"),
    ],
)
def test_wrong_parameters_are_told(marked: Texts, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AuditError, match=words) as error:
        checked(marked, **({"gamma": GAMMA} | changes))
    assert KEY not in str(error.value)


def test_unmarked_texts_are_told() -> None:
    with pytest.raises(AuditError, match="do not carry this watermark"):
        checked(texts_of(write_ids(60, None, seed=1)))


@pytest.mark.parametrize("scheme", ["released green list", "released gumbel max", "transformers lefthash", "gumbel max"])
def test_other_schemes_pass_and_their_neighbours_hint(scheme: str) -> None:
    wm = make_watermark(scheme, 12345, WORDS, 1, GAMMA)
    processed = make_watermark(scheme, 12345, WORDS, 1, GAMMA)
    if scheme != "gumbel max" and hasattr(processed, "delta"):
        processed.delta = DELTA  # type: ignore[attr-defined]
    drawn = np.random.default_rng(3).integers(0, WORDS, (400, LENGTH))
    for place in range(1, LENGTH):  # the best of six candidates: marked whatever the scheme's own generator is
        candidates = np.random.default_rng(place).integers(0, WORDS, (400, 6))
        scores = np.column_stack([wm.scores(drawn[:, place - 1 : place], one) for one in candidates.T])
        drawn[:, place] = candidates[np.arange(400), scores.argmax(axis=1)]
    texts = texts_of(drawn)
    checked(texts, scheme=scheme, key=12345, gamma=GAMMA)
    with pytest.raises(AuditError, match="do not carry this watermark"):
        checked(texts, scheme=scheme, key=54321, gamma=GAMMA)


def test_the_right_gamma_is_never_refused() -> None:
    for number, gamma in enumerate(np.linspace(0.06, 0.8, 38)):
        wm = GreenList(f"key {number}", WORDS, 1, float(gamma), (1.0, 2.0, 5.0)[number % 3])
        texts = texts_of(write_ids((20, 100)[number % 2], wm, seed=number, length=40))
        found = preflight.detected(texts, wm)
        request = Request("bob", "marked.jsonl", key=f"key {number}", window=1, gamma=float(gamma))
        assert preflight._likelier_gamma(found, request, wm) is None


@pytest.mark.parametrize("scheme", ["green list", "released green list", "transformers lefthash"])
def test_small_vocabularies_break_no_hint(scheme: str) -> None:
    texts = texts_of(np.random.default_rng(0).integers(0, 5, (30, 12)))
    with pytest.raises(AuditError, match="do not carry this watermark"):
        request = Request("bob", "marked.jsonl", key=5, window=1, scheme=scheme, gamma=0.4)
        wm = request.watermark(5)
        preflight.check_marked(texts, preflight.detected(texts, wm), wm, request)


def test_vocabularies_are_compared_by_content() -> None:
    def tokenizer(vocabulary: dict[str, int]) -> Any:
        return SimpleNamespace(get_vocab=lambda: vocabulary)

    hers = tokenizer({"a": 0, "b": 1, "c": 2})
    assert preflight.compare_vocabularies(hers, tokenizer({"c": 2, "a": 0, "b": 1}), 3) == preflight.Vocabulary(
        True, 0, None
    )
    padded = preflight.compare_vocabularies(hers, hers, 8)
    assert padded.padding == (3, 7) and "Rows 3 to 7" in padded.words and "token by token" in padded.words
    assert "ignored, unless the watermark was made over them" in padded.words  # what vocab_size decides
    other = preflight.compare_vocabularies(hers, tokenizer({"a": 1, "b": 0, "c": 2, "d": 3}), 4)
    assert (other.same, other.differing, other.padding) == (False, 3, None) and "differs from Alice's in 3" in other.words
    with pytest.raises(AuditError, match="suspect has 2 logits and its tokenizer 3 tokens"):
        preflight.compare_vocabularies(hers, hers, 2)


def test_power_agrees_with_its_planning(marked: Texts) -> None:
    wm = GreenList(KEY, WORDS, 1, GAMMA)
    found = detection.detect(marked.ids, wm)
    needs = [preflight.power(wm, pairs, found, -3.0) for pairs in (0, 3, 200, 2000, 20_000)]
    smallest = [need.smallest for need in needs]
    assert smallest[0] is None and smallest[1] is None  # 0.25^3 is above 10^-3
    assert smallest[2] > smallest[3] > smallest[4] > 0  # type: ignore[operator]
    assert smallest[3] == planning.effect_seen(wm, 2000, log10_p=-3.0)
    assert needs[3].strongest == found.score - GAMMA and needs[3].enough and not needs[0].enough


def test_too_little_text_is_told_before_anything_is_spent() -> None:
    enough, little = preflight.Need(500, 0.1, 0.4), preflight.Need(4, None, 0.4)
    preflight.check_enough({"a": enough, "b": little}, 1e-3)
    preflight.check_enough({}, 1e-3)
    with pytest.raises(AuditError, match=r"too little text for alpha=0\.001: at most about 12 pairs"):
        preflight.check_enough({"a": little, "b": preflight.Need(12, 0.5, 0.4)}, 1e-3)


def test_gumbel_max_has_no_gamma(marked: Texts) -> None:
    wm = GumbelMax(KEY, WORDS, 1)
    request: Any = SimpleNamespace(gamma=0.25, scheme="gumbel max", secret=lambda: KEY)
    assert preflight._likelier_gamma(detection.detect(marked.ids, wm), request, wm) is None
