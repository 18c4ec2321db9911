"""Green lists of two research releases: lm-watermarking's seedings, and Unigram's one list for everything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats import tails
from radio_utils.stats.laws import FixedLists
from radio_utils.watermarks.base import Floats, check_common
from radio_utils.watermarks.engines import GreenMark, check_bias, check_share_of, checked_key
from radio_utils.watermarks.prf import derive_bytes
from radio_utils.watermarks.published import TABLE_SIZE, PermutationList, check_vocabulary, decoy_int
from radio_utils.watermarks.torch_random import Ints, UInt32s, low_bits_of_products, low_bits_of_signed, permutation

if TYPE_CHECKING:
    import torch

_TABLE_SEED = 2971215073
_CANDIDATES = 41  # of a row that self-salting looks at: the likeliest


@lru_cache(maxsize=1)
def _table() -> Ints:
    """1 + ``torch.randperm`` of the table's seed: the release's hash of small integers."""
    return permutation(_TABLE_SEED, TABLE_SIZE, TABLE_SIZE) + 1


def _hashed(ids: Ints) -> Ints:
    found: Ints = _table()[ids % TABLE_SIZE]
    return found


def _min_skipgram(key: int, c: Ints) -> Ints:
    hashed = _hashed(np.int64(key) * c)
    pairs = [hashed[:, i] * hashed[:, j] for i, j in combinations(range(c.shape[1]), 2)]
    least: Ints = np.min(pairs, axis=0)
    return least


def _non_commutative(key: int, c: Ints) -> Ints:
    state = np.full(len(c), key, np.int64)
    for column in c.T:
        state = state * _hashed(state * column) % (1 << 32)
    return state


# contexts [n, h], oldest first and with self-salting the candidate last, to signed 64-bit integers that wrap
_FUNCTIONS: dict[str, Callable[[int, Ints], Ints]] = {
    "skipgram_prf": lambda key, c: _hashed(np.int64(key) * c[:, 0]),
    "simple_skip_prf": lambda key, c: _hashed(np.int64(key) * c[:, ::2]).prod(axis=1),
    "anchored_skipgram_prf": lambda key, c: _hashed(np.int64(key) * c[:, 0]) * _hashed(np.int64(key) * c[:, -1]),
    "minhash_prf": lambda key, c: _hashed(np.int64(key) * c).min(axis=1),
    "anchored_minhash_prf": lambda key, c: (np.int64(key) * _hashed(c) * _hashed(c[:, -1:])).min(axis=1),
    "minskipgram_prf": _min_skipgram,
    "noncomm_prf": _non_commutative,
    "position_prf": lambda key, c: (np.int64(key) * c * np.arange(1, c.shape[1] + 1)).sum(axis=1),
}
# these leave 64-bit arithmetic for Python's before the key is multiplied in
_EXACT: dict[str, Callable[[Ints], Ints]] = {
    "additive_prf": lambda c: c.sum(axis=1),
    "multiplicative_prf": lambda c: c.prod(axis=1),
    "minfunc_prf": lambda c: c.min(axis=1),
}
_SCHEMES = {
    "simple_1": ("additive_prf", 1, False), "lefthash": ("additive_prf", 1, False),
    "algorithm-3": ("anchored_minhash_prf", 4, True), "selfhash": ("anchored_minhash_prf", 4, True),
    "minhash": ("minhash_prf", 4, False), "skipgram": ("skipgram_prf", 5, False),
}  # fmt: skip


def _seeding(name: Any) -> tuple[str, int, bool, int]:
    """Function, context width, self-salting and key of a seeding scheme's name."""
    key = 15485863
    if name in _SCHEMES:
        return (*_SCHEMES[name], key)
    parts = name.split("-") if isinstance(name, str) else []
    if len(parts) in (4, 5) and parts[0].startswith("ff") and all(part.isdigit() for part in (parts[2], *parts[4:])):
        function, width = parts[1], int(parts[2])
        if (function in _FUNCTIONS or function in _EXACT) and width:
            return function, width, parts[3] == "True", int(parts[4]) if len(parts) == 5 else key
    names = ", ".join(sorted(_SCHEMES))
    functions = ", ".join(sorted((*_FUNCTIONS, *_EXACT)))
    raise ValueError(
        f"seeding_scheme is unknown; known ones are {names}, and ff-FUNCTION-WIDTH-SELFSALT[-KEY] with one of {functions}"
    )


