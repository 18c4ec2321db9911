"""What a watermark is, and the checks that all schemes share."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats.laws import Law
from radio_utils.watermarks.prf import derive_bytes

if TYPE_CHECKING:
    import torch


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


class Watermark(abc.ABC):
    """What every scheme has. ``window`` is k, the number of preceding tokens that seed the pseudo-random numbers."""

    scheme: str
    vocab_size: int
    window: int
    asked_gamma: float | None = None  # γ as its maker asked for it, of schemes with green lists
    law_of_key: bool = False  # whether the law differs from key to key
    marks_start: bool = False  # whether an answer's first tokens are drawn after windows that −1 fills up
    one_list_a_window: bool = True  # False: which list a token is looked up in depends on the token itself

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Names scheme, parameters and key; safe to publish, the key is not."""

    @abc.abstractmethod
    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """Score of each token after its window: int arrays [n, k] and [n] → float array [n]."""

    @property
    @abc.abstractmethod
    def law(self) -> Law:
        """The law of one score under the null hypothesis: all that a test knows of the scheme besides the scores."""

    def keyless(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Pairs that score alike under every key, as where a seed is key times a token id and the id is 0: bool [n].

        They tell nothing of a key, and all of another key's text: no test counts them.
        """
        return np.zeros(len(np.asarray(tokens)), bool)

    @property
    def some_keyless(self) -> bool:
        """Whether there may be such pairs: in schemes with a :meth:`keyless` of their own."""
        return type(self).keyless is not Watermark.keyless

    @property
    def shares_colours(self) -> bool:
        """Whether distinct pairs can be one draw, and so no separate trials: those of schemes with :meth:`colour_ids`."""
        return type(self).colour_ids is not Watermark.colour_ids

    def colour_ids(self, windows: Ints, tokens: Ints) -> Words:
        """Which draw decides each pair's score: [n, k] and [n] → unsigned [n]. Equal numbers mean equal scores."""
        raise NotImplementedError(f"each pair is a draw of its own in the scheme {self.scheme!r}; ask shares_colours first")

    def list_ids(self, windows: Ints, tokens: Ints) -> Words:
        """What a test that is watched may ask once: each pair's list if its law is ``without_return``, else its colour."""
        return self.colour_ids(windows, tokens)

    @property
    def colours(self) -> int | None:
        """How many colours there are, where :meth:`judged_by_counts` tests how often each was shown; else None."""
        return None

    def judged_by_counts(self, counts: Ints, keys: Sequence[Any]) -> tuple[Floats, Floats, Floats]:
        """Of pairs counts [colours]: total score, log10 P(S ≥ total) and log10 P(S > total) under each key, [keys]."""
        raise NotImplementedError(f"the scheme {self.scheme!r} has no test of counts; ask colours first")

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the key and the law, by name."""
        named = {"class": type(self).__name__, "scheme": self.scheme}
        return named | {"vocab_size": self.vocab_size, "window": self.window}

    @abc.abstractmethod
    def with_key(self, key: Any) -> Watermark:
        """The same scheme and parameters under another key."""

    def with_decoy(self, seed: int, index: int) -> Watermark:
        """The same scheme under decoy key number ``index``, unrelated to the real key (the null audit)."""
        return self.with_key(derive_bytes(f"decoy/{seed}/{index}", "decoy"))

    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 p of a total score over ``count`` distinct pairs (``law.log10_tail``); scalars or arrays."""
        return self.law.log10_tail(total, count)

    def excess(self, chances: Floats, generator: np.random.Generator) -> float:
        """Mean score of a token that is drawn with the mark, less the law's mean, over all keys: what advice asks.

        ``chances`` [m] are those of the likeliest tokens, largest first, and ``generator`` draws what is averaged over.
        :mod:`radio_utils.watermarks.strength` has the usual ways to mark. Raises ``ValueError`` where it is not known.
        """
        raise ValueError(
            f"how strongly the scheme {self.scheme!r} marks is not known here; measure its effect and use pairs_needed"
        )

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``.

        Raises ``ValueError`` for a scheme that is only read here, and not written.
        """
        raise ValueError(f"text cannot be written under the scheme {self.scheme!r} here, only tested; write it elsewhere")

    def totals(
        self, windows: ArrayLike, tokens: ArrayLike, others: Sequence[Watermark], weights: NDArray[np.int64] | None = None
    ) -> Floats:
        """Total score of the pairs under each of ``others``, the same scheme under other keys: [keys].

        With ``weights`` [n], whole numbers, it is the weighted sum of the *marks* (:meth:`Law.marks`) instead.
        """
        scores = (other.scores(windows, tokens) for other in others)
        return np.array([float(s.sum() if weights is None else weights @ self.law.marks(s)) for s in scores])

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


def check_common(vocab_size: int, window: int) -> None:
    """Raise ``ValueError`` for a vocabulary or a window that no scheme can have."""
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int | np.integer) or vocab_size < 2:
        raise ValueError(f"vocab_size must be an integer of at least 2, got {vocab_size!r}")
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window must be an integer of at least 1 (k preceding tokens seed the watermark), got {window!r}")
