"""The numbers and permutations that a CPU ``torch.Generator`` gives, many generators at a time, by numpy alone.

That generator is MT19937 (Matsumoto and Nishimura, 1998) seeded with the low 32 bits of its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.parallel import side_by_side
from radio_utils.watermarks.base import Floats

UInt32s = NDArray[np.uint32]
Ints = NDArray[np.int64]
LARGEST_VOCABULARY = (1 << 32) // 20 - 1  # from here on torch.randperm draws 64 bits a step

_STATE, _MIDDLE = 624, 397
_STEP = _STATE - _MIDDLE  # this many new words depend on old ones only: what one array operation can make
_BLOCK = 256  # generators side by side: few enough for the second-level cache, enough to hide numpy's overhead
_SEEDED = 2048  # generators seeded together: 623 dependent steps, each of which should be worth its calls
_FEW = 80  # below this many, numpy's own generator, one at a time, is faster
_RING = 4  # steps between two moves of the state to the top of its buffer, which the cache should hold


def _initial_states(seeds: UInt32s) -> UInt32s:
    """The state of a generator after seeding, a column each: [n] → [624, n]."""
    states = np.empty((_STATE, seeds.size), np.uint32)
    states[0] = seeds
    for i in range(1, _STATE):
        row = states[i]
        np.right_shift(states[i - 1], 30, out=row)
        row ^= states[i - 1]
        row *= np.uint32(1812433253)
        row += np.uint32(i)
    return states


def _temper(words: UInt32s, out: UInt32s, scratch: UInt32s) -> None:
    """The generator's output for words of its state."""
    np.right_shift(words, 11, out=scratch)
    np.bitwise_xor(words, scratch, out=out)
    np.left_shift(out, 7, out=scratch)
    scratch &= np.uint32(0x9D2C5680)
    out ^= scratch
    np.left_shift(out, 15, out=scratch)
    scratch &= np.uint32(0xEFC60000)
    out ^= scratch
    np.right_shift(out, 18, out=scratch)
    out ^= scratch


def _state_words(states: UInt32s, count: int) -> Iterator[tuple[int, UInt32s]]:
    """The words that the first ``count`` outputs are tempered from, in pieces: (first index, [≤ 227, n]).

    A piece is a view that the next one may overwrite.
    """
    ring = np.empty((_STATE + _RING * _STEP, states.shape[1]), np.uint32)
    ring[:_STATE] = states
    mixed, twist = np.empty((2, _STEP, states.shape[1]), np.uint32)
    at = 0
    for first in range(0, count, _STEP):
        if at == _RING * _STEP:
            ring[:_STATE] = ring[at:]
            at = 0
        this, following = ring[at : at + _STEP], ring[at + 1 : at + 1 + _STEP]
        np.bitwise_xor(this, following, out=mixed)  # the top bit of this, the others of the following word
        mixed &= np.uint32(0x7FFFFFFF)
        mixed ^= this
        mixed >>= np.uint32(1)
        np.bitwise_and(following, 1, out=twist)
        twist *= np.uint32(0x9908B0DF)
        mixed ^= twist
        new = ring[at + _STATE : at + _STATE + _STEP]
        np.bitwise_xor(mixed, ring[at + _MIDDLE : at + _STATE], out=new)
        yield first, new[: count - first]
        at += _STEP


def outputs(seed: int, count: int, generator: np.random.RandomState | None = None) -> UInt32s:
    """The first ``count`` outputs of one generator; making ``generator`` anew costs more than seeding it."""
    generator = generator or np.random.RandomState()
    generator.seed(seed)
    words: UInt32s = np.frombuffer(generator.bytes(4 * count), "<u4")
    return words


