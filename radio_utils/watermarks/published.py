"""Watermarks of other people's software, read with this package's tests: same lists, same numbers, bit for bit.

* :class:`ReleasedGreenList` and :class:`ReleasedGumbelMax`: the two schemes of the code published with Sander et al.,
  *Watermarking makes language models radioactive*, NeurIPS 2024.
* :class:`TransformersGreenList`: what ``generate(watermarking_config=…)`` of transformers embeds, lists made on a CPU.

All three seed a CPU ``torch.Generator`` for each window and draw a number or a permutation of the whole vocabulary from it
(:mod:`radio_utils.watermarks.torch_random`). What they promise less than :mod:`radio_utils.watermarks` does:

* There are 2³² generator seeds, so at most 2³² lists, whatever the key; windows whose seeds agree share their list.
* Lists hold exactly m = ⌊γV⌋ greens, so that pairs of one list are not quite independent
  (:class:`radio_utils.stats.laws.FixedLists`): the binomial *tail* that :meth:`log10_p` gives is exact where every list is
  asked once, and otherwise an approximation, in the far tail on the cautious side.
* Where two pairs share seed *and* token they have one colour, however different their windows are. Every test counts
  such pairs once (``colour_ids``); a test that is watched as it goes asks every list once (``list_ids``). With
  transformers' selfhash a large share of the pairs of a text is of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats.laws import Exponential, FixedLists
from radio_utils.watermarks.base import Floats, check_common
from radio_utils.watermarks.prf import derive_bytes
from radio_utils.watermarks.strength import Biases, Draws

if TYPE_CHECKING:
    import torch
from radio_utils.watermarks.torch_random import (
    LARGEST_VOCABULARY,
    Ints,
    UInt32s,
    colour_rows,
    colours,
    low_bits,
    low_bits_of_products,
    low_bits_of_signed,
    permutation,
    uniforms_of,
    with_tokens,
)

_MODULUS = (1 << 64) - 1  # both programs reduce their seeds by this, not by 2⁶⁴
_SALT = 35317
TABLE_SIZE = 1_000_003  # of transformers' selfhash, and of lm-watermarking


def check_vocabulary(vocab_size: int, window: int) -> None:
    """Raise ``ValueError`` for a vocabulary or a window that lists from ``torch.randperm`` cannot have."""
    check_common(vocab_size, window)
    if vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size must be at most {LARGEST_VOCABULARY}, got {vocab_size}; use the tokenizer's size")


def _whole(name: str, value: Any, below: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be an integer of at least 0, got {value!r}; use the number the text was marked with")
    if below is not None and value >= below:
        raise ValueError(f"{name} must be below {below}, got {value}; torch holds it in a signed 64-bit integer")
    return int(value)


class PermutationList(Biases):
    """What green lists that are the beginning of ``torch.randperm(V)``, or else its end, share."""

    gamma: float
    asked_gamma: float
    select_green_tokens: bool = True  # whether the beginning is green

    def _set_rate(self, gamma: float, delta: float, gamma_name: str, delta_name: str) -> None:
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"{gamma_name} must lie strictly between 0 and 1 (the green fraction), got {gamma}")
        self.greens = int(gamma * self.vocab_size)
        if not 1 <= self.greens < self.vocab_size:
            raise ValueError(
                f"{gamma_name}={gamma} leaves no green or no red token in a vocabulary of {self.vocab_size}; "
                f"use at least {1 / self.vocab_size:.3g} and less than 1"
            )
        if not (np.isfinite(delta) and delta >= 0):
            raise ValueError(f"{delta_name} must be finite and not negative (the bias on green logits), got {delta}")
        self.gamma, self.delta = self.greens / self.vocab_size, float(delta)
        self.asked_gamma = float(gamma)  # ⌊γV⌋ need not survive γ → ⌊γV⌋ / V → γ V in floating point

    def _window_seeds(self, windows: Ints) -> UInt32s:
        """The generator seed of each window."""
        raise NotImplementedError

    def _pair_seeds(self, windows: Ints, tokens: Ints) -> UInt32s:
        """The generator seed of each pair."""
        return self._window_seeds(windows)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the key, γ too."""
        return super().parameters | {"gamma": self.gamma}

    def list_ids(self, windows: Ints, tokens: Ints) -> NDArray[np.uint64]:
        """The generator seed of each pair: [n, k] and [n] → unsigned [n]."""
        return self._pair_seeds(*self.checked(windows, tokens)).astype(np.uint64)

    def colour_ids(self, windows: Ints, tokens: Ints) -> NDArray[np.uint64]:
        """Generator seed and token of each pair in one number; pairs of equal numbers have one colour."""
        return with_tokens(self.list_ids(windows, tokens), tokens)

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """1 where the token is green for its window, else 0."""
        w, t = self.checked(windows, tokens)
        steps = self.greens if self.select_green_tokens else self.vocab_size - self.greens
        first = colours(self._pair_seeds(w, t), t, self.vocab_size, steps)
        found: Floats = (first == self.select_green_tokens).astype(np.float64)
        return found

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The green tokens of each window: ints [n, k] → bool [n, V].

        Where the candidate is part of what sets its list, these are V lists of one token each: seconds a row.
        """
        w = self.checked_windows(windows)
        if not self.one_list_a_window:
            tokens = np.tile(np.arange(self.vocab_size), len(w))
            found = self.scores(np.repeat(w, self.vocab_size, axis=0), tokens)
            return found.reshape(len(w), self.vocab_size).astype(np.bool_)
        steps = self.greens if self.select_green_tokens else self.vocab_size - self.greens
        green: NDArray[np.bool_] = colour_rows(self._window_seeds(w), self.vocab_size, steps) == self.select_green_tokens
        return green

    def green_rows_torch(self, windows: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """The same on the device of ``windows``, lists as torch itself makes them: bool [n, width], red beyond V."""
        import torch

        self._check_width(windows)
        given, width = windows.cpu().numpy(), width or self.vocab_size
        rows = torch.zeros(len(given), max(width, self.vocab_size), dtype=torch.bool)
        if not self.one_list_a_window:
            rows[:, : self.vocab_size] = torch.from_numpy(self.green_rows(given))
            return rows[:, :width].to(windows.device)
        generator = torch.Generator()
        green = slice(self.greens) if self.select_green_tokens else slice(self.vocab_size - self.greens, None)
        for row, seed in zip(rows, self._window_seeds(self.checked_windows(given)).tolist(), strict=True):
            generator.manual_seed(seed)
            row[torch.randperm(self.vocab_size, generator=generator)[green]] = True
        return rows[:, :width].to(windows.device)

    @property
    def law(self) -> FixedLists:
        """Green with chance ⌊γV⌋/V, without return in one list."""
        return FixedLists.of(self.greens, self.vocab_size)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.processors import GreenListProcessor

        return GreenListProcessor(self)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint}, delta={self.delta:g})"


class _ReleasedSeeding:
    """How the release turns its key and a window into a generator seed."""

    def __init__(self, seed: int) -> None:
        self._seed = _whole("seed", seed)
        self.fingerprint = derive_bytes(self._seed, "fingerprint/released", 8).hex()

    def seeds(self, windows: Ints) -> UInt32s:
        """Low 32 bits of the seed: s ← (35317 s + id) mod (2⁶⁴ − 1) over the ids, oldest first. [n, k] → [n]."""
        ids = windows.astype(np.uint64)
        first = np.full(len(ids), self._seed * _SALT % _MODULUS, np.uint64)
        state = _add(first, ids[:, 0])
        low, half, salt = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(_SALT)
        for column in ids.T[1:]:
            # 35317 (2³² h + l) with 35317 h = 2³² a + b: 2⁶⁴ a counts as a
            high = (state >> half) * salt
            state = _add(_add((high & low) << half, high >> half), (state & low) * salt)
            state = _add(state, column)
        return low_bits(state)


def _add(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(a + b) mod (2⁶⁴ − 1), the carry added at the other end."""
    with np.errstate(over="ignore"):
        total = a + b
        total += total < a
    total[total == np.uint64(_MODULUS)] = 0
    return total


