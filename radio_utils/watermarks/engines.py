"""Marks that inference engines write, read with this package's tests: same numbers, bit for bit.

* :class:`VLLMGumbel` and :class:`VLLMDualKey`: vLLM's ``--watermark-config`` (read: release 0.33.0);
* :class:`VLLMSynthID`, :class:`VLLMGreenList` and :class:`SBW`: proposed for vLLM and not in release 0.33.0 (read: commits
  0265d6bd, 381f9454 and caaac7c2);
* :class:`SGLangGumbel`: SGLang's ``--watermark-config``, with one key or two (read: release 0.5.23).

A window holds the ``context_width`` tokens before the candidate. vLLM looks at generated tokens only: before an answer's
start its windows hold −1. SGLang's windows reach into the prompt, and are shorter where even that has too few tokens: here
too −1 stands for what is missing. Engines leave a position unmarked whose context came earlier in the answer.

The keys have at most 64 bits and the hashes are no cryptographic ones: who has enough text may find a key. A fingerprint is
a hash of the key, so that a key as small as 42 is found by trying.
"""

from __future__ import annotations

import abc
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats.laws import Bernoulli, Exponential, Law, TwoExponentials, fair_bits
from radio_utils.watermarks.base import Floats, Watermark, check_common
from radio_utils.watermarks.keyed import distinct_rows
from radio_utils.watermarks.philox import Words, key_words, philox4x32
from radio_utils.watermarks.prf import derive_bytes
from radio_utils.watermarks.strength import Biases, Draws, Tournaments

Ints = NDArray[np.int64]
Repeats = Literal["none", "single_turn", "all"]
BLOCK = 1 << 14  # pairs scored at once: the arrays of a block stay in a core's cache
_LOW = np.uint64(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class EngineMark(Watermark):
    """What the marks of engines share: windows with −1 before the start, keys of 64 bits, a law, unmarked repeats.

    ``repeats`` says which earlier contexts leave a position unmarked: ``single_turn`` those of the generated tokens,
    ``all`` those of the prompt too (and then positions whose context is not full), ``none`` no position. ``history`` is
    how many of the latest are searched, None for all. That matters for writing only: tests count each pair once anyhow.
    """

    pads_start: ClassVar[bool] = True  # windows may begin with −1
    reaches_prompt: ClassVar[bool] = False  # whether the context of an answer's first tokens is the prompt's end
    missing: ClassVar[int] = -1  # what the engine has in a context before the start
    _law: Law
    repeats: Repeats = "single_turn"
    history: int | None = None
    most_contexts: ClassVar[int | None] = None  # after so many different contexts the rest of an answer is unmarked
    max_probability: float = 1.0  # a position whose likeliest token is likelier is left unmarked

    @property
    def starts_full(self) -> bool:
        """Whether positions whose context is not full are left unmarked."""
        return self.repeats == "all"

    @property
    def marks_start(self) -> bool:  # type: ignore[override]
        """Whether an answer's first tokens are drawn after windows that −1 fills up."""
        return self.pads_start and not self.reaches_prompt and not self.starts_full

    @property
    def law(self) -> Law:
        """The law of one score under the null hypothesis."""
        return self._law

    @abc.abstractmethod
    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        """Scores of one block of checked pairs."""

    @abc.abstractmethod
    def with_key(self, key: Any) -> Self:
        """The same scheme and parameters under another key."""

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy key number ``index``."""
        return self.with_key(decoy_key(seed, index))

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """Score of each token after its window: int arrays [n, k], −1 before the start, and [n] → float array [n]."""
        return self._in_blocks(self._scores, windows, tokens)  # type: ignore[no-any-return]

    def _in_blocks(self, function: Callable[[Ints, Ints], NDArray[Any]], windows: ArrayLike, tokens: ArrayLike) -> Any:
        w, t = self.checked(windows, tokens)
        starts = range(0, max(1, t.size), BLOCK)
        return np.concatenate([function(w[at : at + BLOCK], t[at : at + BLOCK]) for at in starts])

    def checked_windows(self, windows: ArrayLike) -> Ints:
        """The windows as int64 [n, k], or an error; ids may be −1 at a window's beginning."""
        try:
            w = np.asarray(windows)
        except ValueError:
            return super().checked_windows(windows)
        if w.dtype.kind != "i" or w.size == 0 or w.min() >= 0:
            return super().checked_windows(windows)
        checked = super().checked_windows(np.where(w == -1, 0, w))
        missing = w == -1
        if np.any(missing[:, 1:] & ~missing[:, :-1]):
            raise ValueError("windows hold -1 after a token id; -1 stands for positions before the text's start only")
        return np.where(missing, -1, checked)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint})"