def permutation(seed: int, size: int, count: int) -> Ints:
    """The first ``count`` entries of ``torch.randperm(size)`` under one seed: as many steps of its shuffle."""
    entries, moved = np.empty(count, np.int64), dict[int, int]()  # moved: the entries not at home
    targets = np.arange(count) + outputs(seed, count) % np.arange(size, size - count, -1)
    for step, target in enumerate(targets.tolist()):
        entries[step] = moved.get(target, target)
        moved[target] = moved.pop(step, step)
    return entries


def _blocks(seeds: UInt32s) -> Iterator[tuple[slice, UInt32s | None]]:
    """Slices of the seeds to work on together, with their states; no states where there are only few."""
    if seeds.size < _FEW:
        if seeds.size:
            yield slice(0, seeds.size), None
        return
    for begin in range(0, seeds.size, _SEEDED):
        states = _initial_states(seeds[begin : begin + _SEEDED])
        for offset in range(0, states.shape[1], _BLOCK):
            part = states[:, offset : offset + _BLOCK]
            yield slice(begin + offset, begin + offset + part.shape[1]), part


_Block = tuple[slice, UInt32s | None, Ints, Ints]


def _for_each(work: Callable[[_Block], None], blocks: Iterable[_Block]) -> None:
    """Work on every block, on several of them at a time where there are many."""
    for _ in side_by_side(work, blocks):
        pass


class _Pairs:
    """Distinct (generator seed, token) pairs, grouped by seed: ``inverse`` leads back from them."""

    def __init__(self, seeds: UInt32s, tokens: Ints) -> None:
        keys, self.inverse = np.unique(with_tokens(seeds, tokens), return_inverse=True)
        self.tokens = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        owners = (keys >> np.uint64(32)).astype(np.uint32)
        first = np.flatnonzero(np.diff(owners, prepend=~owners[:1]))
        self.seeds = owners[first]
        self.counts = np.diff(first, append=owners.size)
        self.largest = self.tokens[first + self.counts - 1]
        self.owner = np.repeat(np.arange(first.size), self.counts)

    def reorder(self, order: Ints) -> Ints:
        """Put the seeds in that order; returns the pairs' indices, grouped by seed in the new order."""
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        self.seeds, self.counts, self.largest = self.seeds[order], self.counts[order], self.largest[order]
        self.owner = rank[self.owner]
        return np.argsort(self.owner, kind="stable")

    def per_block(self, order: Ints) -> Iterator[_Block]:
        """(slice of the reordered seeds, their states, indices of their pairs, the pairs' columns) of each block."""
        pairs = self.reorder(order)
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        for block, states in _blocks(self.seeds):
            chosen = pairs[ends[block.start] : ends[block.stop]]
            yield block, states, chosen, self.owner[chosen] - block.start


# ---------------------------------------------------------------------------------------------------------------------
# torch.rand: an output's low 24 bits are one float32


def uniforms_of(seeds: UInt32s, tokens: Ints) -> Floats:
    """Entry ``token`` of ``torch.rand(V)`` under each seed, exactly: multiples of 2⁻²⁴ in [0, 1)."""
    pairs = _Pairs(seeds, tokens)
    words = np.empty(pairs.tokens.size, np.uint32)

    def work(item: _Block) -> None:
        _, states, chosen, columns = item
        wanted = pairs.tokens[chosen]
        if states is None:
            generator = np.random.RandomState()
            for column, (seed, largest) in enumerate(zip(pairs.seeds.tolist(), pairs.largest.tolist(), strict=True)):
                mine = columns == column
                words[chosen[mine]] = outputs(seed, largest + 1, generator)[wanted[mine]]
            return
        by_token = np.argsort(wanted, kind="stable")
        chosen, columns, wanted = chosen[by_token], columns[by_token], wanted[by_token]
        raw, done = np.empty(chosen.size, np.uint32), 0
        for first, rows in _state_words(states, int(wanted[-1]) + 1):
            end = int(np.searchsorted(wanted, first + rows.shape[0]))
            if end > done:
                raw[done:end] = rows[wanted[done:end] - first, columns[done:end]]
                done = end
        _temper(raw, raw, np.empty_like(raw))
        words[chosen] = raw

    # generators that are asked for like tokens go together: a block runs as far as its largest token
    _for_each(work, pairs.per_block(np.argsort(pairs.largest, kind="stable")))
    values: Floats = (words & np.uint32((1 << 24) - 1)).astype(np.float64) * 2.0**-24
    return values[pairs.inverse]