class KirchenbauerGreenList(PermutationList):
    """The green lists of lm-watermarking's extended processor and detector, as they are made on a CPU.

    ``seeding_scheme`` is "simple_1" (or "lefthash"), "selfhash" (or "algorithm-3"), "minhash", "skipgram", or the release's
    own ff-FUNCTION-WIDTH-SELFSALT[-KEY]. ``hash_key`` replaces the key that the name implies, 15485863. With self-salting
    the candidate is the last of the WIDTH tokens that seed its list: :attr:`window` is one less. With
    ``select_green_tokens=False``, the release's legacy, the *last* ⌊γV⌋ tokens of the permutation are green.

    What :class:`radio_utils.compat.TransformersGreenList` says of the number of lists holds here too. Source:
    jwkirchenbauer/lm-watermarking, commit fb602de9, ``extended_watermark_processor.py`` and ``alternative_prf_schemes.py``.
    Lists made on a GPU are others.
    """

    scheme = "lm-watermarking green list"

    def __init__(
        self,
        vocab_size: int,
        seeding_scheme: str = "selfhash",
        gamma: float = 0.25,
        delta: float = 2.0,
        *,
        hash_key: int | None = None,
        select_green_tokens: bool = True,
    ) -> None:
        self._function, width, self._self_salt, implied = _seeding(seeding_scheme)
        least = 2 if self._function == "minskipgram_prf" or self._self_salt else 1
        if width < least:
            raise ValueError(f"the width of {self._function} must be at least {least} here, got {width}")
        self.window = width - 1 if self._self_salt else width
        check_vocabulary(vocab_size, self.window)
        self.vocab_size, self.seeding_scheme = int(vocab_size), seeding_scheme
        self._key = checked_key(implied if hash_key is None else hash_key, 63, "torch holds it in a signed 64-bit integer")
        self.select_green_tokens = bool(select_green_tokens)
        self._set_rate(gamma, delta, "gamma", "delta")
        self.one_list_a_window = not self._self_salt

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | {
            "function": self._function,
            "self_salt": self._self_salt,
            "first": self.select_green_tokens,
        }

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the key."""
        digest = derive_bytes(self._key, "fingerprint/lm-watermarking", 8).hex()
        salted = "self-" if self._self_salt else ""
        legacy = "" if self.select_green_tokens else "-legacy"
        return (
            f"lm-watermarking-{salted}{self._function}-k{self.window}-g{self.gamma:.6g}{legacy}-V{self.vocab_size}-{digest}"
        )

    def with_key(self, key: int) -> Self:
        """The same scheme and parameters under another key."""
        return type(self)(
            self.vocab_size, self.seeding_scheme, self.asked_gamma, self.delta, hash_key=key,
            select_green_tokens=self.select_green_tokens,
        )  # fmt: skip

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy key number ``index``, an odd one: an even key would leave fewer lists."""
        return self.with_key(decoy_int(seed, index, 40) | 1)

    def _seeds(self, contexts: Ints) -> UInt32s:
        if self._function in _EXACT:
            return low_bits_of_products(self._key, _EXACT[self._function](contexts))
        with np.errstate(over="ignore"):  # as torch's integers do, these wrap
            return low_bits_of_signed(_FUNCTIONS[self._function](self._key, contexts))

    @cached_property
    def _without_key(self) -> Self:
        return self.with_key(0)

    def keyless(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Those whose seed is that of the key 0: no product of the key and an id, which may be 0, has a part in it."""
        w, t = self.checked(windows, tokens)
        found: NDArray[np.bool_] = (w <= 0).any(axis=1) | (t == 0)  # no other product vanishes, and most texts hold few
        w, t = w[found], t[found]
        found[found] = self._pair_seeds(w, t) == self._without_key._pair_seeds(w, t)
        return found

    def _window_seeds(self, windows: Ints) -> UInt32s:
        return self._seeds(windows)

    def _pair_seeds(self, windows: Ints, tokens: Ints) -> UInt32s:
        return self._seeds(np.column_stack([windows, tokens]) if self._self_salt else windows)

    def logits_processor(self) -> Any:
        """A processor for transformers' ``generate(logits_processor=[…])``; self-salting sees the 41 likeliest tokens."""
        if not self._self_salt:
            return super().logits_processor()

        def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            likeliest = scores[:, : self.vocab_size].topk(min(_CANDIDATES, self.vocab_size), dim=-1).indices
            windows = input_ids[:, input_ids.shape[1] - self.window :].cpu().numpy().repeat(likeliest.shape[1], axis=0)
            green = self.scores(windows, likeliest.cpu().numpy().ravel()).reshape(likeliest.shape)
            bias = likeliest.new_tensor(green * self.delta, dtype=scores.dtype)
            return scores.scatter_add(1, likeliest, bias)

        return process


@dataclass(frozen=True)
class OneList(FixedLists):
    """Green or not, where all distinct tokens are looked up in one list: the number of greens is hypergeometric."""

    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Hypergeometric(size, greens, count) ≥ total), exact."""
        s, n = np.broadcast_arrays(np.ceil(np.asarray(total, np.float64)), np.asarray(count, np.int64))
        if np.any(n > self.size) or np.any(s > n):
            raise ValueError("total and count exceed the list's tokens; count each token once")
        found = [self._one(float(one), int(of)) for one, of in zip(s.flat, n.flat, strict=True)]
        return np.array(found).reshape(s.shape)[()]

    def _one(self, total: float, count: int) -> float:
        if total > self.greens:
            return -np.inf
        if total <= max(0, count - (self.size - self.greens)):
            return 0.0
        return float(tails.log10_fisher(total, count, self.greens - total, self.size - count))

    def log10_allowing(self, total: ArrayLike, count: ArrayLike, share: float) -> Any:
        """The exact tail where nothing was left out, else the binomial's bound."""
        return super().log10_allowing(total, count, share) if share else self.log10_tail(total, count)

    def log10_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Hypergeometric(size, greens, count) > total), exact."""
        s, n = np.broadcast_arrays(np.floor(np.asarray(total, np.float64)), np.asarray(count, np.int64))
        pairs = zip(s.flat, n.flat, strict=True)
        found = [self._one(float(one) + 1.0, int(of)) if one < of else -np.inf for one, of in pairs]
        return np.array(found).reshape(s.shape)[()]


class Unigram(GreenMark):
    """Unigram: one green list of ⌊γV⌋ tokens for every position, whatever came before.

    The context plays no part (k = 0). :attr:`window` is 1 all the same, as evidence is made of windows; its token is
    ignored, and a token is one trial however often it comes (:meth:`colour_ids`), so that there are at most V trials, drawn
    from one list without return: their law is hypergeometric. A prompt draws from that list too: with prompts given nothing
    is left to score. Source: Zhao et al., *Provable robust watermarking for
    AI-generated text*, ICLR 2024; XuandongZhao/Unigram-Watermark, commit 3667ec1d, ``gptwm.py``.
    """

    scheme = "unigram"
    repeats = "none"

    def __init__(self, key: int, vocab_size: int, gamma: float = 0.5, delta: float = 2.0) -> None:
        check_common(vocab_size, 1)
        self.vocab_size, self.window = int(vocab_size), 1
        self._key = checked_key(key, 63, "the release holds it in a signed 64-bit integer")
        self._asked, self.delta = check_share_of("gamma", gamma, closed=False), check_bias(delta)
        self.greens = int(self._asked * self.vocab_size)
        if not 1 <= self.greens < self.vocab_size:
            raise ValueError(f"gamma={gamma} leaves no green or no red token in a vocabulary of {vocab_size}")
        self.gamma = self.greens / self.vocab_size
        self._law = OneList.of(self.greens, self.vocab_size)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | {"gamma": self._asked}

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the key."""
        return f"unigram-g{self.gamma:.6g}-V{self.vocab_size}-{derive_bytes(self._key, 'fingerprint/unigram', 8).hex()}"

    def with_key(self, key: int) -> Self:
        """The same scheme and parameters under another key."""
        return type(self)(key, self.vocab_size, self._asked, self.delta)

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy key number ``index``. There are 2³² lists at most, whatever the key."""
        return self.with_key(decoy_int(seed, index, 63))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Which tokens are green: bool [V]."""
        seed = int.from_bytes(hashlib.sha256(np.int64(self._key).tobytes()).digest()[:4], "little")
        mask = np.arange(self.vocab_size) < self.greens
        np.random.default_rng(seed).shuffle(mask)
        return mask

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        return self.mask[tokens].astype(np.float64)

    def colour_ids(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint64]:
        """The token of each pair, which is all that its colour depends on: [n, 1] and [n] → unsigned [n]."""
        return self.checked(windows, tokens)[1].astype(np.uint64)

    def list_ids(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint64]:
        """The one list: [n, 1] and [n] → unsigned [n]."""
        return np.zeros(len(self.checked(windows, tokens)[1]), np.uint64)

    def green_rows(self, windows: ArrayLike) -> NDArray[np.bool_]:
        """The green tokens, the same for each window: ints [n, 1] → bool [n, V]."""
        return np.tile(self.mask, (len(self.checked_windows(windows)), 1))