class GumbelMark(Draws, EngineMark):
    """Marks whose draw is argmax of log p_v − log(−log U_v)."""

    @abc.abstractmethod
    def uniform_rows(self, windows: ArrayLike) -> Iterator[tuple[float, Floats]]:
        """The numbers U of every token for each window, [n, V], with the chance that they make the draw."""

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.engine_processors import GumbelWriter

        return GumbelWriter(self)


class TournamentMark(Tournaments, EngineMark):
    """Marks by tournaments with two leaves: in each layer p ← p·(1 + g − Σpg) with the layer's bits g."""

    @abc.abstractmethod
    def bit_rows(self, windows: ArrayLike) -> Iterator[NDArray[np.bool_]]:
        """The bits of every token for each window, [n, V], layer after layer."""

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.engine_processors import TournamentWriter

        return TournamentWriter(self)


class GreenMark(Biases, EngineMark):
    """Marks that add ``delta`` to green logits; ``gamma`` is the exact chance that a token is green."""

    gamma: float
    before_truncation: ClassVar[bool] = True  # whether δ is added before top-k and top-p

    @abc.abstractmethod
    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The green tokens of each window: ints [n, k] → bool [n, V]."""

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``."""
        from radio_utils.watermarks.engine_processors import GreenWriter

        return GreenWriter(self)


def decoy_key(seed: int, index: int) -> int:
    """A key of 64 bits that nobody used."""
    return int.from_bytes(derive_bytes(f"decoy/{seed}/{index}", "decoy/engines", 8), "little")


def checked_key(key: Any, bits: int = 64, reason: str = "the engine takes no longer ones", name: str = "key") -> int:
    """The key, or an error that does not print it."""
    wanted = f"{name} must be an integer from 0 to 2**{bits} - 1"
    if isinstance(key, bool) or not isinstance(key, int | np.integer):
        raise ValueError(f"{wanted}, got {type(key).__name__}; give the engine's key")
    if not 0 <= key < 1 << bits:
        found = "a negative one" if key < 0 else f"one of {int(key).bit_length()} bits"
        raise ValueError(f"{wanted}, got {found}; {reason}")
    return int(key)


def check_share_of(name: str, value: Any, *, closed: bool) -> float:
    """A number from 0 to 1, the ends allowed if ``closed``; or ``ValueError``."""
    good = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not good or not (0 <= value <= 1 if closed else 0 < value < 1):
        raise ValueError(f"{name} must lie {'in [0, 1]' if closed else 'strictly between 0 and 1'}, got {value!r}")
    return float(value)


