"""Counts: the closed test with a reference, and without a filter.

Of B's answers only the text is seen. Over all answers, c(W, v) counts how often B said v after window W, and

    E(W, v) = Σ p_A(v | context)  over the places of W in the answers

is how often a reference would have said it there: Alice's own model without her mark, or B₀, which reads the answers once.
B differs from the reference for many reasons that know no key, and for one that does. Let B say v after W E·exp(η + θ(m −
μ)) times on average, where m is the mark of (W, v), μ its mean, η the other reasons (mean 0, variance τ²) and θ what B
learned of the key. Then c has mean E + θE(m − μ) and variance E + τ²E² for small η and θ, and the sum of the marks that
tells θ > 0 best weighs each by its shift over its variance times its surprise c − E,

    y(W, v) = (c − E) / (1 + τ²E).

Tokens that were never said count too: with E > 0 their weight is negative. Where E is small the weight is the surplus of
counts, which is Poisson noise; where E is large it is (c/E − 1)/τ², on the scale by which two models differ anyway, so
that a window of which much was seen does not drown the others. The weight of contrastive reading
(:mod:`radio_utils.contrast`) has the same purpose and another noise: there B's probabilities are known and no place is a
draw.

Weights that saw answers, prompts and reference have seen no key, if these have not. So S = Σ q(W, v)·mark(W, v), q whole
numbers in proportion to y, is a sum of independent marks with known weights under H₀ "B never met the key", however B
answers, and its tail is exact (:mod:`radio_utils.stats.weighted`). The same prompt may be asked many times: repeats only
make the counts better. The condition is that prompts and reference know nothing of the key. Prompts that were written
under it show some of its lists; what may then be weighed, and when, is said in :mod:`radio_utils.shown`. Chapter
"Closed model".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from radio_utils import contrast, decoding
from radio_utils import evidence as ev
from radio_utils.shown import Shown
from radio_utils.suspects.forward import chosen, read

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

# τ: models that learned from like text differ by about half of a token's rate. Measured once, on the laptop world's seed 0
# at ρ = 10 %: evidence of 600 answers is flat from 0.5 to 0.7, of 2,000 it is more at 0.5 than at 0.7 or 1.
TAU = 0.5
_LARGEST = 1 << 25  # probabilities that are held at once


def weights(counts: Floats, expected: Floats, tau: float = TAU) -> Floats:
    """(c − E)/(1 + τ²E) of counts c [n] and expected counts E [n]."""
    result: Floats = (counts - expected) / (1.0 + tau**2 * expected)
    return result


@torch.inference_mode()
def collect(
    asked: Sequence[tuple[Ids, Ids]],
    reference: Any,
    window: int,
    vocab_size: int,
    *,
    keep: ArrayLike | None = None,
    sampling: decoding.Sampling | None = None,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> contrast.ContrastCollector:
    """Sums c and E of prompts with their answers, which are longer than the window: the collector's two columns.

    A place is that of an answer's token whose window lies wholly inside the answer.
    """
    collector = contrast.ContrastCollector(window, vocab_size, 2, top=top, keep=keep)
    contexts = [np.concatenate(both) for both in asked]
    slice_size = max(1, _LARGEST // vocab_size)
    options: dict[str, Any] = {"batch_size": batch_size, "fewer": _FEWER, "what": "answers", "progress": progress}
    for texts, (logits,) in read([reference], contexts, vocab_size, **options):
        found = [ev.following(contexts[i], asked[i][0].size + window, window, skip_seen=False) for i in texts]
        windows = np.concatenate([w for w, _, _ in found])
        rows = np.repeat(np.arange(len(texts)), [places.size for _, places, _ in found])
        places = np.concatenate([p for _, p, _ in found])
        said = np.array([contexts[texts[row]][place] for row, place in zip(rows, places, strict=True)], np.int64)
        kept = collector.passing(windows)
        windows, rows, places, said = windows[kept], rows[kept], places[kept], said[kept]
        for first in range(0, places.size, slice_size):
            part = slice(first, first + slice_size)
            here = chosen(logits, rows[part], places[part] - 1).float()
            expected = (here if sampling is None else decoding.warp(here, sampling)).softmax(dim=-1)
            token = torch.from_numpy(said[part]).to(here.device)
            collector.add(windows[part], [torch.nn.functional.one_hot(token, vocab_size).float(), expected])
    return collector


_FEWER = "vocab_size={}; the reference does not use Alice's tokenizer"


def weigh(collector: contrast.ContrastCollector, shown: Shown | None, tau: float = TAU) -> contrast.Contrast:
    """The weighted pairs. ``shown`` is what marked prompts tell of the key."""
    keys, sums, _ = collector.sums()
    if keys.shape[0] == 0:
        return collector.weighted(keys, np.zeros(0))
    y = weights(sums[:, 0], sums[:, 1], tau)
    if shown is not None:
        y = np.where(shown.touched(keys), np.maximum(y, 0.0), y)
        y[shown.told(keys)] = 0.0
    return collector.weighted(keys, y)
