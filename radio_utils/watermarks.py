"""The two watermarks: green lists and Gumbel-max.

A scheme is small: the scores of (window, token) pairs and the tail of their sum under the null hypothesis. Both are
explained from first principles in the chapter "Decoding and watermarking".

* :class:`GreenList`: Kirchenbauer et al., *A watermark for large language models*, ICML 2023.
* :class:`GumbelMax`: Aaronson and Kirchner, *Watermarking GPT outputs*, 2022.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import pvalues
from radio_utils.prf import PRF, Key, derive_bytes

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

    @abc.abstractmethod
    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""

    @abc.abstractmethod
    def with_decoy(self, seed: int, index: int) -> Watermark:
        """The same scheme under decoy key number ``index``, unrelated to the real key (the null audit)."""

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
    return array.astype(np.int64, copy=False)


def _check_common(vocab_size: int, window: int) -> None:
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int | np.integer) or vocab_size < 2:
        raise ValueError(f"vocab_size must be an integer of at least 2, got {vocab_size!r}")
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window must be an integer of at least 1 (k preceding tokens seed the watermark), got {window!r}")


class GreenList(Watermark):
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

    def with_decoy(self, seed: int, index: int) -> GreenList:
        """The same scheme under decoy key number ``index``."""
        return GreenList(_decoy_key(seed, index), self.vocab_size, self.window, self.gamma, self.delta)

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """1 where the token is green for its window, else 0."""
        w, t = self.checked(windows, tokens)
        lanes = 64 // self.lane_bits
        words = self._prf.words(self._prf.hash_windows(w), t // lanes)
        shift = (t % lanes * self.lane_bits).astype(np.uint64)
        lane = (words >> shift) & np.uint64((1 << self.lane_bits) - 1)
        return (lane < np.uint64(self._threshold)).astype(np.float64)

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The whole green list of each window: ints [n, k] → bool [n, V]."""
        states = self._prf.hash_windows(self.checked_windows(windows))
        lanes = 64 // self.lane_bits
        words = self._prf.words(states[:, None], np.arange(-(-self.vocab_size // lanes)))
        unsigned = words.view({8: np.uint8, 16: np.uint16, 32: np.uint32}[self.lane_bits])
        green: NDArray[np.bool_] = unsigned < self._threshold
        return green[:, : self.vocab_size]

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

    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, γ) ≥ total)."""
        return pvalues.log10_binomial_tail(total, count, self.gamma)

    def log10_p_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, γ) > total), −∞ where every token is green."""
        s, n = np.asarray(total, np.float64), np.asarray(count, np.float64)
        exact = np.asarray(self.log10_p(np.where(s == n, s, s + 1.0), n))  # more successes than trials: its error
        return np.where(s == n, -np.inf, exact)[()]

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.decoding import GreenListProcessor

        return GreenListProcessor(self)


class GumbelMax(Watermark):
    """Gumbel-max watermark: the draw itself is pseudo-random, argmax_v r_v^(1/p_v), with r_v ~ U(0, 1) set by the window.

    Averaged over keys it does not change the distribution of a token. The score of a token is −ln(1 − r).
    """

    scheme = "gumbel max"

    def __init__(self, key: Key, vocab_size: int, window: int = 2) -> None:
        _check_common(vocab_size, window)
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._prf = PRF(key, domain=self.scheme)

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and key by name; safe to publish."""
        return f"gumbelmax-k{self.window}-V{self.vocab_size}-{self._prf.fingerprint}"

    def __repr__(self) -> str:
        return f"GumbelMax({self.fingerprint})"

    def with_decoy(self, seed: int, index: int) -> GumbelMax:
        """The same scheme under decoy key number ``index``."""
        return GumbelMax(_decoy_key(seed, index), self.vocab_size, self.window)

    def uniforms(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """The number r of each pair, strictly inside (0, 1): 52 bits and a half."""
        w, t = self.checked(windows, tokens)
        words = self._prf.words(self._prf.hash_windows(w), t)
        return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """−ln(1 − r), a unit exponential under the null."""
        return -np.log1p(-self.uniforms(windows, tokens))

    def uniform_rows_torch(self, windows: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """The number r of every token for each window: float64 [n, width], the same numbers as :meth:`uniforms`."""
        import torch

        self._check_width(windows)
        states = self._prf.hash_windows_torch(windows)
        words = self._prf.words_torch(states[:, None], torch.arange(width or self.vocab_size, device=windows.device))
        return (((words >> 12) & ((1 << 52) - 1)).to(torch.float64) + 0.5) * 2.0**-52

    def log10_p(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Gamma(count, 1) ≥ total)."""
        return pvalues.log10_gamma_tail(total, count)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.decoding import GumbelMaxProcessor

        return GumbelMaxProcessor(self)


def _decoy_key(seed: int, index: int) -> bytes:
    return derive_bytes(f"decoy/{seed}/{index}", "decoy")