def check_bias(value: Any) -> float:
    """A finite bias that is not negative, or ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not np.isfinite(value) or value < 0:
        raise ValueError(f"delta must be finite and not negative (the bias on green logits), got {value!r}")
    return float(value)


# --- vLLM -------------------------------------------------------------------------------------------------------------

_CONTEXT_DOMAIN, _TOKEN_DOMAIN = 0x574D4358, 0x574D544B
_ONES = np.array([word.bit_count() for word in range(1 << 16)], np.uint8)  # among 16 bits


class VLLMPhilox:
    """vLLM's function from key, context and token to 32 bits, named ``philox4x32-10-v1`` there.

    The context is absorbed four ids at a time, oldest first; a word of the last block that no id fills is 2³² − 1 − its
    number. Ids count modulo 2³², so that −1 is 2³² − 1.
    """

    def __init__(self, key: int) -> None:
        self._low, self._high = key_words(key)

    def states(self, windows: Ints) -> tuple[Any, Any, Any, Any]:
        """Four words for each window: [n, k] → four arrays [n]."""
        width = windows.shape[1]
        state: tuple[Any, Any, Any, Any] = (*(np.uint64(word) for word in (_CONTEXT_DOMAIN, width, 0, 0)),)  # type: ignore[assignment]
        for offset in range(0, width, 4):
            ids = [windows[:, at].astype(np.uint64) & _LOW for at in range(offset, min(offset + 4, width))]
            ids += [np.full(len(windows), 0xFFFFFFFF - slot, np.uint64) for slot in range(len(ids), 4)]
            counter = [word ^ one for word, one in zip(state, ids, strict=True)]
            state = philox4x32(counter, (self._low ^ offset, self._high))
        return state

    def words(self, windows: Ints, tokens: Ints) -> Words:
        """The word of each pair: [n, k] and [n] → uint64 [n], below 2³²."""
        own, where = distinct_rows(windows)
        s0, s1, s2, s3 = self.states(own) if where is None else (word[where] for word in self.states(own))
        t = tokens.astype(np.uint64)
        out = philox4x32((t >> np.uint64(2), s0, s1, s2), (np.uint64(self._low) ^ s3, self._high ^ _TOKEN_DOMAIN))
        return chosen_word(out, tokens)

    def word_rows(self, windows: Ints, vocab_size: int) -> Words:
        """The word of every token for each window: uint64 [n, V]."""
        s0, s1, s2, s3 = (word[:, None] for word in self.states(windows))
        calls = np.arange(-(-vocab_size // 4), dtype=np.uint64)
        out = philox4x32((calls, s0, s1, s2), (np.uint64(self._low) ^ s3, self._high ^ _TOKEN_DOMAIN))
        return np.stack(out, axis=-1).reshape(len(windows), -1)[:, :vocab_size]


def chosen_word(out: tuple[Words, ...], tokens: Ints) -> Words:
    """Of four output words the one that each token names by its last two bits."""
    last = tokens & 3
    chosen: Words = np.where(last < 2, np.where(last == 0, out[0], out[1]), np.where(last == 2, out[2], out[3]))
    return chosen


def vllm_uniforms(words: Words) -> Floats:
    """The upper 24 bits m of a word as (m + 1) / (2²⁴ + 1), rounded to float32 as the engine does: inside (0, 1)."""
    return (((words >> np.uint64(8)).astype(np.float64) + 1.0) / (2**24 + 1)).astype(np.float32).astype(np.float64)


def _survivals(uniforms: Floats) -> Floats:
    """−ln(1 − U)."""
    np.negative(uniforms, out=uniforms)
    np.log1p(uniforms, out=uniforms)
    return np.negative(uniforms, out=uniforms)


def derived_key(key: int, name: str) -> int:
    """Keys a and b of vLLM: the first 8 bytes of SHA-256 of the name and the key, all big-endian."""
    return int.from_bytes(hashlib.sha256(f"key_{name}".encode() + key.to_bytes(8, "big")).digest()[:8], "big")


class _VLLM(EngineMark):
    """What the marks of vLLM share."""

    _name: ClassVar[str]

    def _set_up(
        self, key: Any, vocab_size: int, window: int, repeats: Repeats, history: int | None, shown: str = "",
        writing: Mapping[str, Any] | None = None, **own: Any,
    ) -> None:  # fmt: skip
        """``own``: further parameters, ``shown`` in the fingerprint; ``writing``: those that no score depends on."""
        check_common(vocab_size, window)
        if vocab_size > 1 << 32:
            raise ValueError(f"vocab_size must be at most 2**32, got {vocab_size}; token ids have 32 bits in the engine")
        if repeats not in ("none", "single_turn", "all"):
            raise ValueError(f"repeats must be 'none', 'single_turn' or 'all', got {repeats!r}")
        if history is not None and (isinstance(history, bool) or not isinstance(history, int) or history < 1):
            raise ValueError(f"history must be at least 1 position, or None for all, got {history!r}")
        self.vocab_size, self.window, self.repeats, self.history = int(vocab_size), int(window), repeats, history
        self._key, self._shown, self._own, self._writing = checked_key(key), shown, own, dict(writing or {})

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | self._own

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the key."""
        digest = derive_bytes(self._key, f"fingerprint/vllm/{self._name}", 8).hex()
        return f"vllm-{self._name}-k{self.window}{self._shown}-V{self.vocab_size}-{digest}"

    def with_key(self, key: Any) -> Self:
        """The same scheme and parameters under another key."""
        # each scheme's constructor names what it was set up with
        made: Any = type(self)
        how = self._own | self._writing | {"repeats": self.repeats, "history": self.history}
        return made(key, self.vocab_size, self.window, **how)  # type: ignore[no-any-return]


