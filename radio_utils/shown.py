"""What marked prompts show of the key, and what a test of the answers may still use.

A suspect that never met the key answers from its prompt, and a prompt that was written under the key speaks of some of its
lists. Given all that the prompts show, the law of the lists is this. They are independent over windows; the lists after
which no token was drawn are as they were before. After a window at which tokens were drawn, a token that was *not* drawn
there is green with less than its prior chance, and jointly so: each draw is the less likely the more of the *other* tokens
were green, so the likelihood falls in their colours, and by Harris' inequality every increasing statistic of them is
stochastically at most what it is under the prior (T. E. Harris, *A lower bound for the critical probability in a certain
percolation process*, 1960). For Gumbel-max the same holds of r: that v was drawn means that the others' r were small
enough. So a test keeps its false-alarm rate where

* pairs that were drawn in a prompt have no weight (:meth:`Shown.told`),
* after a window at which anything was drawn, the other tokens have no negative weight (:meth:`Shown.touched`),
* and all other pairs have any weight: what was chosen by looking at prompts and answers alone.

The likelihood falls for sampling at any temperature, for top-k sampling, and for the draw of Gumbel-max. With nucleus
sampling (top-p) after the bias it may not: a token outside the nucleus that turns green can lengthen it by the very token
that was drawn. The effect is small and not bounded here; ask plain prompts if Alice writes with top-p.

All draws under the key that the prompts depend on must be among those shown: a prompt that sums up a marked text depends on
that text's draws, and so does a prompt that was kept because of them. The draws must be given as ids, as they were drawn: a
string that is tokenised again can hold other pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev


class Shown:
    """The draws that prompts show: told pairs and touched windows."""

    def __init__(self, texts: Sequence[ArrayLike], window: int, vocab_size: int, *, whole: bool) -> None:
        """``texts`` are the prompts, or with ``whole`` the contexts in which they were written, from the first token on.

        The first ``window`` tokens of a whole context were not drawn under a window. Those of a prompt were drawn after
        windows that it does not hold: token j may have been drawn after any window that ends in the j tokens before it, so
        it counts as drawn after all of them, and token 0 leaves no window untouched. So it is behind a gap. Raises
        ``ValueError`` for ids outside the vocabulary.
        """
        if whole:
            rows = ev.checked_texts("drawn", texts, vocab_size, shortest=0)
        else:
            prompts = ev.checked_prompts(texts, vocab_size, shortest=0)
            rows = [piece for prompt in prompts for piece in ev.between_gaps(prompt)]
        self.packing, self.whole = ev.Packing(window, vocab_size), whole
        long = [row for row in rows if row.size > window]
        none = ev.Evidence(self.packing, (), 0)
        self._pairs = ev.collect(long, window, vocab_size) if long else none
        starts = [] if whole else [[row[: j + 1] for row in rows if row.size > j] for j in range(window)]
        self._starts = [np.stack(some) for some in starts if some]

    def told(self, words: ev.Words) -> NDArray[np.bool_]:
        """Whether each packed pair [n, words] was drawn, or may have been."""
        found = self._pairs.holds(words)
        for starts in self._starts:
            windows, tokens = self.packing.unpack(words)
            known = windows[:, windows.shape[1] + 1 - starts.shape[1] :]
            found |= ev.rows_among(np.column_stack([known, tokens]), starts)
        return found

    def touched(self, words: ev.Words) -> NDArray[np.bool_]:
        """Whether anything was drawn, or may have been, after the window of each packed pair [n, words]."""
        if self._starts:
            return np.ones(words.shape[0], bool)
        return self._pairs.holds_window(words)


def shown_by(
    prompts: Sequence[ArrayLike], drawn: Sequence[ArrayLike] | None, marked: bool, window: int, vocab_size: int
) -> Shown | None:
    """What prompts show of the key; None where they were written without it.

    Raises ``ValueError`` for ``drawn`` contexts of prompts that are said to be plain.
    """
    if not marked:
        if drawn is not None:
            raise ValueError("drawn is given, but prompts_marked=False says that nothing was drawn under the key; drop one")
        return None
    return Shown(prompts if drawn is None else drawn, window, vocab_size, whole=drawn is not None)
