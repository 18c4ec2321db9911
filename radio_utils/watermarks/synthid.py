"""SynthID-Text as transformers writes it, with its true null law, and as its authors' reference does.

S. Dathathri et al., *Scalable watermarking for identifying large language model outputs*, Nature 634, 2024. An n-gram (the
context and the candidate) has a hash h, made by a linear congruential generator without the keys; key l gives its layer l
one bit g_l. The score of a pair is the number of ones, or their weighted sum.

transformers looks bit l up in a table T of fixed bits, at ((h + key_l)·a + 1) mod |T| with a = 6364136223846793005. For a
table of 2^b bits all layers thus depend on u = h·a mod |T| alone. That has three consequences:

* There are only |T| = 65,536 different pairs of evidence. Pairs with one u are one trial (:meth:`SynthID.colour_ids`).
* The law of a score is no sum of fair bits, but the histogram of Σ_l T[u + 1 + a·key_l] over all u (:attr:`SynthID.law`).
  The table's mean is not ½ (0.49962 for table seed 0, 0.49783 for seed 2): of a long text Bin(mn, ½) says that it is
  marked though it is not, or the reverse.
* Once a text has shown most of the u there are, which of them it showed says nothing any more; how often says all.
  :meth:`SynthID.judged_by_counts` tests that, exactly for keys drawn at random, whatever the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from radio_utils.stats.laws import Histogram, fair_bits
from radio_utils.stats.weighted import WeightedSum
from radio_utils.watermarks.base import Floats, check_common
from radio_utils.watermarks.engines import Ints, TournamentMark
from radio_utils.watermarks.philox import Words
from radio_utils.watermarks.prf import derive_bytes
from radio_utils.watermarks.torch_random import outputs

_A = 6364136223846793005
_MULTIPLIER, _ONE = np.uint64(_A), np.uint64(1)
_WORD = 1 << 64
LARGEST_TABLE = 1 << 24  # transformers' own limit
_DRAWS = 1 << 18


class _Layered(TournamentMark):
    """What both have in common: an n-gram's hash, one key of 64 bits for each layer."""

    missing = 0
    law_of_key = True
    _first = np.uint64(1)  # the hash of nothing

    def _set_up(self, keys: Sequence[int], vocab_size: int, window: int) -> None:
        check_common(vocab_size, window)
        if isinstance(keys, str | bytes) or not isinstance(keys, Sequence | np.ndarray) or not len(keys):
            raise ValueError("keys must be a list of integers, one for each layer; give the engine's keys")
        for number, key in enumerate(keys):
            if isinstance(key, bool) or not isinstance(key, int | np.integer):
                raise ValueError(f"keys[{number}] must be an integer, got {type(key).__name__}; give the engine's keys")
            if not -(1 << 63) <= key < 1 << 63:
                raise ValueError(
                    f"keys[{number}] has {int(key).bit_length()} bits; torch holds keys in signed integers of 64 bits"
                )
        self.vocab_size, self.window = int(vocab_size), int(window)
        self._keys = tuple(int(key) for key in keys)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """The number of layers."""
        return len(self._keys)

    def _digest(self, what: str) -> str:
        return derive_bytes("/".join(map(str, self._keys)), f"fingerprint/{what}", 8).hex()

    def _decoys(self, seed: int, index: int) -> list[int]:
        material = derive_bytes(f"decoy/{seed}/{index}", "decoy/synthid", 8 * self.depth)
        return [int.from_bytes(material[at : at + 8], "little", signed=True) for at in range(0, len(material), 8)]

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy keys number ``index``."""
        return self.with_key(self._decoys(seed, index))

    @staticmethod
    def _step(hashes: Words, ids: Words) -> Words:
        return np.asarray((hashes + ids) * _MULTIPLIER + _ONE, np.uint64)

    def _hash_windows(self, windows: Ints) -> Words:
        """The hash after the context: [n, k] → uint64 [n]; what is missing before the start counts as 0, as there."""
        h = np.full(windows.shape[:-1], self._first, np.uint64)
        for column in np.moveaxis(windows, -1, 0):
            h = self._step(h, np.where(column < 0, 0, column).astype(np.uint64))
        return h

    def _hash(self, windows: Ints, tokens: Ints) -> Words:
        return self._step(self._hash_windows(windows), tokens.astype(np.uint64))

    def _row_hashes(self, windows: ArrayLike) -> Words:
        context = self._hash_windows(self.checked_windows(windows))[:, None]
        return self._step(context, np.arange(self.vocab_size, dtype=np.uint64))


class SynthID(_Layered):
    """transformers' ``SynthIDTextWatermarkingConfig``: the same bits as its processor's.

    ``keys`` are one integer a layer, ``window`` is ``ngram_len − 1``, ``table_seed`` and ``table_size`` are
    ``sampling_table_seed`` and ``sampling_table_size``. The table is the one that a CPU makes; a GPU makes another one from
    the same seed: give that ``table`` itself, |T| bits, for text that was marked on a GPU
    (``processor.sampling_table.cpu().numpy()``). With ``weighted`` the score is the weighted mean of transformers'
    detector, with weights from 10 to 1, times the depth.

    Contexts cover generated tokens; what is missing before the start counts as token 0, and a context that is among the
    last ``context_history_size`` of the answer leaves its position unmarked. Source: transformers 5.23,
    ``SynthIDTextWatermarkLogitsProcessor``.
    """

    scheme = "synthid"
    one_list_a_window = False

    def __init__(
        self,
        keys: Sequence[int],
        vocab_size: int,
        window: int = 4,
        *,
        table_seed: int = 0,
        table_size: int = 1 << 16,
        table: ArrayLike | None = None,
        weighted: bool = False,
        context_history_size: int = 1024,
        skip_first_ngram_calls: bool = False,
    ) -> None:
        self._set_up(keys, vocab_size, window)
        whole = isinstance(table_size, int | np.integer) and not isinstance(table_size, bool)
        if not whole or not 2 <= table_size <= LARGEST_TABLE:
            raise ValueError(f"table_size must be an integer from 2 to 2**24 (entries of the table), got {table_size!r}")
        if isinstance(table_seed, bool) or not isinstance(table_seed, int | np.integer):
            raise ValueError(f"table_seed must be an integer, got {table_seed!r}; give the engine's sampling_table_seed")
        self.table_seed, self.weighted = int(table_seed), bool(weighted)
        self.context_history_size, self.skip_first_ngram_calls = int(context_history_size), bool(skip_first_ngram_calls)
        self.history = self.context_history_size
        self._given = None if table is None else checked_table(table)
        self.table_size = int(table_size) if self._given is None else self._given.size
        inner = self.depth - 1
        # whole-number weights: transformers' 10 … 1 times the number of steps between them
        self._weights = [10 * inner - 9 * layer for layer in range(self.depth)] if weighted and inner else [1] * self.depth
        self._unit = self.depth / sum(self._weights)

    @property
    def starts_full(self) -> bool:
        """Whether positions whose context is not full are left unmarked."""
        return self.skip_first_ngram_calls

    @property
    def _table_name(self) -> str:
        bits = f"s{self.table_seed}" if self._given is None else hashlib.sha256(self._given.tobytes()).hexdigest()[:16]
        return f"T{self.table_size}-{bits}"

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """The table T of bits: uint8 [|T|]."""
        if self._given is not None:
            return self._given
        return (outputs(self.table_seed & 0xFFFFFFFF, self.table_size) % np.uint32(2)).astype(np.uint8)

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | {"depth": self.depth, "table": self._table_name, "weighted": self.weighted}

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the keys."""
        kind = "synthid-weighted" if self.weighted else "synthid"
        shape = f"k{self.window}-m{self.depth}-{self._table_name}-V{self.vocab_size}"
        return f"{kind}-{shape}-{self._digest('synthid')}"

    def with_key(self, key: Sequence[int]) -> Self:
        """The same scheme and parameters under other keys, as many."""
        return type(self)(
            key, self.vocab_size, self.window, table_seed=self.table_seed, table_size=self.table_size, table=self._given,
            weighted=self.weighted, context_history_size=self.context_history_size,
            skip_first_ngram_calls=self.skip_first_ngram_calls,
        )  # fmt: skip

    @property
    def _wraps(self) -> bool:
        """Whether a hash modulo |T| depends on how often it passed 2⁶⁴: not for tables of 2^b bits."""
        return _WORD % self.table_size != 0

    @cached_property
    def _arcs(self) -> tuple[list[int], list[list[int]]]:
        """Where H = h·a + 1 changes what layers see: the arcs' first H, and for each arc what each layer adds to H mod |T|.

        Layer l looks at the signed word of H + a·key_l modulo |T|. The sum passes 2⁶³, and then 2⁶⁴, as H grows; each time
        −2⁶⁴ is added to it.
        """
        added = [key * _A % _WORD for key in self._keys]
        cuts = {0}
        for step in added if self._wraps else []:
            cuts |= {(bound - step) % _WORD for bound in (1 << 63, 0)}
        starts = sorted(cuts)
        offsets = []
        for start in starts:
            words = [(start + step) % _WORD for step in added]
            signed = [word - _WORD if word >> 63 else word for word in words]
            offsets.append([(value - start) % self.table_size for value in signed])
        return starts, offsets

    @cached_property
    def _by_residue(self) -> NDArray[np.int64]:
        """The score in units of each evidence, arc by arc: [arcs, |T|], by H mod |T|."""
        starts, offsets = self._arcs
        twice = np.concatenate([self.table, self.table]).astype(np.int64)
        rows = np.zeros((len(starts), self.table_size), np.int64)
        for number, own in enumerate(offsets):
            row = rows[number]
            if number:
                row += rows[number - 1]  # few layers change from arc to arc
            for layer, (weight, offset) in enumerate(zip(self._weights, own, strict=True)):
                before = offsets[number - 1][layer] if number else None
                if before != offset:
                    row += weight * twice[offset : offset + self.table_size]
                    if before is not None:
                        row -= weight * twice[before : before + self.table_size]
        return rows

    @cached_property
    def law(self) -> Histogram:
        """The histogram of scores over all evidence: exact for hashes that are uniform, whatever table and keys."""
        starts, _ = self._arcs
        lengths = np.diff([*starts, _WORD])
        found: dict[int, float] = {}
        for row, length in zip(self._by_residue, lengths, strict=True):
            counts = np.bincount(row)  # scores are small whole numbers
            values = np.flatnonzero(counts)
            shares = counts[values] / row.size * (int(length) / _WORD)
            for value, share in zip(values.tolist(), shares.tolist(), strict=True):
                found[value] = found.get(value, 0.0) + share
        kept = sorted(value for value, share in found.items() if share > 0)
        total = sum(found[value] for value in kept)
        if len(kept) < 2:
            raise ValueError("all evidence has one score under these keys and this table; check table_size")
        return Histogram(tuple(kept), tuple(found[value] / total for value in kept), self._unit)

    def _evidence(self, hashes: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The arc and H mod |T| of each hash h."""
        places = hashes * _MULTIPLIER + _ONE
        starts = np.array(self._arcs[0], np.uint64)
        arcs = np.searchsorted(starts, places, side="right") - 1 if starts.size > 1 else np.zeros(places.shape, np.int64)
        return arcs.astype(np.int64), (places % np.uint64(self.table_size)).astype(np.int64)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        arcs, residues = self._evidence(self._hash(windows, tokens))
        return np.asarray(self._by_residue[arcs, residues] * self._unit, np.float64)

    def colour_ids(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint64]:
        """The evidence u of each pair, on which all of its bits depend: [n, k] and [n] → unsigned [n]."""

        def ids(w: Ints, t: Ints) -> NDArray[np.uint64]:
            arcs, residues = self._evidence(self._hash(w, t))
            return (arcs * self.table_size + residues).astype(np.uint64)

        return self._in_blocks(ids, windows, tokens)  # type: ignore[no-any-return]

    def g_values(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint8]:
        """The bits of each pair, as transformers' ``compute_g_values``: [n, k] and [n] → [n, layers]."""

        def bits(w: Ints, t: Ints) -> NDArray[np.uint8]:
            arcs, residues = self._evidence(self._hash(w, t))
            found: NDArray[np.uint8] = self.table[(residues[:, None] + np.array(self._arcs[1])[arcs]) % self.table_size]
            return found

        return self._in_blocks(bits, windows, tokens)  # type: ignore[no-any-return]

    def bit_rows(self, windows: ArrayLike) -> Iterator[NDArray[np.bool_]]:
        """The bits of every token for each window, [n, V], layer after layer."""
        arcs, residues = self._evidence(self._row_hashes(windows))
        offsets = np.array(self._arcs[1])
        for layer in range(self.depth):
            yield self.table[(residues + offsets[arcs, layer]) % self.table_size].astype(np.bool_)

    @cached_property
    def colours(self) -> int | None:
        """How many different evidences there are, for schemes that :meth:`judged_by_counts` tests; else None.

        Those are tables of 2^b bits and unweighted scores, with keys that differ modulo |T|: equal keys make equal layers.
        """
        layers = {key % self.table_size for key in self._keys}
        return None if self._wraps or self.weighted or len(layers) < self.depth else self.table_size

    def judged_by_counts(self, counts: Ints, keys: Sequence[Any]) -> tuple[Floats, Floats, Floats]:
        """Total scores under each of ``keys`` of pairs of which counts[u] have the evidence u, and two log10 tails: [keys].

        The tails are log10 P(S ≥ total) and log10 P(S > total), exact for keys drawn at random, given the pairs. Let N_u be
        the counts. Under a random key a layer's total is Σ_u N_u·T[u + c] with c uniform, and layers are independent: their
        sum's law is a convolution of |T| equally likely values. Nothing is assumed of the text, pairs need not be distinct,
        and nothing is lost where a long text has shown every u. Raises ``ValueError`` where :attr:`colours` is None; among
        keys that were drawn at random equal layers belong to the law.
        """
        if self.colours is None:
            raise ValueError("the test by counts is for unweighted scores, tables of 2**b bits and layers that all differ")
        spectrum = np.conj(fft.rfft(counts.astype(np.float64))) * fft.rfft(self.table.astype(np.float64))
        layer = np.rint(fft.irfft(spectrum, self.table_size)).astype(np.int64)
        values, number = np.unique(layer, return_counts=True)
        law = WeightedSum(np.array([1]), np.array([self.depth]), values - values[0], number / number.sum())
        totals = np.array([int(counts @ wm._by_residue[0]) for wm in keys])
        above = totals - self.depth * int(values[0])
        if len(keys) > 4:
            return totals.astype(np.float64), law.log10_many(above), law.log10_many(above + 1)
        tails = np.array([[law.log10_exact(int(one) + more) for one in above] for more in (0, 1)])
        return totals.astype(np.float64), np.minimum(tails[0], 0.0), np.minimum(tails[1], 0.0)


def checked_table(table: ArrayLike) -> NDArray[np.uint8]:
    """A table of bits, or ``ValueError``."""
    if hasattr(table, "device") and str(getattr(table, "device", "cpu")) != "cpu":
        raise ValueError(f"table lies on {table.device}; give table.cpu(), whose bits are those of the GPU's own table")
    bits = np.asarray(table)
    if bits.ndim != 1 or not 2 <= bits.size <= LARGEST_TABLE or not np.isin(bits, (0, 1)).all():
        raise ValueError(f"table must be a row of 2 to 2**24 bits, the engine's sampling_table, got {list(bits.shape)}")
    return bits.astype(np.uint8)


class SynthIDReference(_Layered):
    """The hash of SynthID's authors' current reference: bits from twelve more rounds instead of a table.

    The first hash is SHA-256 of the keys; each layer's key is hashed in, then twelve times x ← (x + 1)·a + 1, shifted right
    by 5 with its sign, and the bit is number 30 of x. ``keys``, ``window`` and ``context_history_size`` as in
    :class:`SynthID`; so are contexts. The score is the number of ones.

    Each bit is fair, but layers are not independent: for 30 random keys the variance of a score was 0.97 to 1.11 times that
    of fair bits (two layers' bits have correlations of up to 0.1, which the keys' difference sets). No exact law is known;
    :attr:`law` is estimated for these keys, from 2¹⁸ uniform hashes and made symmetric, so that its mean is right. Source:
    google-deepmind/synthid-text, commit addb4a15, ``logits_processing.py``; release 0.2.1 has transformers' table instead.
    """

    scheme = "synthid reference"
    _draws = _DRAWS

    def __init__(self, keys: Sequence[int], vocab_size: int, window: int = 4, *, context_history_size: int = 1024) -> None:
        self._set_up(keys, vocab_size, window)
        self.history = self.context_history_size = int(context_history_size)
        digest = hashlib.sha256(np.array(self._keys, np.int64).tobytes()).digest()
        self._first = np.uint64(int.from_bytes(digest, "big") % ((1 << 63) - 1))

    @cached_property
    def law(self) -> Histogram:
        """The law of a score under these keys, estimated: an approximation."""
        hashes = np.random.default_rng(0).integers(0, (1 << 64) - 1, self._draws, np.uint64, endpoint=True)
        scores = np.sum([self._layer(hashes, key) for key in self._keys], axis=0)
        counts = np.bincount(scores, minlength=self.depth + 1).astype(np.float64)
        # one more draw of fair bits: what was never drawn is not impossible
        chances = ((counts + counts[::-1]) / 2 + np.array(fair_bits(self.depth).chances)) / (self._draws + 1)
        return Histogram(tuple(range(self.depth + 1)), tuple((chances / chances.sum()).tolist()))

    @property
    def parameters(self) -> dict[str, Any]:
        """All that scores depend on but the keys and the law."""
        return super().parameters | {"depth": self.depth}

    @property
    def fingerprint(self) -> str:
        """Scheme, parameters and a hash of the keys."""
        return f"synthid-reference-k{self.window}-m{self.depth}-V{self.vocab_size}-{self._digest('synthid-reference')}"

    def with_key(self, key: Sequence[int]) -> Self:
        """The same scheme and parameters under other keys, as many."""
        return type(self)(key, self.vocab_size, self.window, context_history_size=self.context_history_size)

    def with_decoy(self, seed: int, index: int) -> Self:
        """The same scheme under decoy keys number ``index``; their law has fewer draws, as audits have many decoys."""
        decoy = super().with_decoy(seed, index)
        decoy._draws = _DRAWS >> 4
        return decoy

    def _layer(self, hashes: Words, key: int) -> NDArray[np.bool_]:
        x = ((hashes + np.uint64(key % _WORD)) * _MULTIPLIER + _ONE).view(np.int64)
        for _ in range(12):
            x = ((x.view(np.uint64) + _ONE) * _MULTIPLIER + _ONE).view(np.int64) >> np.int64(5)
        return (x >> np.int64(30) & np.int64(1)).astype(np.bool_)

    def _scores(self, windows: Ints, tokens: Ints) -> Floats:
        hashes = self._hash(windows, tokens)
        total = np.zeros(tokens.size, np.int64)
        for key in self._keys:
            total += self._layer(hashes, key)
        return total.astype(np.float64)

    def g_values(self, windows: ArrayLike, tokens: ArrayLike) -> NDArray[np.uint8]:
        """The bits of each pair: [n, k] and [n] → [n, layers]."""
        w, t = self.checked(windows, tokens)
        hashes = self._hash(w, t)
        return np.stack([self._layer(hashes, key) for key in self._keys], axis=1).astype(np.uint8)

    def bit_rows(self, windows: ArrayLike) -> Iterator[NDArray[np.bool_]]:
        """The bits of every token for each window, [n, V], layer after layer."""
        hashes = self._row_hashes(windows)
        return (self._layer(hashes, key) for key in self._keys)