def decoy_int(seed: int, index: int, bits: int) -> int:
    """Decoy key number ``index``, of so many bits."""
    return int.from_bytes(derive_bytes(f"decoy/{seed}/{index}", "decoy/compat", 8), "little") >> (64 - bits)


class ReleasedGreenList(PermutationList):
    """The green lists of the release: ⌊γV⌋ tokens a window, the same ones that its detector and generator use.

    ``seed`` is the release's ``seed``, ``window`` its ``ngram``, and ``vocab_size`` must be its tokenizer's.
    :attr:`gamma` is the exact null rate ⌊γV⌋ / V.

    Weak as a watermark: the key enters as if it were one more token before the window, s·35317 + first id. Keys are
    therefore offsets into one family of lists. The window (a, b) under key 1 has the list that (a + 35317, b) has
    under key 0, so for V > 35317 two keys share lists; and for V > 35317 and k ≥ 2 windows collide under one key:
    (a, b) and (a + 1, b − 35317). The fingerprint is a hash of the key: a key as small as the default is found by trying.

    Parameters
    ----------
    seed : int
        The release's key.
    vocab_size : int
        V, the number of token ids.
    window : int
        k, the release's ``ngram``.
    gamma : float in (0, 1)
        Share of green tokens, rounded to a whole list.
    delta : float
        Bias on the logits of green tokens, in nats.

    Raises
    ------
    ValueError
        For parameters out of range, named with their value.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024, its public code.

    Examples
    --------
    >>> import radio_utils as ru
    >>> ru.compat.ReleasedGreenList(seed=3, vocab_size=1000, window=1).gamma
    0.25
    """

    scheme = "released green list"

    def __init__(
        self, seed: int = 3, vocab_size: int = 32000, window: int = 2, gamma: float = 0.25, delta: float = 3.0
    ) -> None:
        check_vocabulary(vocab_size, window)
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._set_rate(gamma, delta, "gamma", "delta")
        self._seeding = _ReleasedSeeding(seed)

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the seed."""
        return f"released-greenlist-k{self.window}-g{self.gamma:.6g}-V{self.vocab_size}-{self._seeding.fingerprint}"

    def with_key(self, key: int) -> ReleasedGreenList:
        """The same scheme under another seed."""
        return ReleasedGreenList(key, self.vocab_size, self.window, self.asked_gamma, self.delta)

    def with_decoy(self, seed: int, index: int) -> ReleasedGreenList:
        """The same scheme under decoy seed number ``index``."""
        return self.with_key(decoy_int(seed, index, 64))

    def _window_seeds(self, windows: Ints) -> UInt32s:
        return self._seeding.seeds(windows)


class ReleasedGumbelMax(Draws):
    """The Gumbel-max numbers of the release: entry v of ``torch.rand(V)`` is token v's r, its score −ln(1 − r).

    r is a multiple of 2⁻²⁴ in [0, 1): it can be 0 (score 0) and never 1 (the largest score is 24 ln 2). It is a uniform
    number rounded down, so scores are at most unit exponentials and the Gamma tail is on the cautious side. The release
    computes the logarithm in float32; here it is taken in float64 from the same r. The weaknesses of
    :class:`ReleasedGreenList`'s seeding are this scheme's too.

    Parameters
    ----------
    seed : int
        The release's key.
    vocab_size : int
        V, the number of token ids.
    window : int
        k, the release's ``ngram``.

    Raises
    ------
    ValueError
        For parameters out of range, named with their value.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024, its public code.

    Examples
    --------
    >>> import radio_utils as ru
    >>> ru.compat.ReleasedGumbelMax(seed=3, vocab_size=1000).window
    2
    """

    scheme = "released gumbel max"

    def __init__(self, seed: int = 3, vocab_size: int = 32000, window: int = 2) -> None:
        check_vocabulary(vocab_size, window)
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._seeding = _ReleasedSeeding(seed)

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the seed."""
        return f"released-gumbelmax-k{self.window}-V{self.vocab_size}-{self._seeding.fingerprint}"

    def __repr__(self) -> str:
        return f"ReleasedGumbelMax({self.fingerprint})"

    def with_key(self, key: int) -> ReleasedGumbelMax:
        """The same scheme under another seed."""
        return ReleasedGumbelMax(key, self.vocab_size, self.window)

    def with_decoy(self, seed: int, index: int) -> ReleasedGumbelMax:
        """The same scheme under decoy seed number ``index``."""
        return self.with_key(decoy_int(seed, index, 64))

    def colour_ids(self, windows: Ints, tokens: Ints) -> NDArray[np.uint64]:
        """Generator seed and token of each pair in one number; pairs of equal numbers have one r."""
        w, t = self.checked(windows, tokens)
        return with_tokens(self._seeding.seeds(w), t)

    def uniforms(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """The number r of each pair, in [0, 1): the release's float32, exactly."""
        w, t = self.checked(windows, tokens)
        return uniforms_of(self._seeding.seeds(w), t)

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """−ln(1 − r)."""
        return -np.log1p(-self.uniforms(windows, tokens))

    def uniform_rows_torch(self, windows: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """The number r of every token for each window, made by torch itself: float64 [n, width]."""
        import torch

        self._check_width(windows)
        seeds = self._seeding.seeds(self.checked_windows(windows.cpu().numpy()))
        rows = torch.empty(len(seeds), width or self.vocab_size, dtype=torch.float64)
        generator = torch.Generator()
        for row, seed in zip(rows, seeds.tolist(), strict=True):
            generator.manual_seed(seed)
            row.copy_(torch.rand(row.numel(), generator=generator))
        return rows.to(windows.device)

    @property
    def law(self) -> Exponential:
        """A unit exponential, whose scores are rounded down: r is a float32 below 1."""
        return Exponential()

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.processors import GumbelMaxProcessor

        return GumbelMaxProcessor(self)  # type: ignore[arg-type]


class TransformersGreenList(PermutationList):
    """The green lists of transformers' ``WatermarkingConfig``, as its generation and its detector make them on a CPU.

    ``config`` is that object or a dict of its fields; ``vocab_size`` is the *model's* (``model.config.vocab_size``), as
    transformers uses. Lists made on a GPU come from another generator and are different ones.

    * ``lefthash``: the last token alone sets the list. transformers ignores ``context_width`` here, except to skip the
      first tokens of a text; :attr:`window` is 1.
    * ``selfhash``: the candidate and the ``context_width − 1`` tokens before it set the list in which the candidate is
      looked up; :attr:`window` is ``context_width − 1``. With ``context_width`` 1 the colour would be a property of the
      token alone, which no repetition-aware test can use: refused. transformers marks the 40 likeliest tokens only.

    A list is named by 32 bits. With lefthash they are the low bits of ``hashing_key`` times the last token's id, so keys
    are multiples in one family of lists, and a key with many factors of two leaves few of them: 2²⁴ leaves 256, and 0 or
    2³² one, the same for every window. With selfhash they are those of the least of some products of ``hashing_key`` and
    two entries of a table, which the key's low 32 bits shuffle; the least is often the same for different windows. Tests
    count pairs that share list and token once, so that p stays honest and ``scored`` tells how little is left.

    Parameters
    ----------
    config : WatermarkingConfig or dict
        The configuration that the text was generated with.
    vocab_size : int
        V of the model, padding included.

    Raises
    ------
    ValueError
        For a configuration that no repetition-aware test can use.

    Notes
    -----
    J. Kirchenbauer et al., *A Watermark for Large Language Models*, ICML 2023; the code is transformers' own.

    Examples
    --------
    >>> import radio_utils as ru
    >>> config = {"seeding_scheme": "lefthash", "hashing_key": 15485863, "greenlist_ratio": 0.25}
    >>> ru.compat.TransformersGreenList(config, vocab_size=1000).window
    1
    """

    scheme = "transformers green list"
    FIELDS: Mapping[str, Any] = {
        "greenlist_ratio": 0.25,
        "bias": 2.0,
        "hashing_key": 15485863,
        "seeding_scheme": "lefthash",
        "context_width": 1,
    }

    def __init__(self, config: Any, vocab_size: int) -> None:
        given = dict(config) if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else None
        if given is None:
            raise ValueError(f"config must be a WatermarkingConfig or a dict of its fields, got {type(config).__name__}")
        if unknown := sorted(set(given) - set(self.FIELDS)):
            raise ValueError(f"config has unknown fields {unknown}; a WatermarkingConfig has {', '.join(self.FIELDS)}")
        self.config: dict[str, Any] = {**self.FIELDS, **given}
        self.seeding_scheme, width = self.config["seeding_scheme"], self.config["context_width"]
        if self.seeding_scheme not in ("lefthash", "selfhash"):
            raise ValueError(f"seeding_scheme must be 'lefthash' or 'selfhash', got {self.seeding_scheme!r}")
        if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
            raise ValueError(f"context_width must be an integer of at least 1, got {width!r}")
        if self.seeding_scheme == "selfhash" and width == 1:
            raise ValueError(
                "context_width=1 with seeding_scheme='selfhash' makes colours depend on the token alone, with no window; "
                "mark with a context_width of at least 2, or with 'lefthash'"
            )
        self.one_list_a_window = self.seeding_scheme == "lefthash"
        self.window = 1 if self.one_list_a_window else int(width) - 1
        check_vocabulary(vocab_size, self.window)
        self.vocab_size = int(vocab_size)
        self._set_rate(self.config["greenlist_ratio"], self.config["bias"], "greenlist_ratio", "bias")
        self._key = _whole("hashing_key", self.config["hashing_key"], below=1 << 63)

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the hashing key."""
        digest = derive_bytes(self._key, "fingerprint/transformers", 8).hex()
        return f"transformers-{self.seeding_scheme}-k{self.window}-g{self.gamma:.6g}-V{self.vocab_size}-{digest}"

    def with_key(self, key: int) -> TransformersGreenList:
        """The same scheme under another hashing key."""
        return TransformersGreenList({**self.config, "hashing_key": key}, self.vocab_size)

    def with_decoy(self, seed: int, index: int) -> TransformersGreenList:
        """The same scheme under decoy key number ``index``."""
        # odd: as with transformers' own key, no two tokens' lefthash seeds coincide
        return self.with_key(decoy_int(seed, index, 40) | 1)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the key, the seeding scheme too."""
        return super().parameters | {"seeding_scheme": self.seeding_scheme}

    @cached_property
    def _hashes(self) -> Ints:
        """1 + what selfhash's table of 10⁶ + 3 entries holds for each token: the beginning of a permutation."""
        return permutation(self._key & 0xFFFFFFFF, TABLE_SIZE, min(self.vocab_size, TABLE_SIZE)) + 1

    def _hash(self, ids: Ints) -> Ints:
        return self._hashes[ids % TABLE_SIZE]

    def keyless(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.bool_]:
        """With lefthash those after token 0: their list is that of the seed 0."""
        w, t = self.checked(windows, tokens)
        return (w[:, -1] == 0) if self.seeding_scheme == "lefthash" else np.zeros(t.size, bool)

    def _window_seeds(self, windows: Ints) -> UInt32s:
        return low_bits_of_products(self._key, windows[:, -1])

    def _pair_seeds(self, windows: Ints, tokens: Ints) -> UInt32s:
        if self.seeding_scheme == "lefthash":
            return self._window_seeds(windows)
        last = self._hash(tokens)
        with np.errstate(over="ignore"):  # products wrap, as in torch, and the least of the signed ones counts
            products = self._key * self._hash(np.column_stack([windows, tokens])) * last[:, None]
        return low_bits_of_signed(products.min(axis=1, initial=np.iinfo(np.int64).max))

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``; selfhash uses transformers' own, on the CPU."""
        if self.seeding_scheme == "lefthash":
            return super().logits_processor()
        from transformers import WatermarkLogitsProcessor

        own = WatermarkLogitsProcessor(vocab_size=self.vocab_size, device="cpu", **self.config)

        def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            processed: torch.Tensor = own(input_ids.cpu(), scores.cpu())
            return processed.to(scores.device)

        return process
