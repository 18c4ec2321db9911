"""What a model expects along texts, and which of its predictions may be scored.

Reading mode feeds B text that was *marked* under the key, and lists are kept *sealed*: every text is followed until it
stands before a list that nothing followed so far was drawn from; one of these is opened, the one with the most different
predictions before it, all of which are scored; and a text that comes to a list that is open already passes it. Where a
window is not known, its draw is hidden, and in that text its token is not scored after any window that could have been the
hidden one. Why the p-value is then exact is said on the page "When is a p-value valid?".
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev
from radio_utils.files import written
from radio_utils.watermarks import Watermark

Ids = NDArray[np.int64]
_AT_ONCE = 1 << 22  # pairs whose colours are named at once


@dataclass(frozen=True, eq=False)
class Predictions:
    """B's likeliest next token at each place of each context. No key plays a part.

    ``contexts`` are what B was fed, int64 [n_i] each: a prompt and a text. In a prompt −1 stands where something may be
    missing (:data:`radio_utils.evidence.GAP`); B was fed nothing there. ``starts`` [texts] tell where the text begins.
    ``tokens`` [n_i + 1] each hold at place t what B expects after the first t tokens, −1 where that is not known or not
    asked: before the text, and where there is no context at all. The last place comes after the last token.
    """

    contexts: tuple[Ids, ...]
    starts: Ids
    tokens: tuple[Ids, ...]

    def __post_init__(self) -> None:
        if not len(self.contexts) == len(self.tokens) == self.starts.size:
            raise ValueError(
                f"contexts, starts and tokens must be equal in number, got {len(self.contexts)}, {self.starts.size} and "
                f"{len(self.tokens)}"
            )
        for i, (context, tokens) in enumerate(zip(self.contexts, self.tokens, strict=True)):
            if tokens.size != context.size + 1:
                raise ValueError(
                    f"tokens[{i}] must hold one prediction for each of {context.size + 1} places, got {tokens.size}"
                )

    def merge(self, *others: Predictions) -> Predictions:
        """The predictions of all shards of a corpus, in their order."""
        parts = (self, *others)
        return Predictions(
            tuple(itertools.chain.from_iterable(one.contexts for one in parts)),
            np.concatenate([one.starts for one in parts]),
            tuple(itertools.chain.from_iterable(one.tokens for one in parts)),
        )

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file, all or nothing."""
        sizes = np.array([context.size for context in self.contexts], np.int64)
        with written(path) as file:
            np.savez(file, ids=_flat(self.contexts), sizes=sizes, starts=self.starts, tokens=_flat(self.tokens))

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            ids, sizes, starts, tokens = (file[name].astype(np.int64) for name in ("ids", "sizes", "starts", "tokens"))
        cuts = np.cumsum(sizes)[:-1]
        if sizes.size == 0:
            return cls((), starts, ())
        return cls(
            tuple(np.split(ids, cuts)), starts, tuple(np.split(tokens, cuts + np.arange(1, sizes.size)))
        )  # fmt: skip

    def evidence(
        self,
        window: int,
        vocab_size: int,
        *,
        shared: Watermark | None = None,
        keep: ArrayLike | None = None,
        dedup: ev.Dedup = "window+token",
        skip_seen: bool = True,
        full_context: bool = False,
        from_start: bool = False,
        places_of: Predictions | None = None,
    ) -> ev.Evidence:
        """The (window, prediction) pairs that may be scored.

        No key has a say, except with schemes in which windows share their draws: ``shared`` is then the watermark, and what
        counts is the list, or the colour, that was opened (:func:`radio_utils.evidence.shared_by`).

        No window reaches across −1 in a prompt, and what was drawn just after it is hidden, as it is at a prompt's start. A
        text just after it is no whole answer, whatever ``from_start`` says.

        ``keep`` is the filter φ [m, k]. ``full_context`` says that each prompt ends with the very tokens that Alice's model
        had before the text, and that the prompt's own beginning was not drawn under the key; otherwise a template may stand
        between the two, and before the prompt, and draws there are hidden. ``skip_seen=False`` scores every place, which is
        sound only where the text knows nothing of the key: it is there to show why. ``from_start`` says that each text is a
        whole answer of an engine whose contexts begin with the answer (:attr:`Watermark.marks_start`): windows then hold −1
        in place of the prompt, and nothing is hidden at the answer's start. ``places_of``, another model's
        predictions of the same texts, chooses the places in this one's stead: two models are then scored at the same ones.

        Raises ``ValueError`` where ``places_of`` is of other texts.
        """
        packing = ev.Packing(window, vocab_size)
        collector = ev.Collector(packing, keep=keep, dedup=dedup)
        places = Places.of(self, window, full_context, from_start)
        leader = places if places_of is None else Places.of(places_of, window, full_context, from_start)
        if not (np.array_equal(leader.ids, places.ids) and np.array_equal(leader.asked, places.asked)):
            raise ValueError("places_of must be predictions of the same texts; let both models read the same ones")
        chosen = places.known & (places.predicted >= 0)
        if skip_seen:
            chosen &= leader.sealed(shared)
            chosen[chosen] = ~places.explained(chosen, any_window=shared is not None)
        windows, tokens = places.windows(chosen), places.predicted[chosen]
        collector.add_words(packing.pack_pairs(windows, tokens), int(np.count_nonzero(places.asked)))
        return collector.evidence()


