"""The re-marking control: what sees a leak from the marked text into the test.

Alice lets the whole pipeline run again, under m keys that nobody used: the same model, prompts, template, sampling,
selection, strings and filters. To each of these *worlds* the same test is put, under the world's own key, and the rank of
the real one among the m + 1 gives a p-value whatever leaks (page "When is a p-value valid?"). Where nothing leaks the
worlds' own p-values are uniform, innocent suspect or not: :attr:`RemarkControl.leaks` says whether they hold too many small
ones.

The conditions of the argument:

* The real texts and the worlds come from one pipeline, which differs in the key alone. What the pipeline starts from, the
  prompts above all, was chosen without any key. Chance is drawn anew in every world, or is the same in all of them, the
  real one included. :attr:`RemarkControl.strength_p` compares how strongly the texts are marked.
* The real key was drawn at random, as the others are, before the texts were written: a key that was chosen because it does
  well is not exchangeable with them.
* The suspect is the same in all worlds, and the test looks at the world's texts and key alone.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from radio_utils.detection import detect
from radio_utils.watermarks import Watermark

if TYPE_CHECKING:
    import torch

    from radio_utils.decoding import Sampling

Floats = NDArray[np.float64]
Strength = Callable[[Any, Watermark], float]

LEAK = 1e-3  # ks_p at or below which the worlds' p-values are called too small: once in a thousand sound tests


@dataclass(frozen=True, slots=True)
class RemarkControl:
    """The real world among ``m`` others that were written under keys nobody used.

    ``log10_p`` is what the test says of the real texts, and ``worlds`` [m] what it says of the others, each under its own
    key. ``strength`` and ``strengths`` [m] are how strongly the texts are marked, None where that was not asked. ``keys``
    are the fingerprints of the other keys; ``seed`` makes them again.
    """

    log10_p: float
    worlds: Floats
    seed: int
    keys: tuple[str, ...] = field(repr=False)
    strength: float | None = None
    strengths: Floats | None = field(default=None, repr=False)

    @property
    def as_extreme(self) -> int:
        """How many worlds have a p-value as small as the real one's; ties count."""
        return int(np.count_nonzero(self.worlds <= self.log10_p))

    @property
    def rank(self) -> int:
        """The place of the real world among all m + 1, 1 the most extreme, behind those that tie with it."""
        return 1 + self.as_extreme

    @property
    def p_value(self) -> float:
        """(1 + #worlds as extreme) / (m + 1), valid under exchangeability whatever leaks; exact if no two worlds tie."""
        return self.rank / (self.worlds.size + 1)

    @property
    def ks_p(self) -> float:
        """One-sided Kolmogorov–Smirnov test for an excess of small p-values among the worlds.

        They are uniform, or larger where the score is discrete, if nothing leaks; this is so for a guilty suspect too.
        """
        from scipy import stats  # takes half a second to import

        return float(stats.kstest(10.0**self.worlds, "uniform", alternative="greater").pvalue)

    @property
    def leaks(self) -> bool:
        """Whether the test finds keys that nobody used: its ``log10_p`` is then no p-value, that of the rank still is."""
        return self.ks_p <= LEAK

    @property
    def strength_p(self) -> float | None:
        """Two-sided p-value of the rank of the real texts' strength; None where it was not measured.

        A small one says that the real texts did not come from the pipeline that wrote the worlds. The smallest possible is
        2 / (m + 1).
        """
        if self.strength is None or self.strengths is None:
            return None
        below = 1 + int(np.count_nonzero(self.strengths <= self.strength))
        above = 1 + int(np.count_nonzero(self.strengths >= self.strength))
        return min(1.0, 2.0 * min(below, above) / (self.strengths.size + 1))

    def save(self, path: Path) -> None:
        """Write everything as strict JSON."""
        from radio_utils.files import write_json

        arrays = {name: None if (a := getattr(self, name)) is None else a.tolist() for name in ("worlds", "strengths")}
        rest = {"log10_p": self.log10_p, "seed": str(self.seed), "keys": list(self.keys), "strength": self.strength}
        write_json(path, rest | arrays)

    @classmethod
    def load(cls, path: Path) -> RemarkControl:
        """Read what :meth:`save` wrote."""
        from radio_utils.files import read_json

        row = read_json(path)
        strengths = None if row["strengths"] is None else np.array(row["strengths"])
        keys, worlds = tuple(row["keys"]), np.array(row["worlds"])
        return cls(row["log10_p"], worlds, int(row["seed"]), keys, row["strength"], strengths)


