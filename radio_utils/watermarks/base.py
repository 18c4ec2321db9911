"""What a watermark is, and the checks that all schemes share."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats import tails

if TYPE_CHECKING:
    import torch


Floats = NDArray[np.float64]


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
        check_share(share)
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
    check_share(share)
    rate = gamma + share
    return tails.log10_binomial_tail(total, count, rate) if rate < 1.0 else np.zeros(np.broadcast(total, count).shape)[()]


def check_share(share: float) -> None:
    """Raise ``ValueError`` unless a share of trials lies in [0, 1)."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share must lie in [0, 1), the part of the trials that may have been left out, got {share}")


def check_common(vocab_size: int, window: int) -> None:
    """Raise ``ValueError`` for a vocabulary or a window that no scheme can have."""
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int | np.integer) or vocab_size < 2:
        raise ValueError(f"vocab_size must be an integer of at least 2, got {vocab_size!r}")
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window must be an integer of at least 1 (k preceding tokens seed the watermark), got {window!r}")