class VLLMGumbel(_VLLM, GumbelMark):
    """vLLM's ``gumbel``, its default: the draw is argmax of logit + Gumbel(U), the score −ln(1 − U).

    U is a multiple of 1/(2²⁴ + 1) in float32, so that a score is at most 24 ln 2; its mean is 1 − 5·10⁻⁷, on the cautious
    side of the Gamma tail. Source: vLLM 0.33.0, ``vllm/v1/watermarking``.
    """

    scheme = "vllm gumbel"
    _name = "gumbel"
    _law = Exponential()

    def __init__(
        self, key: int, vocab_size: int, window: int = 4, *, repeats: Repeats = "single_turn", history: int | None = 8192
    ) -> None:
        self._set_up(key, vocab_size, window, repeats, history)
        self._prf = VLLMPhilox(self._key)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        return _survivals(vllm_uniforms(self._prf.words(windows, tokens)))

    def uniform_rows(self, windows: ArrayLike) -> Iterator[tuple[float, Floats]]:
        """The numbers U of every token for each window, [n, V]."""
        yield 1.0, vllm_uniforms(self._prf.word_rows(self.checked_windows(windows), self.vocab_size))


class VLLMDualKey(_VLLM, GumbelMark):
    """vLLM's ``dual_key_gumbel``: each token is drawn with key b with chance ``alpha``, else with key a.

    The score is (1 − α)·E_a + α·E_b, whose sum has the exact law of :class:`radio_utils.stats.laws.TwoExponentials`; the
    engine's own detector fits a Gamma law to it. Both keys are derived from the one given. The engine's default of α is
    0.1; in 0.30 it was 0.2. Source: vLLM 0.33.0.
    """

    scheme = "vllm dual key gumbel"
    _name = "dual-key-gumbel"

    def __init__(
        self,
        key: int,
        vocab_size: int,
        window: int = 4,
        alpha: float = 0.1,
        *,
        repeats: Repeats = "single_turn",
        history: int | None = 8192,
    ) -> None:
        self.alpha = check_share_of("alpha", alpha, closed=True)
        self._set_up(key, vocab_size, window, repeats, history, f"-a{self.alpha:.6g}", alpha=self.alpha)
        self._prfs = tuple(VLLMPhilox(derived_key(self._key, name)) for name in "ab")
        self._law = TwoExponentials(self.alpha) if 0 < self.alpha < 1 else Exponential()

    @property
    def _shares(self) -> Iterator[tuple[float, VLLMPhilox]]:
        return ((share, prf) for share, prf in zip((1.0 - self.alpha, self.alpha), self._prfs, strict=True) if share)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        total = np.zeros(tokens.size)
        for share, prf in self._shares:
            total += share * _survivals(vllm_uniforms(prf.words(windows, tokens)))
        return total

    def uniform_rows(self, windows: ArrayLike) -> Iterator[tuple[float, Floats]]:
        """The numbers U of every token for each window, [n, V], of either key with its share of the draws."""
        w = self.checked_windows(windows)
        for share, prf in self._shares:
            yield share, vllm_uniforms(prf.word_rows(w, self.vocab_size))


