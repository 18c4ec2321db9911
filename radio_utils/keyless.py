"""Can a watermark be noticed without its key? Tests of texts, and of the answers to chosen prompts.

Who has two sets of texts can ask whether one model wrote both in one way: :func:`compare_vocabularies` counts distinct
pairs, :func:`classify` learns to tell the sets apart. Who can ask a model may repeat a prompt (:func:`repeated_answers`),
for a mark that draws by its key alone always gives the same answer, or ask one question after many endings
(:func:`ending_effects`), for a green list depends on the last tokens and on nothing else. The last two follow T. Gloaguen
et al., *Black-Box Detection of Language Model Watermarks*, ICLR 2025. Their third test finds a cache of contexts that is
kept between queries, which no scheme of this package has.

All p-values are exact: permutations, or a law that does not depend on the model. The null hypothesis is that both sets come
from one source, and whatever else differs between the sets is found too: a temperature, a topic, another version. A small
p-value names neither the owner nor the key, and gives no means to remove the mark. Explained in the chapter "Alice's data,
Bob's model".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from radio_utils import evidence as ev
from radio_utils.stats import tails

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
_LARGEST = 2**31  # ids of any tokenizer lie below: no vocabulary is asked for


@dataclass(frozen=True, slots=True)
class Noticed:
    """A test without the key.

    ``value`` is what it looked at; the test says in which unit. ``log10_p`` cannot be below ``−log10(permutations + 1)`` in
    a permutation test.
    """

    value: float
    log10_p: float


@dataclass(frozen=True, slots=True)
class Classified:
    """How well held-out texts were told apart: right answers in ``tested`` texts, Clopper and Pearson's 95 % interval.

    ``log10_p`` is Fisher's exact test of the answers against the sets that the texts came from.
    """

    tested: int
    accuracy: float
    low: float
    high: float
    log10_p: float


def compare_vocabularies(
    texts: Sequence[ArrayLike],
    others: Sequence[ArrayLike],
    *,
    window: int = 1,
    permutations: int = 999,
    generator: np.random.Generator,
) -> Noticed:
    """Test whether two sets of texts have equally many distinct (window, token) pairs at equal numbers of pairs.

    The longer set is cut to the length of the shorter, its texts in random order. Under H₀ the sets are exchangeable: any
    of the texts might as well have been in the other. The p-value is two-sided: a green list may add pairs
    or take some away, and Gumbel-max, which draws one token after each window again and again, takes many.

    Parameters
    ----------
    texts, others : sequence of int arrays [n]
        Token ids under any one tokenizer, each of more than ``window`` tokens.
    window : int
        Tokens before the one that is counted. Bob need not know the mark's: 1 is the vocabulary of two-token sequences.
    permutations : int
        Random divisions of all texts into two sets of these sizes.
    generator : numpy.random.Generator
        Draws the orders of the texts.

    Returns
    -------
    Noticed
        ``value`` is distinct pairs of ``texts`` over those of ``others``.

    Raises
    ------
    ValueError
        For a set without texts, or what is no sequence of token ids.

    Notes
    -----
    A permutation test: B. Phipson and G. K. Smyth, *Permutation p-values should never be zero*, 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from radio_utils import keyless
    >>> draw = np.random.default_rng(0)
    >>> few, many = draw.integers(20, size=(40, 30)), draw.integers(60, size=(40, 30))
    >>> found = keyless.compare_vocabularies(many, few, generator=draw)
    >>> found.value > 2, round(found.log10_p, 2)
    (True, -2.7)
    """
    _check_permutations(permutations)
    pairs, sizes, first = _pairs_of(texts, others, window)
    ends = np.cumsum(sizes)
    distinct = int(pairs.max()) + 1

    def ratio(order: NDArray[np.intp]) -> float:
        """Log of the ratio of distinct pairs, where the first set is the first ``first`` texts of an order."""
        chosen, rest = order[:first], order[first:]
        most = min(int(sizes[chosen].sum()), int(sizes[rest].sum()))
        counts = []
        for part in (chosen, rest):
            lengths = sizes[part]
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            places = np.repeat(ends[part] - lengths, lengths) + within
            counts.append(np.count_nonzero(np.bincount(pairs[places[:most]], minlength=distinct)))
        return math.log(counts[0] / counts[1])

    observed = ratio(np.concatenate([generator.permutation(first), first + generator.permutation(sizes.size - first)]))
    under_null = np.array([ratio(generator.permutation(sizes.size)) for _ in range(permutations)])
    one_sided = min(_p(under_null, observed), _p(-under_null, -observed))
    return Noticed(math.exp(observed), math.log10(min(1.0, 2.0 * one_sided)))


def classify(
    texts: Sequence[ArrayLike], others: Sequence[ArrayLike], *, window: int = 1, generator: np.random.Generator
) -> Classified:
    """Learn on half of two sets of texts to tell them apart, and try it on the other half.

    The classifier is multinomial naive Bayes on (window, token) pairs. One half is held out, and not each part in turn as
    in cross-validation: the answers of one classifier to texts that it has not seen are independent of one another, so that
    interval and p-value are exact. Under H₀ the sets are exchangeable; then, whatever was learned, all ways to share the
    sets' names out among the held-out texts are equally likely.

    Parameters
    ----------
    texts, others : sequence of int arrays [n]
        Token ids under any one tokenizer, each of more than ``window`` tokens; at least two texts a set.
    window : int
        Tokens before the one that is counted.
    generator : numpy.random.Generator
        Chooses the half.

    Returns
    -------
    Classified
        Where the sets are of unequal size, chance is the share of the larger.

    Raises
    ------
    ValueError
        For a set of fewer than two texts, or what is no sequence of token ids.

    Notes
    -----
    R. A. Fisher's exact test, 1935; the interval is that of C. J. Clopper and E. S. Pearson, 1934.

    Examples
    --------
    >>> import numpy as np
    >>> from radio_utils import keyless
    >>> draw = np.random.default_rng(0)
    >>> few, many = draw.integers(6, size=(40, 30)), draw.integers(12, size=(40, 30))
    >>> found = keyless.classify(many, few, generator=draw)
    >>> found.tested, found.accuracy, found.log10_p < -6
    (40, 1.0, True)
    """
    pairs, sizes, first = _pairs_of(texts, others, window)
    if min(first, sizes.size - first) < 2:
        raise ValueError(f"texts and others hold {first} and {sizes.size - first} texts; at least 2 of each are needed")
    is_first = np.arange(sizes.size) < first
    learned = np.zeros(sizes.size, bool)
    for members in (np.flatnonzero(is_first), np.flatnonzero(~is_first)):
        learned[generator.permutation(members)[: members.size // 2]] = True
    owner = np.repeat(np.arange(sizes.size), sizes)
    distinct = int(pairs.max()) + 1
    logs = []
    for side in (is_first, ~is_first):
        counts = np.bincount(pairs[(learned & side)[owner]], minlength=distinct) + 0.5
        logs.append(np.log(counts / counts.sum()))
    evidence = np.bincount(owner, weights=(logs[0] - logs[1])[pairs], minlength=sizes.size)
    said, true = evidence[~learned] > 0, is_first[~learned]
    right, tested = int(np.sum(said == true)), true.size
    hits, false = int(np.sum(said & true)), int(np.sum(said & ~true))
    log10_p = tails.log10_fisher(hits, int(true.sum()), false, int((~true).sum()))
    low, high = stats.binomtest(right, tested).proportion_ci(method="exact")
    return Classified(tested, right / tested, float(low), float(high), log10_p)


def repeated_answers(
    answers: Sequence[tuple[ArrayLike, ArrayLike]], others: Sequence[tuple[ArrayLike, ArrayLike]]
) -> Noticed:
    """Test whether a model repeats itself more often than another does: the fixed-sampling test.

    Each prompt was put to both models twice. Under H₀ they answer alike, and prompts independently, so that a prompt at
    which only one of them repeats itself is as likely the one's as the other's (McNemar's test, exact), however often each
    prompt is answered the same way twice.
    Gumbel-max with a fixed key always repeats; so does a model at temperature 0, which is why the other model is needed.

    Parameters
    ----------
    answers : sequence of two int arrays [n]
        The suspected model's two answers to each prompt, as token ids; they may be empty. Only equal answers count as
        repeated, so ask for few tokens, or cut them.
    others : sequence of two int arrays [n]
        The other model's, in the same order.

    Returns
    -------
    Noticed
        ``value`` is the share of prompts at which the suspected model repeated itself.

    Raises
    ------
    ValueError
        Where there are no answers, or not equally many.

    Notes
    -----
    The question is that of the fixed-sampling test of Gloaguen et al., 2025; the test is Q. McNemar's of 1947.

    Examples
    --------
    >>> from radio_utils import keyless
    >>> always, never = [([1, 2], [1, 2])] * 10, [([1, 2], [1, 3])] * 10
    >>> found = keyless.repeated_answers(always, never)
    >>> found.value, round(found.log10_p, 2)
    (1.0, -3.01)
    """
    if not answers or len(answers) != len(others):
        raise ValueError(
            f"answers and others hold {len(answers)} and {len(others)} prompts; give both for the same prompts"
        )
    same, other = (np.array([np.array_equal(one, two) for one, two in each]) for each in (answers, others))
    more, fewer = int(np.sum(same & ~other)), int(np.sum(~same & other))
    log10_p = float(tails.log10_binomial_tail(more, more + fewer, 0.5)) if more + fewer else 0.0
    return Noticed(float(same.mean()), log10_p)


def ending_effects(
    drawn: ArrayLike,
    others: ArrayLike | None = None,
    *,
    words: int = 20,
    permutations: int = 999,
    generator: np.random.Generator,
) -> Noticed:
    """Test whether the end of a prompt moves the odds of words, whatever stands before it: the red–green test.

    Prompts are a table of beginnings × endings, and each was asked several times. A green list depends on the last tokens
    only, and raises the same words by the same amount after each beginning. The statistic is the variance, over endings, of
    a word's log odds averaged over beginnings, summed over the words that were answered most often.

    Without ``others``, H₀ is that an ending does nothing that all beginnings share, and the endings of each beginning are
    permuted. This holds where the endings are none of a model's business, as digits are in "I ate 333 …"; a small model is
    moved by its last token with or without a mark. With ``others``, the answers of a model that is taken to be unmarked,
    the statistic is that of the difference, and H₀ is that the two answer each prompt alike: for each prompt the two are
    swapped or not. Then nothing is assumed of the model.

    Parameters
    ----------
    drawn : int array [beginnings, endings, repeats]
        The token with which each answer begins.
    others : int array [beginnings, endings, repeats], optional
        The other model's, to the same prompts equally often.
    words : int
        How many of the words that were answered most often are looked at.
    permutations : int
        Random permutations, or swaps.
    generator : numpy.random.Generator
        Draws them.

    Returns
    -------
    Noticed
        ``value`` is the standard deviation over endings of a word's log odds, averaged over beginnings; in nats.

    Raises
    ------
    ValueError
        For arrays of other shapes, or fewer than two beginnings or endings.

    Notes
    -----
    The question is that of the red–green test of Gloaguen et al., 2025; the statistic and its permutations are this
    package's.

    Examples
    --------
    >>> import numpy as np
    >>> from radio_utils import keyless
    >>> draw = np.random.default_rng(0)
    >>> plain = draw.integers(4, size=(5, 6, 40))  # 5 beginnings, 6 endings, 40 answers each
    >>> marked = np.where(draw.random(plain.shape) < 0.5, np.arange(6)[:, None] % 4, plain)
    >>> [round(keyless.ending_effects(one, generator=draw).log10_p, 1) for one in (marked, plain)]
    [-3.0, -0.4]
    """
    _check_permutations(permutations)
    tokens = _table("drawn", drawn)
    both = tokens[None] if others is None else np.stack([tokens, _table("others", others, tokens.shape)])
    place = np.unique(both, return_inverse=True)[1].reshape(both.shape)
    common = np.argsort(-np.bincount(place.reshape(-1)), kind="stable")[:words]
    counts = np.stack([(place == word).sum(-1) for word in common], axis=-1)  # [1 or 2, beginnings, endings, words]
    odds = np.log((counts + 0.5) / (tokens.shape[-1] - counts + 0.5))
    if others is None:
        table = odds[0] - odds[0].mean(1, keepdims=True)
        orders = generator.permuted(np.tile(np.arange(table.shape[1]), (permutations, table.shape[0], 1)), axis=2)
        means = np.array([np.take_along_axis(table, order[:, :, None], 1).mean(0) for order in orders])
    else:
        table = odds[0] - odds[1]
        signs = generator.choice([-1.0, 1.0], (permutations, *table.shape[:2]))
        means = np.einsum("pbe,bew->pew", signs, table) / table.shape[0]
    observed, under_null = (np.var(found, axis=-2).mean(-1) for found in (table.mean(0), means))
    return Noticed(math.sqrt(float(observed)), math.log10(_p(under_null, float(observed))))


def _p(under_null: Floats, observed: float) -> float:
    """Share of permutations at least as large, the observed order among them; what rounding parts counts as equal."""
    near = observed - 1e-9 * abs(observed)
    return (1 + int(np.sum(under_null >= near))) / (1 + under_null.size)


def _pairs_of(texts: Sequence[ArrayLike], others: Sequence[ArrayLike], window: int) -> tuple[Ids, Ids, int]:
    """The pairs of all texts in order, numbered from 0 on; how many each text has; how many texts are in the first set."""
    if window < 0:
        raise ValueError(f"window must be at least 0, got {window}")
    sets = [ev.checked_texts(n, t, _LARGEST, shortest=window + 1) for n, t in (("texts", texts), ("others", others))]
    if not sets[1]:
        raise ValueError("others is empty; without texts to compare with there is nothing to notice")
    rows = [np.lib.stride_tricks.sliding_window_view(text, window + 1) for text in (*sets[0], *sets[1])]
    numbers = np.unique(np.concatenate(rows), axis=0, return_inverse=True)[1].reshape(-1)
    return numbers, np.array([len(row) for row in rows]), len(sets[0])


def _table(name: str, drawn: ArrayLike, shape: tuple[int, ...] | None = None) -> Ids:
    table: NDArray[Any] = np.asarray(drawn)
    if table.ndim != 3 or min(table.shape[:2]) < 2 or table.shape[2] < 1 or table.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be token ids [beginnings, endings, repeats] of at least 2 beginnings and 2 endings, "
            f"got shape {list(table.shape)} of {table.dtype}"
        )
    if shape is not None and table.shape != shape:
        raise ValueError(
            f"{name} has shape {list(table.shape)} and drawn {list(shape)}; ask both the same prompts equally often"
        )
    return table.astype(np.int64)


def _check_permutations(permutations: int) -> None:
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