def worlds_needed(alpha: float) -> int:
    """How many worlds the rank needs to be able to reject at level α: the least m with 1/(m + 1) ≤ α, that is 1/α − 1.

    Parameters
    ----------
    alpha : float in (0, 1)
        The level of the control.

    Returns
    -------
    int
        The least number of other worlds.

    Raises
    ------
    ValueError
        For a level outside (0, 1).

    Notes
    -----
    The rank of one among m + 1 exchangeable worlds.

    Examples
    --------
    >>> from radio_utils import remarking
    >>> remarking.worlds_needed(0.01)
    99
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    return max(1, math.ceil((1.0 - 1e-12) / alpha - 1.0))


def mean_score(texts: Any, wm: Watermark) -> float:
    """How strongly token-id sequences are marked: the plain detector's mean score of their distinct pairs.

    A text of no more tokens than the window has no pair and is left out.
    """
    return detect([text for text in texts if len(text) > wm.window], wm).score


def remark_control(
    write: Callable[[Any], Any],
    test: Callable[[Any, Watermark], Any],
    wm: Watermark,
    *,
    texts: Any = None,
    worlds: int = 99,
    batched: bool = False,
    strength: Strength | None = mean_score,
    seed: int | None = None,
    progress: str | None = None,
) -> RemarkControl:
    """Put ``test`` to the real texts and to those of ``worlds`` other keys.

    ``write(wm)`` is Alice's *whole* pipeline under a given watermark, from the prompts to what the test is given. With
    ``batched`` it is called once, as ``write(wms)``, and returns the texts of each watermark in their order: small batches
    waste time (:func:`write_under` mixes all worlds). ``texts`` are the real ones; without them the real world is written
    too. ``test(texts, wm)`` is the test of the suspect under a given watermark: a verdict with a ``log10_p`` (a Detection,
    a ContrastiveReading, a SequentialVerdict), or log10 p itself. Whatever the test chooses (a filter, places, a stop) it
    must choose anew in each call, and nothing may be carried from one to the next.

    The other keys are decoys of ``wm`` from fresh entropy, which is recorded as ``seed``. To reject at level α, ``worlds``
    must be at least ``worlds_needed(α)``.

    Parameters
    ----------
    write : callable
        Writes the texts under a watermark, or under each of a list.
    test : callable
        Gives a verdict, or log10 p, of texts under a watermark.
    wm : Watermark
        The watermark whose key is asked about.
    texts : optional
        The real texts.
    worlds : int
        How many other keys.
    batched : bool
        Whether ``write`` takes all watermarks at once.
    strength : callable, optional
        How strongly texts are marked, of (texts, wm); for texts that are no token-id sequences one of your own, or None.
    seed : int, optional
        Repeats a control; never to choose one.
    progress : str, optional
        Title of a progress bar; none without it.

    Returns
    -------
    RemarkControl
        The rank of the real world's log10 p among all.

    Raises
    ------
    ValueError
        For fewer than one world, a pipeline that returns nothing or another number of texts, a test that returns no
        log10 p or judges under another key than the one it is given.
    TypeError
        For what is no function or no watermark.

    Notes
    -----
    A Monte Carlo test: M. Dwass, *Modified randomization tests for nonparametric hypotheses*, 1957.

    Examples
    --------
    >>> control = ru.remark_control(write, test, wm, texts=texts, worlds=99)  # doctest: +SKIP
    """
    for name, function in (("write", write), ("test", test)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}; wrap the pipeline in one")
    if strength is not None and not callable(strength):
        raise TypeError(f"strength must be a function of (texts, wm) or None, got {type(strength).__name__}")
    if not isinstance(wm, Watermark):
        raise TypeError(f"wm must be a watermark, got {type(wm).__name__}; make it as GreenList(key, vocab_size)")
    if isinstance(worlds, bool) or not isinstance(worlds, int | np.integer) or worlds < 1:
        raise ValueError(f"worlds must be a whole number of at least 1, got {worlds!r}; see worlds_needed(alpha)")
    if seed is None:
        seed = secrets.randbits(128)
    elif isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number, not negative, got {seed!r}; leave it out for fresh entropy")
    others = other_keys(wm, int(worlds), int(seed))
    measured: list[tuple[float, float | None]] = []

    def measure(written: Any, key: Watermark) -> None:
        _check_written(written, key)
        marked = None if strength is None else _checked_strength(strength, written, key)
        measured.append((_log10_p(test(written, key), key), marked))

    wanted = ([wm] if texts is None else []) + others
    if texts is not None:
        measure(texts, wm)  # before anything is written: what is wrong with the functions shows at once
    ready: Any = None
    if batched:
        ready = write(wanted)
        if not isinstance(ready, list | tuple) or len(ready) != len(wanted):
            got = f"{len(ready)} texts" if isinstance(ready, list | tuple) else type(ready).__name__
            raise ValueError(f"write must return a list of texts for each of {len(wanted)} watermarks, got {got}")
    for i, key in enumerate(tqdm(wanted, desc=progress, disable=progress is None, unit="world", mininterval=5.0)):
        measure(ready[i] if batched else write(key), key)
    log10_p = np.array([p for p, _ in measured])
    marks = None if strength is None else np.array([marked for _, marked in measured], np.float64)
    return RemarkControl(
        log10_p=float(log10_p[0]),
        worlds=log10_p[1:],
        seed=int(seed),
        keys=tuple(other.fingerprint for other in others),
        strength=None if marks is None else float(marks[0]),
        strengths=None if marks is None else marks[1:],
    )


def other_keys(wm: Watermark, count: int, seed: int) -> list[Watermark]:
    """The watermark under ``count`` keys that nobody used, those of a control's ``seed``: none repeats, none is its own."""
    found: dict[str, Watermark] = {}
    index = 0
    while len(found) < count:
        other = wm.with_decoy(seed, index)
        if other.fingerprint != wm.fingerprint:
            found.setdefault(other.fingerprint, other)
        index += 1
        if index > 10 * count + 100:  # published schemes may have few keys
            raise ValueError(f"worlds={count} other keys of {wm.fingerprint} cannot be had, only {len(found)}; ask fewer")
    return list(found.values())