class VLLMSynthID(_VLLM, TournamentMark):
    """SynthID-Text on vLLM's function: the layers' bits are the lowest ``depth`` bits of the pair's word.

    The score is the number of ones, a sum of fair bits under the null. Proposed for vLLM, not in release 0.33.0. Source:
    commit 0265d6bd, ``vllm/v1/watermarking/synthid.py``. Another proposal (``synthid_depth``) has a function per layer.
    """

    scheme = "vllm synthid"
    _name = "synthid"

    def __init__(
        self,
        key: int,
        vocab_size: int,
        window: int = 4,
        depth: int = 32,
        *,
        repeats: Repeats = "single_turn",
        history: int | None = 8192,
    ) -> None:
        self._set_up(key, vocab_size, window, repeats, history, f"-m{depth}", depth=depth)
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 32:
            raise ValueError(f"depth must be an integer from 1 to 32 (bits of a word), got {depth!r}")
        self.depth, self._prf, self._law = depth, VLLMPhilox(self._key), fair_bits(depth)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        kept = self._prf.words(windows, tokens) & np.uint64((1 << self.depth) - 1)
        ones: Floats = (_ONES[kept & np.uint64(0xFFFF)] + _ONES[kept >> np.uint64(16)]).astype(np.float64)
        return ones

    def bit_rows(self, windows: ArrayLike) -> Iterator[NDArray[np.bool_]]:
        """The bits of every token for each window, [n, V], layer after layer."""
        words = self._prf.word_rows(self.checked_windows(windows), self.vocab_size)
        for layer in range(self.depth):
            yield (words >> np.uint64(layer) & np.uint64(1)).astype(np.bool_)