# ---------------------------------------------------------------------------------------------------------------------
# torch.randperm: step i exchanges the entries at i and at its target i + (output mod (V − i))


def _targets(seeds: UInt32s, states: UInt32s | None, vocab_size: int, steps: int) -> NDArray[Any]:
    """Targets of the first ``steps`` exchanges of each generator's shuffle: unsigned [steps, n]."""
    # half the bytes are half the time of every comparison; the vocabulary's size itself must fit too
    kind = np.uint16 if vocab_size < 1 << 16 else np.uint32
    targets = np.empty((steps, seeds.size), kind)
    left = np.arange(vocab_size, vocab_size - steps, -1, dtype=np.uint32)
    if states is None:
        generator = np.random.RandomState()
        for column, seed in enumerate(seeds.tolist()):
            targets[:, column] = outputs(seed, steps, generator) % left + np.arange(steps, dtype=np.uint32)
        return targets
    # ⌊x / n⌋ by a reciprocal that is rounded up: exact, as x / n is 1 / n or more below the next whole number
    reciprocals = np.nextafter(1.0 / left, 1.0)[:, None]
    small, at = left.astype(kind)[:, None], np.arange(steps, dtype=kind)[:, None]
    shape = (_STEP, seeds.size)
    words, scratch, ratio = np.empty(shape, np.uint32), np.empty(shape, np.uint32), np.empty(shape, np.float64)
    quotient, product = scratch.view(np.int32), np.empty(shape, kind)  # below 2³¹: at least two entries are left
    for first, rows in _state_words(states, steps):
        n = rows.shape[0]
        f, p, piece = ratio[:n], product[:n], slice(first, first + n)
        out = targets[piece]
        _temper(rows, words[:n], scratch[:n])
        np.copyto(f, words[:n])
        f *= reciprocals[piece]
        np.copyto(quotient[:n], f, casting="unsafe")
        np.copyto(p, quotient[:n], casting="unsafe")
        np.copyto(out, words[:n], casting="unsafe")
        p *= small[piece]  # x − ⌊x / n⌋ n + i wraps on the way, but its value fits
        out -= p
        out += at[piece]
    return targets


def _last_steps(targets: NDArray[Any], vocab_size: int, columns: Ints, positions: Ints) -> Ints:
    """The last step of each column whose target is the position, −1 for none. ``columns`` are sorted."""
    steps, width = targets.shape
    index = np.arange(columns.size)
    rank = index - np.maximum.accumulate(np.where(np.diff(columns, prepend=-1) != 0, index, 0))
    result = np.full(columns.size, -1, np.int64)
    for place in range(int(rank.max(initial=-1)) + 1):
        asked = np.flatnonzero(rank == place)
        if asked.size * 8 < width:  # comparing whole blocks does not pay for so few: the rest by tables
            rest = np.flatnonzero(rank >= place)
            for column in np.unique(columns[rest]):
                mine = rest[columns[rest] == column]
                result[mine] = _table(targets[:, column], vocab_size)[positions[mine]]
            break
        rows = min(steps, int(positions[asked].max()) + 1)  # a target is never before its step
        probe = np.full(width, vocab_size, targets.dtype)
        probe[columns[asked]] = positions[asked]
        hit, column_hit = np.divmod(np.flatnonzero(targets[:rows] == probe), width)
        last = np.full(width, -1, np.int64)
        last[column_hit] = hit  # in ascending order: the last assignment stays
        result[asked] = last[columns[asked]]
    return result