def write_under(
    model: Any,
    prompts: Sequence[ArrayLike],
    wms: Sequence[Watermark],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    progress: str | None = None,
) -> list[list[NDArray[np.int64]]]:
    """Continue the same prompts under each of the watermarks: a list for each, the continuations in the prompts' order.

    All worlds share their batches, which costs what one long list of prompts costs. The law of each world's texts is that
    of ``decoding.generate(wm=…)`` alone, and the worlds draw independently; under one watermark they are the same texts.
    Raises ``ValueError`` for no watermarks and as ``decoding.generate`` does.
    """
    from radio_utils.decoding import generate

    if not wms:
        raise ValueError("wms is empty; give one watermark for each world")
    written = generate(
        model,
        [prompt for _ in wms for prompt in prompts],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        wm=[wm for wm in wms for _ in prompts],
        generator=generator,
        stop_tokens=stop_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    return [written[i * len(prompts) : (i + 1) * len(prompts)] for i in range(len(wms))]


def _check_written(texts: Any, key: Watermark) -> None:
    if texts is None or (hasattr(texts, "__len__") and len(texts) == 0):
        raise ValueError(
            f"the pipeline gave no texts under {key.fingerprint}, got {texts!r}; write must return what the test is given"
        )


def _checked_strength(strength: Strength, texts: Any, key: Watermark) -> float:
    try:
        found = float(strength(texts, key))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"strength cannot be measured on the texts under {key.fingerprint}: {error}; give strength= a function of "
            "(texts, wm), or None to leave the comparison out"
        ) from error
    if not math.isfinite(found):
        raise ValueError(f"strength is {found} under {key.fingerprint}; give texts that hold pairs, or strength=None")
    return found


def _log10_p(verdict: Any, key: Watermark) -> float:
    """log10 p of what a test returned."""
    judged = getattr(verdict, "fingerprint", key.fingerprint)
    if judged != key.fingerprint:
        raise ValueError(f"test judged under {judged} instead of {key.fingerprint}; it must use the watermark it is given")
    value = getattr(verdict, "log10_p", verdict)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"test must return a verdict with log10_p, or log10 p as a number, got {type(verdict).__name__}")
    found = float(value)
    if not math.isfinite(found) or found > 0.0:
        raise ValueError(f"test must return log10 p, finite and at most 0, got {found} under {key.fingerprint}")
    return found