class VLLMGreenList(_VLLM, GreenMark):
    """vLLM's ``red_green``: a token is green where its number U is below γ, and δ is added to what truncation left.

    Colours are independent; :attr:`gamma` is the exact share of the 2²⁴ numbers U below the γ asked for. Proposed for vLLM,
    not in release 0.33.0. Source: commit 381f9454, ``vllm/v1/watermarking/red_green.py``.
    """

    scheme = "vllm green list"
    _name = "red-green"
    before_truncation = False

    def __init__(
        self,
        key: int,
        vocab_size: int,
        window: int = 4,
        gamma: float = 0.25,
        delta: float = 2.0,
        *,
        repeats: Repeats = "single_turn",
        history: int | None = 8192,
    ) -> None:
        asked, self.delta = check_share_of("gamma", gamma, closed=False), check_bias(delta)
        more: dict[str, Any] = {"writing": {"delta": self.delta}, "gamma": asked}
        self._set_up(key, vocab_size, window, repeats, history, f"-g{asked:.6g}", **more)
        self._prf = VLLMPhilox(self._key)
        self._limit = float(np.float32(asked))  # the engine compares in float32
        green = bisect_left(
            range(1 << 24), self._limit, key=lambda m: float(vllm_uniforms(np.array([m << 8], np.uint64))[0])
        )
        if not 0 < green < 1 << 24:
            raise ValueError(f"gamma={gamma} leaves no green or no red number of 24 bits; choose one farther from 0 and 1")
        self.gamma = green / (1 << 24)
        self._law = Bernoulli(self.gamma)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        return (vllm_uniforms(self._prf.words(windows, tokens)) < self._limit).astype(np.float64)

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The green tokens of each window: ints [n, k] → bool [n, V]."""
        green: NDArray[np.bool_] = (
            vllm_uniforms(self._prf.word_rows(self.checked_windows(windows), self.vocab_size)) < self._limit
        )
        return green


class SBW(_VLLM, GreenMark):
    """Stateless Bernoulli watermarking: Philox keyed by a seed makes each token of a list green by itself.

    ``lefthash``: the seed is key times the sum of the context. ``selfhash``: the least of key·h(cᵢ)·h(v), over the context
    without its first token, and key·h(v)², all as signed 64-bit integers that wrap; h is Bob Jenkins' integer hash in 32
    bits. With a context of one token colours are properties of the token alone. Pairs with one seed and one token are one
    trial, which tests count once (:meth:`colour_ids`); with either seeding there are many of them.

    A token is green where the lower 31 bits of its word are below ⌊γ(2³¹ − 1)⌋: :attr:`gamma` is that share. Source: Ceppi
    and Sanchez, *Flip, don't shuffle*, EMNLP 2026 (arXiv 2609.03844); proposed for vLLM, not in release 0.33.0: commit
    caaac7c2, ``vllm/v1/watermarking/sbw.py``. Keys of 64 bits do not run there: torch holds them as signed integers.
    """

    scheme = "sbw"
    _name = "sbw"

    def __init__(
        self,
        key: int,
        vocab_size: int,
        window: int | None = None,
        seeding: Literal["selfhash", "lefthash"] = "selfhash",
        gamma: float = 0.5,
        delta: float = 2.0,
        *,
        repeats: Repeats = "single_turn",
        history: int | None = 8192,
    ) -> None:
        if seeding not in ("selfhash", "lefthash"):
            raise ValueError(f"seeding must be 'selfhash' or 'lefthash', got {seeding!r}")
        self.seeding: Literal["selfhash", "lefthash"] = seeding
        default = 4 if seeding == "selfhash" else 1
        asked, self.delta = check_share_of("gamma", gamma, closed=False), check_bias(delta)
        more: dict[str, Any] = {"writing": {"delta": self.delta}, "seeding": seeding, "gamma": asked}
        shown = f"-{seeding}-g{asked:.6g}"
        self._set_up(key, vocab_size, default if window is None else window, repeats, history, shown, **more)
        checked_key(key, 63, "the engine holds it in a signed 64-bit integer")
        self._limit = int(asked * 0x7FFFFFFF)
        if self._limit < 1:
            raise ValueError(f"gamma={gamma} leaves no green token at a resolution of 2**-31; choose a larger one")
        self.gamma = self._limit / (1 << 31)
        self._law = Bernoulli(self.gamma)
        self.one_list_a_window = seeding == "lefthash"

    @property
    def marks_start(self) -> bool:  # type: ignore[override]
        """Not for selfhash: h(−1) is 0, and with it the seed, whatever the key."""
        return self.seeding == "lefthash" and super().marks_start

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy key number ``index``, an odd one: an even key would leave fewer seeds."""
        return self.with_key(decoy_key(seed, index) >> 1 | 1)

    def _seeds(self, windows: Ints, tokens: Ints) -> Words:
        """The seed of each pair: [n, k] and [n] (or [V] with windows [n, 1, k]) → uint64."""
        key = np.int64(self._key)
        if self.seeding == "lefthash":
            return np.broadcast_to(key * windows.sum(axis=-1), np.broadcast_shapes(windows.shape[:-1], tokens.shape)).view(
                np.uint64
            )
        own = jenkins(tokens)
        seeds = key * own * own
        for column in np.moveaxis(windows, -1, 0)[1:]:
            seeds = np.minimum(seeds, key * (jenkins(column) * own))
        return np.broadcast_to(seeds, np.broadcast_shapes(windows.shape[:-1], tokens.shape)).view(np.uint64)

    def _green(self, windows: Ints, tokens: Ints) -> NDArray[np.bool_]:
        seeds = self._seeds(windows, tokens)
        out = philox4x32((tokens.astype(np.uint64) >> np.uint64(2), 0, 0, 0), (seeds & _LOW, seeds >> np.uint64(32)))
        green: NDArray[np.bool_] = (chosen_word(out, tokens) & np.uint64(0x7FFFFFFF)) < np.uint64(self._limit)
        return green

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        return self._green(windows, tokens).astype(np.float64)

    def keyless(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Those of seed 0, in which the key has no part: contexts that sum to 0 (lefthash), or h(−1) = 0 (selfhash)."""
        w, t = self.checked(windows, tokens)
        found: NDArray[np.bool_] = np.asarray((w <= 0).any(axis=1))  # among other ids no product and no sum is 0
        found[found] = self._seeds(w[found], t[found]) == 0
        return found

    def colour_ids(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint64]:
        """Seed and token of each pair in one number; pairs of equal numbers have one colour."""
        return self._in_blocks(  # type: ignore[no-any-return]
            lambda w, t: self._seeds(w, t) * _GOLDEN + t.astype(np.uint64), windows, tokens
        )

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The green tokens of each window: ints [n, k] → bool [n, V]."""
        return self._green(self.checked_windows(windows)[:, None, :], np.arange(self.vocab_size))


def jenkins(ids: Ints) -> Ints:
    """Bob Jenkins' integer hash of id + 1, in signed 32-bit integers that wrap (right shifts copy the sign)."""
    i = (ids + 1).astype(np.int32)
    i = i - (i << np.int32(6))
    i = i ^ (i >> np.int32(17))
    i = i - (i << np.int32(9))
    i = i ^ (i << np.int32(4))
    i = i - (i << np.int32(3))
    i = i ^ (i << np.int32(10))
    return (i ^ (i >> np.int32(15))).astype(np.int64)


# --- SGLang -----------------------------------------------------------------------------------------------------------

_Words32 = NDArray[np.uint32]


def _mixed(state: _Words32, words: Any) -> _Words32:
    """The body of MurmurHash3 (x86, 32 bits): one more word into the state."""
    value = np.atleast_1d(np.asarray(words, np.uint32)) * np.uint32(0xCC9E2D51)
    value = (value << np.uint32(15) | value >> np.uint32(17)) * np.uint32(0x1B873593)
    value = value ^ state
    value = value << np.uint32(13) | value >> np.uint32(19)
    mixed: _Words32 = value * np.uint32(5) + np.uint32(0xE6546B64)
    return mixed


def _finished(state: _Words32) -> _Words32:
    """The finaliser of MurmurHash3."""
    state = (state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    state = (state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    finished: _Words32 = state ^ state >> np.uint32(16)
    return finished


class SGLangGumbel(GumbelMark):
    """SGLang's Aaronson–Gumbel mark: argmax log(U)/p with U from MurmurHash3 of key, context hash and token.

    ``key`` is an integer of 64 bits or the engine's 1 to 16 hexadecimal digits. With ``key_b`` a coin of each context
    says which of both keys draws: a with chance ``mixing_probability``. Contexts are the last ``window`` tokens of prompt
    and answer; without the prompt, the first ``window`` tokens of an answer cannot be scored. The score is −ln(1 − U).

    The hash has 32 bits, so that pairs of equal hashes are one trial (:meth:`colour_ids`). Of the key no more than 32 bits
    matter. Source: SGLang 0.5.23, ``sglang/srt/sampling/watermarking``. Its SynthID mark is not in that release, and not
    supported.
    """

    scheme = "sglang gumbel"
    reaches_prompt = True
    one_list_a_window = False
    most_contexts = 4096
    _law = Exponential()

    def __init__(
        self,
        key: int | str,
        vocab_size: int,
        window: int = 4,
        *,
        key_b: int | str | None = None,
        mixing_probability: float = 0.5,
        max_probability: float = 1.0,
    ) -> None:
        check_common(vocab_size, window)
        if window > 64:
            raise ValueError(f"window must be at most 64 (SGLang's context_window), got {window}")
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._keys = [hex_key("key", key)] + ([] if key_b is None else [hex_key("key_b", key_b)])
        self.mixing_probability = check_share_of("mixing_probability", mixing_probability, closed=False)
        self.max_probability = check_share_of("max_probability", max_probability, closed=True)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | {"keys": len(self._keys), "mixing_probability": self.mixing_probability}

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the keys."""
        material = "/".join(map(str, self._keys))
        digest = derive_bytes(material, "fingerprint/sglang", 8).hex()
        mixed = f"-p{self.mixing_probability:.6g}" if len(self._keys) == 2 else ""
        return f"sglang-gumbel-k{self.window}{mixed}-V{self.vocab_size}-{digest}"

    def with_key(self, key: int | str) -> Self:
        """The same scheme and parameters under another key; a second key is derived from it."""
        second = None
        if len(self._keys) == 2:
            second = int.from_bytes(derive_bytes(hex_key("key", key), "sglang/key_b", 8), "little")
        same = {"mixing_probability": self.mixing_probability, "max_probability": self.max_probability}
        return type(self)(key, self.vocab_size, self.window, key_b=second, **same)

    def _start(self, windows: Ints) -> _Words32:
        """The state of the token's hash after key and context: [n, k] → [n]."""
        context = np.zeros(len(windows), np.uint32)
        for column in windows.T:
            context = np.where(column < 0, context, _mixed(context, column.astype(np.uint32)))
        length = np.count_nonzero(windows >= 0, axis=1).astype(np.uint32)
        context = _finished(context ^ length * np.uint32(4))
        states = [_mixed(self._absorbed(key), context) for key in self._keys]
        if len(states) == 1:
            return states[0]
        both = self._absorbed(*self._keys)
        coin = _finished(_mixed(both, context) ^ np.uint32(20))
        return np.where(coin < int(self.mixing_probability * 2**32), *states)

    @staticmethod
    def _absorbed(*keys: int) -> _Words32:
        state = np.zeros(1, np.uint32)
        for key in keys:
            for word in key_words(key):
                state = _mixed(state, word)
        return state

    def _hashes(self, windows: Ints, tokens: Ints) -> _Words32:
        own, where = distinct_rows(windows)
        start = self._start(own)
        return _finished(_mixed(start if where is None else start[where], tokens.astype(np.uint32)) ^ np.uint32(16))

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        return _survivals((self._hashes(windows, tokens).astype(np.float64) + 0.5) / 2**32)

    def colour_ids(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint64]:
        """The hash of each pair, which is all that its score depends on: [n, k] and [n] → unsigned [n]."""
        return self._in_blocks(lambda w, t: self._hashes(w, t).astype(np.uint64), windows, tokens)  # type: ignore[no-any-return]

    def uniform_rows(self, windows: ArrayLike) -> Iterator[tuple[float, Floats]]:
        """The numbers U of every token for each window, [n, V], under the key that the context's coin names."""
        start = self._start(self.checked_windows(windows))[:, None]
        hashes = _finished(_mixed(start, np.arange(self.vocab_size, dtype=np.uint32)) ^ np.uint32(16))
        yield 1.0, (hashes.astype(np.float64) + 0.5) / 2**32


def hex_key(name: str, key: Any) -> int:
    """SGLang's key: an integer of 64 bits, or 1 to 16 hexadecimal digits that may follow 0x."""
    if not isinstance(key, str):
        return checked_key(key)
    digits = key.lower().removeprefix("0x")
    if not 1 <= len(digits) <= 16 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"{name} must be 1 to 16 hexadecimal digits, got a text of {len(digits)}; give SGLang's key")
    return int(digits, 16)
