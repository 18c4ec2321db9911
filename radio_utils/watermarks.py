"""The two watermarks: green lists and Gumbel-max.

A scheme is small: the scores of (window, token) pairs and the tail of their sum under the null hypothesis. Both are
explained from first principles in the chapter "Decoding and watermarking".

* :class:`GreenList`: Kirchenbauer et al., *A watermark for large language models*, ICML 2023.
* :class:`GumbelMax`: Aaronson and Kirchner, *Watermarking GPT outputs*, 2022.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import pvalues
from radio_utils.parallel import side_by_side
from radio_utils.prf import PRF, Key, RowPRF, Words, derive_bytes, id_steps, word_steps

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
_BLOCK = 1 << 15  # pairs scored at once: the arrays of a block stay in a core's cache


class Watermark(abc.ABC):
    """What every scheme has. ``window`` is k, the number of preceding tokens that seed the pseudo-random numbers."""

    scheme: str
    vocab_size: int
    window: int

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Names scheme, parameters and key; safe to publish, the key is not."""

    @abc.abstractmethod
    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """Score of each token after its window: int arrays [n, k] and [n] → float array [n]."""

    @abc.abstractmethod
    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 of the exact p-value of a total score over ``count`` distinct pairs; scalars or arrays."""

    def log10_p_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S > total), which differs from :meth:`log10_p` for discrete scores only."""
        return self.log10_p(total, count)

    def log10_p_allowing(self, total: ArrayLike, count: ArrayLike, share: float) -> Any:
        """A bound on log10 p where in each trial something of chance at most ``share`` in [0, 1) may have been left out.

        Whatever was left out, what remains has at most 1 / (1 − share) times its density under the null, and so has each
        of ``count`` trials: p grows by that power at most. Raises ``ValueError`` for a share outside [0, 1).
        """
        _check_share(share)
        found = np.asarray(self.log10_p(total, count), np.float64)
        return np.minimum(0.0, found - np.asarray(count) * np.log10(1.0 - share))[()] if share else found[()]

    def log10_p_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """log10 p of "these scores are no larger than those": totals over two disjoint sets of distinct pairs.

        Exact where all scores have one common law of the scheme's family, whatever its mean; that law may be marked.
        Raises ``ValueError`` for a scheme of which no such test is known.
        """
        raise ValueError(f"two sets of pairs cannot be compared under the scheme {self.scheme!r}; test each by itself")

    @abc.abstractmethod
    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""

    @abc.abstractmethod
    def with_decoy(self, seed: int, index: int) -> Watermark:
        """The same scheme under decoy key number ``index``, unrelated to the real key (the null audit)."""

    def totals(
        self, windows: ArrayLike, tokens: ArrayLike, others: Sequence[Watermark], weights: NDArray[np.int64] | None = None
    ) -> Floats:
        """Total score of the pairs under each of ``others``, the same scheme under other keys: [keys].

        With ``weights`` [n], whole numbers, it is the weighted sum of the *marks* instead.
        """
        scores = (other.scores(windows, tokens) for other in others)
        return np.array([float(s.sum() if weights is None else weights @ self.marks(s)) for s in scores])

    @property
    def mark_distribution(self) -> tuple[NDArray[np.int64], Floats]:
        """Values and chances of one pair's mark under the null: what a weighted test needs to know of a scheme."""
        raise ValueError(
            f"{type(self).__name__} has no marks that are independent across the tokens of a window, which a weighted "
            "(contrastive) test needs; use GreenList or GumbelMax, or read without a reference"
        )

    def marks(self, scores: Floats) -> NDArray[np.int64]:
        """Whole-number marks from scores, for weighted tests."""
        return scores.astype(np.int64)

    def checked(self, windows: ArrayLike, tokens: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Both arrays as int64, or an error that names what is wrong with their shapes or ids."""
        w, t = self.checked_windows(windows), as_ids("tokens", tokens, self.vocab_size)
        if t.shape != w.shape[:1]:
            raise ValueError(f"tokens must have shape [{w.shape[0]}], one for each window, got {list(t.shape)}")
        return w, t

    def checked_windows(self, windows: ArrayLike) -> NDArray[np.int64]:
        """The windows as int64 [n, k], or an error: another length would silently give other pseudo-random numbers."""
        w = as_ids("windows", windows, self.vocab_size)
        if w.ndim != 2 or w.shape[1] != self.window:
            raise ValueError(f"windows must have shape [n, {self.window}] (the watermark's window), got {list(w.shape)}")
        return w

    def _check_width(self, windows: torch.Tensor) -> None:
        if windows.ndim != 2 or windows.shape[1] != self.window:
            raise ValueError(
                f"windows must have shape [n, {self.window}] (the watermark's window), got {list(windows.shape)}"
            )


def as_ids(name: str, values: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Token ids as an int64 array, or ``ValueError`` naming the argument, the offending id and the remedy."""
    return check_ids(name, values, vocab_size).astype(np.int64, copy=False)


def check_ids(name: str, values: ArrayLike, vocab_size: int) -> NDArray[Any]:
    """Token ids as an array of their own integer type, or the error of :func:`as_ids`."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is ragged; give sequences of equal length or a list of sequences") from error
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinite values; token ids are integers")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integer token ids, got dtype {array.dtype}; tokenise the text first")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise ValueError(
            f"{name} holds token id {bad}, outside the watermark's vocabulary [0, {vocab_size}); "
            "use the tokenizer that the watermark was made for, or the model's padded vocabulary size"
        )
    return array


def log10_binomial_allowing(total: ArrayLike, count: ArrayLike, gamma: float, share: float) -> Any:
    """:meth:`Watermark.log10_p_allowing` of colours that are green with chance γ."""
    _check_share(share)
    rate = gamma + share
    return pvalues.log10_binomial_tail(total, count, rate) if rate < 1.0 else np.zeros(np.broadcast(total, count).shape)[()]


def _check_share(share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share must lie in [0, 1), the part of the trials that may have been left out, got {share}")


def _check_common(vocab_size: int, window: int) -> None:
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int | np.integer) or vocab_size < 2:
        raise ValueError(f"vocab_size must be an integer of at least 2, got {vocab_size!r}")
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window must be an integer of at least 1 (k preceding tokens seed the watermark), got {window!r}")


@dataclass(frozen=True, slots=True)
class _Block:
    """Pairs made ready to be scored under any number of keys: all that does not depend on the key is done once."""

    steps: list[Words]  # of the distinct windows, one array for each column
    distinct: int
    where: NDArray[np.intp] | None  # the distinct window of each pair; None where (nearly) all differ
    tokens: NDArray[np.int64]
    parts: tuple[Words, ...]  # what the scheme wants to know of the tokens


class _Keyed(Watermark):
    """What both schemes share: pairs are scored in blocks, under one key or many."""

    _prf: PRF

    @abc.abstractmethod
    def with_key(self, key: Key) -> _Keyed:
        """The same scheme and parameters under another key."""

    def with_decoy(self, seed: int, index: int) -> _Keyed:
        """The same scheme under decoy key number ``index``."""
        return self.with_key(derive_bytes(f"decoy/{seed}/{index}", "decoy"))

    @abc.abstractmethod
    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        """What does not depend on the key, for each token."""

    @abc.abstractmethod
    def _scores(self, states: Words, block: _Block) -> Floats:
        """Scores of a block whose windows have these states under this key."""

    def _states(self, block: _Block) -> Words:
        states = self._prf.absorb(block.steps, block.distinct)
        return states if block.where is None else states[block.where]

    def _blocks(self, windows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Iterator[_Block]:
        for start in range(0, tokens.size, _BLOCK):
            w, t = windows[start : start + _BLOCK], tokens[start : start + _BLOCK]
            new = np.zeros(t.size, bool)
            new[0] = True
            for column in w.T:  # evidence is sorted: equal windows are neighbours
                new[1:] |= column[1:] != column[:-1]
            distinct, where = int(np.count_nonzero(new)), None
            if 4 * distinct < 3 * t.size:
                w, where = w[new], np.cumsum(new) - 1
            else:
                distinct = t.size
            yield _Block([id_steps(column) for column in w.T], distinct, where, t, self._token_parts(t))

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """Score of each token after its window: int arrays [n, k] and [n] → float array [n]."""
        w, t = self.checked(windows, tokens)
        found = [self._scores(self._states(block), block) for block in self._blocks(w, t)]
        return np.concatenate(found) if found else np.zeros(0)

    def totals(
        self, windows: ArrayLike, tokens: ArrayLike, others: Sequence[Watermark], weights: NDArray[np.int64] | None = None
    ) -> Floats:
        """Total score, or with ``weights`` weighted sum of marks, under each of ``others`` in one pass: [keys]."""
        w, t = self.checked(windows, tokens)
        same = [other for other in others if isinstance(other, _Keyed) and other._parameters() == self._parameters()]
        if len(same) != len(others):
            raise ValueError("others must be the same scheme with the same parameters, under other keys; use with_key")

        def sums(numbered: tuple[int, _Block]) -> list[float]:
            number, block = numbered
            scores = (other._scores(other._states(block), block) for other in same)
            if weights is None:
                return [float(s.sum()) for s in scores]
            q = weights[number * _BLOCK : (number + 1) * _BLOCK]
            return [float(q @ self.marks(s)) for s in scores]

        found = list(side_by_side(sums, enumerate(self._blocks(w, t))))
        return np.array(found).sum(axis=0) if found else np.zeros(len(others))

    @abc.abstractmethod
    def _parameters(self) -> tuple[object, ...]:
        """All that scores depend on but the key."""

    @property
    def embedding(self) -> tuple[object, ...]:
        """All that generation depends on but the key."""
        return self._parameters()

    def in_rows(self, others: Sequence[_Keyed]) -> Self:
        """The same scheme for the processor of a batch whose row i is written under the key of ``others[i]``.

        ``others`` have the same :attr:`embedding`. It knows whole rows only, and no fingerprint.
        """
        return self._with_prf(RowPRF([other._prf for other in others]))

    def _with_prf(self, prf: PRF) -> Self:
        changed = copy.copy(self)
        changed._prf = prf
        return changed


class LaneBuffer:
    """Lanes of whole vocabulary rows, in memory that is used again at the next step: fresh memory would cost more.

    For the processor only. One buffer serves one thread.
    """

    def __init__(self, prf: PRF, vocab_size: int, lane_bits: int) -> None:
        self._prf, self._vocab_size = prf, vocab_size
        self._kind = {8: np.uint8, 16: np.uint16, 32: np.uint32}[lane_bits]
        self._steps = word_steps(np.arange(-(-vocab_size * lane_bits // 64)))
        self._room: tuple[Words, Words] = (np.empty((0, 0), np.uint64), np.empty((0, 0), np.uint64))

    def rows(self, windows: NDArray[np.int64]) -> NDArray[Any]:
        """The lane of every token for each window: ints [n, k] → unsigned [n, V], valid until the next call."""
        shape = (windows.shape[0], self._steps.size)
        if self._room[0].shape != shape:
            self._room = (np.empty(shape, np.uint64), np.empty(shape, np.uint64))
        words = self._prf.words_at(self._prf.hash_windows(windows)[:, None], self._steps, into=self._room)
        return words.view(self._kind)[:, : self._vocab_size]


class GreenList(_Keyed):
    """Green-list watermark: for each window a γ fraction of the vocabulary is green, and green logits get δ more.

    Every token is green independently with probability exactly γ for a random key, so that the number of greens among
    n distinct pairs is Binomial(n, γ) under the null. A token's colour is a lane of b bits of a pseudo-random word: b is
    the smallest of 8, 16, 32 for which γ·2ᵇ is whole (γ = 1/4: eight tokens a word); any other γ is rounded to a
    multiple of 2⁻³², and :attr:`gamma` is the rounded value.
    """

    scheme = "green list"

    def __init__(self, key: Key, vocab_size: int, window: int = 2, gamma: float = 0.25, delta: float = 3.0) -> None:
        _check_common(vocab_size, window)
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma must lie strictly between 0 and 1 (the green fraction), got {gamma}")
        if gamma * vocab_size < 1 or (1 - gamma) * vocab_size < 1:
            raise ValueError(f"gamma={gamma} leaves no green or no red token in a vocabulary of {vocab_size}")
        if not (np.isfinite(delta) and delta >= 0):
            raise ValueError(f"delta must be finite and not negative (the bias on green logits), got {delta}")
        self.vocab_size, self.window, self.delta = int(vocab_size), int(window), float(delta)
        finest = round(gamma * 2**32)  # lanes follow from the rounded γ, so that equal γ means equal colours
        if not 0 < finest < 2**32:
            raise ValueError(f"gamma={gamma} rounds to 0 or 1 at a resolution of 2**-32; choose one farther from them")
        self.lane_bits = next(b for b in (8, 16, 32) if finest % 2 ** (32 - b) == 0)
        self._threshold = finest >> (32 - self.lane_bits)
        self.gamma = self._threshold / 2**self.lane_bits
        self._prf = PRF(key, domain=self.scheme)

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and key by name; safe to publish."""
        return f"greenlist-k{self.window}-g{self.gamma:.6g}-V{self.vocab_size}-{self._prf.fingerprint}"

    def __repr__(self) -> str:
        return f"GreenList({self.fingerprint}, delta={self.delta:g})"

    def with_key(self, key: Key) -> GreenList:
        """The same scheme and parameters under another key."""
        return GreenList(key, self.vocab_size, self.window, self.gamma, self.delta)

    def _parameters(self) -> tuple[object, ...]:
        return (self.scheme, self.vocab_size, self.window, self.gamma)

    @property
    def embedding(self) -> tuple[object, ...]:
        """All that generation depends on but the key: the bias too."""
        return (*self._parameters(), self.delta)

    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        lanes = 64 // self.lane_bits
        return word_steps(tokens // lanes), (tokens % lanes * self.lane_bits).astype(np.uint64)

    def _scores(self, states: Words, block: _Block) -> Floats:
        """1 where the token is green for its window, else 0."""
        steps, shift = block.parts
        lane = self._prf.words_at(states, steps)
        np.right_shift(lane, shift, out=lane)
        np.bitwise_and(lane, np.uint64((1 << self.lane_bits) - 1), out=lane)
        return (lane < np.uint64(self._threshold)).astype(np.float64)

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The whole green list of each window: ints [n, k] → bool [n, V]."""
        states = self._prf.hash_windows(self.checked_windows(windows))
        lanes = 64 // self.lane_bits
        words = self._prf.words(states[:, None], np.arange(-(-self.vocab_size // lanes)))
        unsigned = words.view({8: np.uint8, 16: np.uint16, 32: np.uint32}[self.lane_bits])
        green: NDArray[np.bool_] = unsigned < self._threshold
        return green[:, : self.vocab_size]

    def lane_buffer(self) -> LaneBuffer:
        """A buffer for the lanes of whole rows on a processor."""
        return LaneBuffer(self._prf, self.vocab_size, self.lane_bits)

    def is_green(self, lanes: NDArray[Any]) -> NDArray[np.bool_]:
        """Which lanes are green."""
        green: NDArray[np.bool_] = lanes < self._threshold
        return green

    def green_rows_torch(self, windows: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """The torch twin of :meth:`green_rows`, on the device of ``windows``: bool [n, width], the same colours."""
        import torch

        self._check_width(windows)
        width = width or self.vocab_size
        states = self._prf.hash_windows_torch(windows)
        lanes = 64 // self.lane_bits
        indices = torch.arange(-(-width // lanes), device=windows.device)
        words = self._prf.words_torch(states[:, None], indices)
        # signed lanes, with the top bit flipped so that signed order is unsigned order: every device has these types
        kind = {8: torch.int8, 16: torch.int16, 32: torch.int32}[self.lane_bits]
        flip = -(1 << (self.lane_bits - 1))
        signed = words.view(kind) ^ flip
        green: torch.Tensor = signed < self._threshold + flip
        return green[:, :width]

    @property
    def mark_distribution(self) -> tuple[NDArray[np.int64], Floats]:
        """1 with chance γ, else 0."""
        return np.array([0, 1]), np.array([1.0 - self.gamma, self.gamma])

    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, γ) ≥ total)."""
        return pvalues.log10_binomial_tail(total, count, self.gamma)

    def log10_p_allowing(self, total: ArrayLike, count: ArrayLike, share: float) -> Any:
        """log10 P(Binomial(count, γ + share) ≥ total), which is a bound: γ / (1 − share) ≤ γ + share."""
        return log10_binomial_allowing(total, count, self.gamma, share)

    def log10_p_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """Fisher's exact test of two shares of green."""
        return pvalues.log10_fisher(total, count, other_total, other_count)

    def log10_p_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, γ) > total), −∞ where every token is green."""
        return pvalues.log10_binomial_above(total, count, self.gamma)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.decoding import GreenListProcessor

        return GreenListProcessor(self)


_TOP_MARK = 48  # a score of 12 or more is met once in 160,000 pairs
_OWN_WORDS = 1 << 40  # numbers of the words that belong to one token, beyond those of the shared lanes


class GumbelMax(_Keyed):
    """Gumbel-max watermark: the draw itself is pseudo-random, argmax_v r_v^(1/p_v), with r_v ~ U(0, 1) set by the window.

    Averaged over keys it does not change the distribution of a token. The score of a token is −ln(1 − r).

    The first 8 of the 52 bits of r are a lane of a word that eight neighbouring tokens share, the rest a word of the
    token's own. The lanes of a whole row cost V/8 words and already rule out almost every token of the draw: only the
    others need their own word (:class:`radio_utils.decoding.GumbelMaxProcessor`).
    """

    scheme = "gumbel max"

    def __init__(self, key: Key, vocab_size: int, window: int = 2) -> None:
        _check_common(vocab_size, window)
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._prf = PRF(key, domain=self.scheme + "/2")

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and key by name; safe to publish."""
        return f"gumbelmax-k{self.window}-V{self.vocab_size}-{self._prf.fingerprint}"

    def __repr__(self) -> str:
        return f"GumbelMax({self.fingerprint})"

    def with_key(self, key: Key) -> GumbelMax:
        """The same scheme and parameters under another key."""
        return GumbelMax(key, self.vocab_size, self.window)

    def _parameters(self) -> tuple[object, ...]:
        return (self.scheme, self.vocab_size, self.window)

    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        return word_steps(tokens // 8), (tokens % 8 * 8).astype(np.uint64), word_steps(tokens + _OWN_WORDS)

    def _uniforms(self, states: Words, block: _Block) -> Floats:
        shared, shift, own = block.parts
        coarse = self._prf.words_at(states, shared)
        np.right_shift(coarse, shift, out=coarse)
        np.left_shift(coarse, np.uint64(44), out=coarse)
        np.bitwise_and(coarse, np.uint64((1 << 52) - 1), out=coarse)
        coarse |= self._prf.words_at(states, own) >> np.uint64(20)
        return (coarse.astype(np.float64) + 0.5) * 2.0**-52

    def uniforms(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """The number r of each pair, strictly inside (0, 1): 52 bits and a half."""
        return self._uniforms_of(*self.checked(windows, tokens))

    def _uniforms_of(self, windows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Floats:
        found = [self._uniforms(self._states(block), block) for block in self._blocks(windows, tokens)]
        return np.concatenate(found) if found else np.zeros(0)

    def uniforms_in(self, windows: NDArray[np.int64], rows: NDArray[np.intp], tokens: NDArray[np.int64]) -> Floats:
        """The number r of ``tokens`` [m] in the ``rows`` [m] of a processor's windows [n, k]; float array [m].

        Nothing is checked: a processor's windows may hold a model's padding ids.
        """
        if not isinstance(self._prf, RowPRF):
            return self._uniforms_of(windows[rows], tokens)
        # equal windows of neighbouring rows have different keys: no pair may stand for another
        steps = [id_steps(column) for column in windows[rows].T]
        block = _Block(steps, tokens.size, None, tokens, self._token_parts(tokens))
        own = self._with_prf(self._prf.at(rows))
        return own._uniforms(own._states(block), block)

    def _scores(self, states: Words, block: _Block) -> Floats:
        """−ln(1 − r), a unit exponential under the null."""
        r = self._uniforms(states, block)
        np.negative(r, out=r)
        np.log1p(r, out=r)
        return np.negative(r, out=r)

    def lane_buffer(self) -> LaneBuffer:
        """A buffer for the first 8 bits of whole rows on a processor."""
        return LaneBuffer(self._prf, self.vocab_size, 8)

    def uniform_rows_torch(self, windows: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """The number r of every token for each window: float64 [n, width], the same numbers as :meth:`uniforms`."""
        import torch

        self._check_width(windows)
        states = self._prf.hash_windows_torch(windows)[:, None]
        tokens = torch.arange(width or self.vocab_size, device=windows.device)
        coarse = self._prf.words_torch(states, tokens // 8) >> (tokens % 8 * 8) & 0xFF
        own = self._prf.words_torch(states, tokens + _OWN_WORDS) >> 20 & ((1 << 44) - 1)
        return ((coarse << 44 | own).to(torch.float64) + 0.5) * 2.0**-52

    @property
    def mark_distribution(self) -> tuple[NDArray[np.int64], Floats]:
        """A score in whole quarters, at most :data:`_TOP_MARK`: geometric."""
        values = np.arange(_TOP_MARK + 1)
        chances = np.exp(-values / 4) * -np.expm1(-0.25)
        chances[-1] = np.exp(-_TOP_MARK / 4)
        return values, chances

    def marks(self, scores: Floats) -> NDArray[np.int64]:
        """Scores in whole quarters, rounded down."""
        return np.minimum(4.0 * scores, _TOP_MARK).astype(np.int64)

    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Gamma(count, 1) ≥ total)."""
        return pvalues.log10_gamma_tail(total, count)

    def log10_p_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """The F test of two means of exponentials."""
        return pvalues.log10_exponential_ratio(total, count, other_total, other_count)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.decoding import GumbelMaxProcessor

        return GumbelMaxProcessor(self)