def _flat(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Places:
    """All places of all contexts, one after the other: place t of context i is at ``begins[i] + t``."""

    ids: Ids  # the contexts, which may hold gaps, each followed by −1: a place's window ends just before it
    window: int
    begins: Ids
    sizes: Ids  # places of each context
    predicted: Ids
    asked: NDArray[np.bool_]  # in the text and not before the first token
    known: NDArray[np.bool_]  # asked, and the window is what a draw here depended on
    drawn: NDArray[np.bool_]  # a token follows that was drawn after this window
    hidden: list[tuple[int, Ids, int]]  # drawn after unknown windows: the text, how such a window ends, the token
    from_start: Ids | None = (
        None  # of each place the first place of its window that is no −1, where windows begin with texts
    )

    @classmethod
    def of(cls, found: Predictions, window: int, full_context: bool, from_start: bool = False) -> Places:
        """The places of predictions; ``full_context`` and ``from_start`` are those of :meth:`Predictions.evidence`."""
        sizes = np.array([tokens.size for tokens in found.tokens], np.int64)
        begins = np.cumsum(sizes) - sizes
        ids = _flat([np.append(context, -1) for context in found.contexts])
        predicted = _flat(found.tokens)
        every = np.arange(ids.size)
        of, first = np.repeat(np.arange(sizes.size), sizes), np.repeat(begins, sizes)
        start = first + np.repeat(found.starts, sizes)  # of each place the first one of its text
        in_text, drawn = every >= start, ids >= 0
        # of each place the first one of the tokens that are known to have stood before it, one after the other
        known = np.maximum.accumulate(np.concatenate([[0], np.where(drawn, 0, every + 1)]))[:-1] if ids.size else every
        opening = known == first  # no gap precedes
        if not (full_context or from_start):
            known = np.where(in_text, np.maximum(known, start), known)
        whole = every - known >= window
        if from_start:
            whole |= in_text & ((start == first) | drawn[start - 1])
        before: Ids = np.cumsum(drawn) - drawn
        asked = in_text & (before > before[first])
        unseen = drawn & ~whole
        if full_context:
            unseen &= in_text | ~opening
        hidden = [(int(of[p]), ids[known[p] : p], int(ids[p])) for p in np.flatnonzero(unseen).tolist()]
        limits = np.where(in_text, start, 0) if from_start else None
        return cls(ids, window, begins, sizes, predicted, asked, asked & whole, drawn & whole, hidden, limits)

    @classmethod
    def of_texts(
        cls, contexts: Sequence[Ids], starts: Ids, window: int, full_context: bool, from_start: bool = False
    ) -> Places:
        """Where it is not asked what B predicts: each text counts as a prediction of its own."""
        tokens = tuple(np.full(context.size + 1, number, np.int64) for number, context in enumerate(contexts))
        return cls.of(Predictions(tuple(contexts), starts, tokens), window, full_context, from_start)

    def windows(self, chosen: NDArray[np.bool_]) -> Ids:
        """The windows [m, k] of chosen places, which must have whole ones."""
        return self.windows_at(np.flatnonzero(chosen))

    def windows_at(self, places: Ids) -> Ids:
        """The windows [m, k] of places [m], which must have whole ones."""
        at = places[:, None] + np.arange(-self.window, 0)
        found: Ids = self.ids[at]
        return found if self.from_start is None else np.where(at < self.from_start[places][:, None], -1, found)

    def hidden_of_texts(self) -> dict[int, list[tuple[Ids, int]]]:
        """The hidden draws of each text: how the window ends, and the token."""
        found: dict[int, list[tuple[Ids, int]]] = {}
        for i, ending, token in self.hidden:
            found.setdefault(i, []).append((ending, token))
        return found

    def explained(self, chosen: NDArray[np.bool_], *, any_window: bool) -> NDArray[np.bool_]:
        """Which predictions at chosen places a hidden draw of their text gave too (``evidence.after_hidden``)."""
        pairs = self.windows(chosen), self.predicted[chosen], np.repeat(np.arange(self.sizes.size), self.sizes)[chosen]
        found = ev.after_hidden(*pairs, self.hidden, any_window=any_window)
        if self.from_start is not None:
            found |= ev.after_start(*pairs, self.prompts())
        return found

    def prompts(self) -> list[Ids]:
        """What stood before each text."""
        ends = np.cumsum(self.sizes) - 1
        firsts = self.begins if self.from_start is None else self.from_start[ends]
        return [self.ids[begin:first] for begin, first in zip(self.begins.tolist(), firsts.tolist(), strict=True)]

    def sealed(self, shared: Watermark | None) -> NDArray[np.bool_]:
        """Which places stand before a list that is sealed when they are reached: bool [places]."""
        if shared is not None and not shared.one_list_a_window:
            return _fresh_colours(self, shared)
        whole = self.known | self.drawn
        lists = np.full(self.ids.size, -1, np.int64)
        windows = self.windows(whole)
        if shared is not None:
            names = shared.colour_ids(windows, np.zeros(len(windows), np.int64))
            lists[whole] = np.unique(names, return_inverse=True)[1]
        elif len(windows):
            lists[whole] = np.unique(windows, axis=0, return_inverse=True)[1].ravel()
        return _opened_in_turn(lists, np.where(self.known, self.predicted, -1), self.begins, self.sizes)


def _opened_in_turn(lists: Ids, predicted: Ids, begins: Ids, sizes: Ids) -> NDArray[np.bool_]:
    """Follow all texts at once and open one list after the other: which places stood before a sealed one.

    ``lists`` number the list of each place, −1 for none; ``predicted`` are the predictions, −1 for none. The next list is
    that with the most different predictions before it, of several the one with the lowest number: of the orders that were
    tried it convicts a guilty model most clearly.
    """
    scored = np.zeros(lists.size, bool)
    names, tokens, opened = lists.tolist(), predicted.tolist(), bytearray(int(lists.max(initial=-1)) + 2)
    opened[-1] = True  # places without a list are passed
    at, ends = begins.tolist(), (begins + sizes).tolist()
    standing: dict[int, tuple[list[int], set[int]]] = {}  # the texts before each sealed list, and the predictions there
    queue: list[tuple[int, int]] = []  # (minus the number of predictions, the list), some of which have grown since
    going = list(range(len(at)))
    while True:
        for text in going:
            place, end = at[text], ends[text]
            while place < end and opened[names[place]]:
                place += 1
            at[text] = place
            if place < end:
                texts, expected = standing.setdefault(names[place], ([], {-1}))
                texts.append(text)
                expected.add(tokens[place])
                heapq.heappush(queue, (-len(expected), names[place]))
        while queue and opened[queue[0][1]]:
            heapq.heappop(queue)
        if not queue:
            return scored
        name = heapq.heappop(queue)[1]
        going, _ = standing.pop(name)
        scored[[at[text] for text in going]] = True
        opened[name] = True


def _fresh_colours(places: Places, wm: Watermark) -> NDArray[np.bool_]:
    """For schemes whose list depends on the candidate token: no earlier draw of the context looked at this colour."""
    fresh = np.zeros(places.ids.size, bool)
    chosen, drawn = places.known, places.drawn
    for begin, size in zip(places.begins.tolist(), places.sizes.tolist(), strict=True):
        here = slice(begin, begin + size)
        at = begin + np.flatnonzero(chosen[here] & (places.predicted[here] >= 0))
        before = begin + np.flatnonzero(drawn[here])
        fresh[at] = ~looked_at(places, wm, at, places.predicted[at], before)
    return fresh


def looked_at(places: Places, wm: Watermark, at: Ids, tokens: Ids, before: Ids) -> NDArray[np.bool_]:
    """Which ``tokens`` [n] after places ``at`` [n] have a colour that an earlier draw, at a place ``before``, looked at."""
    parts = np.array_split(np.arange(at.size), max(1, -(-at.size * before.size // _AT_ONCE)))
    return np.concatenate([_looked_at(places, wm, at[part], tokens[part], before) for part in parts])


def _looked_at(places: Places, wm: Watermark, at: Ids, tokens: Ids, before: Ids) -> NDArray[np.bool_]:
    own = wm.colour_ids(places.windows_at(at), tokens)
    rows, columns = np.nonzero(before[None, :] < at[:, None])
    others = wm.colour_ids(places.windows_at(before)[columns], tokens[rows])
    found = np.zeros(at.size, bool)
    found[rows[others == own[rows]]] = True
    return found