def _table(targets: NDArray[Any], vocab_size: int) -> Ints:
    """The last step at which each position is a target, −1 for none."""
    table = np.full(vocab_size, -1, np.int64)
    table[targets] = np.arange(targets.size)  # in ascending order: the last assignment stays
    return table


def _selected(positions: Ints, steps: int, last: Callable[[Ints, Ints], Ints], target: Callable[[Ints, Ints], Ints]) -> Any:
    """Whether entries that start at the positions end up among the first ``steps``: bool [n].

    An entry is selected at the step whose target is where it lies. Until then it moves only when its own slot is filled,
    to that step's target. ``last(which, positions)`` and ``target(which, steps)`` look these up for some of the entries.
    """
    green = np.zeros(positions.size, np.bool_)
    which, begin = np.arange(positions.size), np.zeros(positions.size, np.int64)
    while which.size:
        found = last(which, positions) >= begin  # earlier steps had another entry there
        green[which[found]] = True
        moved = ~found & (positions < steps)
        which, slots = which[moved], positions[moved]
        positions, begin = target(which, slots), slots + 1
    return green


def colours(seeds: UInt32s, tokens: Ints, vocab_size: int, steps: int) -> NDArray[np.bool_]:
    """Whether the token is among the first ``steps`` of ``torch.randperm(V)`` under each seed."""
    pairs = _Pairs(seeds, tokens)
    green = np.empty(pairs.tokens.size, np.bool_)

    def work(item: _Block) -> None:
        block, states, chosen, columns = item
        targets = _targets(pairs.seeds[block], states, vocab_size, steps)
        green[chosen] = _selected(
            pairs.tokens[chosen],
            steps,
            lambda which, at: _last_steps(targets, vocab_size, columns[which], at),
            lambda which, at: targets[at, columns[which]].astype(np.int64),
        )

    # generators with many tokens together, then those with like tokens: blocks are compared once for each token of one
    _for_each(work, pairs.per_block(np.lexsort((pairs.largest, -pairs.counts))))
    return green[pairs.inverse]


def colour_rows(seeds: UInt32s, vocab_size: int, steps: int) -> NDArray[np.bool_]:
    """The whole list of each seed: bool [n, V]."""
    distinct, inverse = np.unique(seeds, return_inverse=True)
    rows = np.empty((distinct.size, vocab_size), np.bool_)
    for block, states in _blocks(distinct):
        targets = _targets(distinct[block], states, vocab_size, steps)
        for column in range(targets.shape[1]):
            own = targets[:, column].astype(np.int64)
            table = _table(targets[:, column], vocab_size)
            rows[block.start + column] = _selected(
                np.arange(vocab_size),
                steps,
                lambda which, at, table=table: table[at],  # type: ignore[misc]
                lambda which, at, own=own: own[at],  # type: ignore[misc]
            )
    return rows[inverse]


def low_bits(seeds: NDArray[np.uint64]) -> UInt32s:
    """What a CPU ``torch.Generator`` keeps of its seed."""
    return (seeds & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def low_bits_of_signed(seeds: Ints) -> UInt32s:
    """The same of signed seeds, as torch reduces them modulo 2⁶⁴ − 1: a negative one is one less."""
    return low_bits(np.where(seeds < 0, seeds.view(np.uint64) - np.uint64(1), seeds.view(np.uint64)))


def low_bits_of_products(key: int, values: Ints) -> UInt32s:
    """The same of key·value modulo 2⁶⁴ − 1, multiplied as Python does: [n] → [n]."""
    distinct, inverse = np.unique(values, return_inverse=True)
    products = [key * value % ((1 << 64) - 1) for value in distinct.tolist()]
    return low_bits(np.array(products, np.uint64))[inverse.reshape(values.shape)]


def with_tokens(seeds: NDArray[np.unsignedinteger[Any]], tokens: Ints) -> NDArray[np.uint64]:
    """Seed and token in one number: both have 32 bits at most."""
    return seeds.astype(np.uint64) << np.uint64(32) | tokens.astype(np.uint64)
