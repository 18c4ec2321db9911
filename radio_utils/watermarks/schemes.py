"""The two watermarks: green lists and Gumbel-max.

A scheme is small: the scores of (window, token) pairs and the tail of their sum under the null hypothesis. Both are
explained from first principles in the chapter "Decoding and watermarking".

* :class:`GreenList`: Kirchenbauer et al., *A watermark for large language models*, ICML 2023.
* :class:`GumbelMax`: Aaronson and Kirchner, *Watermarking GPT outputs*, 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats.laws import Bernoulli, Exponential
from radio_utils.watermarks.prf import PRF, Key, RowPRF, Words, id_steps, word_steps

if TYPE_CHECKING:
    import torch
from radio_utils.watermarks.base import Floats, check_common
from radio_utils.watermarks.keyed import Block, Keyed, LaneBuffer
from radio_utils.watermarks.strength import Biases, Draws


class GreenList(Biases, Keyed):
    """Green-list watermark: for each window a γ fraction of the vocabulary is green, and green logits get δ more.

    Every token is green independently with probability exactly γ for a random key, so that the number of greens among
    n distinct pairs is Binomial(n, γ) under the null. A token's colour is a lane of b bits of a pseudo-random word: b is
    the smallest of 8, 16, 32 for which γ·2ᵇ is whole (γ = 1/4: eight tokens a word); any other γ is rounded to a
    multiple of 2⁻³², and :attr:`gamma` is the rounded value.

    Parameters
    ----------
    key : str, bytes or int
        The secret: at least 16 random bytes. Keys of different types are different keys.
    vocab_size : int
        V, the number of token ids.
    window : int
        k, the number of preceding tokens that choose the green list.
    gamma : float in (0, 1)
        Share of green tokens.
    delta : float
        Bias on the logits of green tokens, in nats.

    Raises
    ------
    ValueError
        For parameters out of range, named with their value.

    Notes
    -----
    J. Kirchenbauer et al., *A Watermark for Large Language Models*, ICML 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> wm.scores([[5], [5], [7]], [1, 2, 3])
    array([0., 0., 0.])
    >>> float(wm.log10_p(400, 1000)) < -20
    True
    """

    scheme = "green list"

    def __init__(self, key: Key, vocab_size: int, window: int = 2, gamma: float = 0.25, delta: float = 3.0) -> None:
        check_common(vocab_size, window)
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
        self.gamma = self.asked_gamma = self._threshold / 2**self.lane_bits
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

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the key, γ too."""
        return super().parameters | {"gamma": self.gamma}

    @property
    def embedding(self) -> tuple[object, ...]:
        """All that generation depends on but the key: the bias too."""
        return (*super().embedding, self.delta)

    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        lanes = 64 // self.lane_bits
        return word_steps(tokens // lanes), (tokens % lanes * self.lane_bits).astype(np.uint64)

    def _scores(self, states: Words, block: Block) -> Floats:
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
    def law(self) -> Bernoulli:
        """Green with chance γ."""
        return Bernoulli(self.gamma)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.processors import GreenListProcessor

        # a subclass may colour in its own way
        return GreenListProcessor(self, self.lane_buffer() if type(self) is GreenList else None)


_OWN_WORDS = 1 << 40  # numbers of the words that belong to one token, beyond those of the shared lanes


class GumbelMax(Draws, Keyed):
    """Gumbel-max watermark: the draw itself is pseudo-random, argmax_v r_v^(1/p_v), with r_v ~ U(0, 1) set by the window.

    Averaged over keys it does not change the distribution of a token. The score of a token is −ln(1 − r).

    The first 8 of the 52 bits of r are a lane of a word that eight neighbouring tokens share, the rest a word of the
    token's own. The lanes of a whole row cost V/8 words and already rule out almost every token of the draw: only the
    others need their own word (:class:`radio_utils.decoding.GumbelMaxProcessor`).

    Parameters
    ----------
    key : str, bytes or int
        The secret: at least 16 random bytes. Keys of different types are different keys.
    vocab_size : int
        V, the number of token ids.
    window : int
        k, the number of preceding tokens that seed the draw.

    Raises
    ------
    ValueError
        For parameters out of range, named with their value.

    Notes
    -----
    S. Aaronson and H. Kirchner, *Watermarking GPT outputs*, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GumbelMax(key="alice", vocab_size=1000, window=1)
    >>> wm.scores([[5], [7]], [1, 3]).shape
    (2,)
    """

    scheme = "gumbel max"

    def __init__(self, key: Key, vocab_size: int, window: int = 2) -> None:
        check_common(vocab_size, window)
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

    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        return word_steps(tokens // 8), (tokens % 8 * 8).astype(np.uint64), word_steps(tokens + _OWN_WORDS)

    def _uniforms(self, states: Words, block: Block) -> Floats:
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
        block = Block(steps, tokens.size, None, tokens, self._token_parts(tokens))
        own = self._with_prf(self._prf.at(rows))
        return own._uniforms(own._states(block), block)

    def _scores(self, states: Words, block: Block) -> Floats:
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
    def law(self) -> Exponential:
        """A unit exponential."""
        return Exponential()

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.processors import GumbelMaxProcessor

        return GumbelMaxProcessor(self, lanes=self.lane_buffer() if type(self) is GumbelMax else None)
