"""Detection: evidence × watermark → a verdict, and the null audit, a check of its arithmetic, that stands beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev
from radio_utils.evidence.files import ENDINGS, CorpusError, CorpusFile, is_path
from radio_utils.parallel import side_by_side
from radio_utils.stats import ks
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Texts = Iterable[ArrayLike] | str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Detection:
    """The verdict of one test.

    ``seen`` positions were looked at, ``scored`` of the pairs found are independent trials, their scores sum to
    ``total``. These are all distinct pairs of the evidence, save with schemes of :mod:`radio_utils.compat`, in which
    different pairs can have one and the same score: of those the first in the evidence's order counts. ``log10_p`` is the
    exact tail of the null law for schemes of :mod:`radio_utils.watermarks`, and an approximation for those of
    :mod:`radio_utils.compat`. It is a valid p-value where the key was drawn at random and which pairs are scored does not
    depend on their own colours (page "When is a p-value valid?"); with ``dedup=None`` pairs are repeated and it is none.
    ``fingerprint`` names the watermark without its key.
    """

    seen: int
    scored: int
    total: float
    log10_p: float
    scheme: str
    window: int
    dedup: ev.Dedup
    fingerprint: str
    evidence: ev.Evidence = field(repr=False, compare=False)

    @property
    def score(self) -> float:
        """Mean score of a scored pair (γ expected under the null for green lists, 1 for Gumbel-max); NaN if none."""
        return self.total / self.scored if self.scored else float("nan")

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows. Quote ``log10_p``."""
        return float(10.0**self.log10_p)


@dataclass(frozen=True, slots=True)
class NullAudit:
    """The same statistic under decoy keys that nobody used: a check of the arithmetic.

    Repeats that are scored, trials that are not independent, or a wrong tail make small p-values too frequent among the
    decoys. Leakage does not (page "When is a p-value valid?"): a sound audit is no evidence that the verdict is valid.

    ``log10_p`` [keys] are the p-values as a verdict would quote them, ``uniform_p`` [keys] their randomised version, as
    those of a discrete statistic are only super-uniform. ``ks`` tests these one-sidedly, for an excess of *small* p-values
    (:func:`radio_utils.stats.ks.ks_small`): a test may be cautious, as where lists have a fixed number of greens and sums
    vary less than their law says, and that harms nobody.
    """

    log10_p: Floats
    ks: ks.KSResult
    uniform_p: Floats = field(repr=False)

    @property
    def keys(self) -> int:
        """How many decoy keys were tried."""
        return int(self.log10_p.size)

    @property
    def ks_p(self) -> float:
        """p-value of the one-sided Kolmogorov–Smirnov test: small where small p-values are too frequent."""
        return self.ks.p_value

    @property
    def min_log10_p(self) -> float:
        """The most extreme decoy; about −log10(keys) is expected."""
        return float(self.log10_p.min())


@dataclass(frozen=True, slots=True)
class KeySearch:
    """Which of many keys wrote the texts. ``log10_p`` [keys] are the single tests, ``log10_family`` Holm's adjustment.

    ``best`` is the index of the strongest key. Its ``log10_family`` is what may be quoted: it allows for the search.
    ``totals`` [keys] are the total scores and ``counts`` [keys] the numbers of pairs that they are sums over: the same for
    all keys, save where pairs that share a colour under one key do not under another.
    """

    log10_p: Floats
    log10_family: Floats
    totals: Floats = field(repr=False)
    counts: Counts = field(repr=False)

    @property
    def scored(self) -> int:
        """How many pairs were scored under the best key."""
        return int(self.counts[self.best])

    @property
    def best(self) -> int:
        """Index of the key with the smallest p-value."""
        return int(np.argmin(self.log10_p))

    def found(self, alpha: float = 1e-3) -> list[int]:
        """Indices of all keys whose adjusted p is at most α, strongest first."""
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
        hits = np.flatnonzero(self.log10_family <= np.log10(alpha))
        return [int(i) for i in hits[np.argsort(self.log10_p[hits], kind="stable")]]


def detect(
    texts: Texts,
    wm: Watermark,
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    sample: float = 1.0,
    tokenizer: Any = None,
) -> Detection:
    """Test H₀ "these texts were written, and chosen, without this key" on token-id sequences.

    With prompts a text is taken for a whole answer. Where an engine marks its first k tokens too, after contexts that hold
    no prompt (``wm.marks_start``: vLLM's marks and SynthID), these are scored with windows that −1 fills up. Without
    prompts, and for all other marks, windows lie wholly inside the text.

    Memory grows with the number of distinct pairs, 8 bytes each (16 where k + 1 ids need more than 64 bits) and about
    half more while they are merged: 100 million pairs take 1.3 GB. For more than that, ``sample`` scores a pseudo-random
    share of the windows: the share is chosen without the key, so p is as valid as it would be without it.

    Parameters
    ----------
    texts : iterable of array_like of int [length], or path(s)
        Token ids, one row a text, read once: a corpus may be larger than memory. Or JSONL or Parquet files, whose rows hold
        ``ids`` (or ``text``, and a ``tokenizer`` is given) and perhaps ``prompt_ids`` (or ``prompt``; be it empty, every
        row has one or none has), or are of one of the forms of :mod:`radio_utils.evidence.forms`.
        :func:`radio_utils.sharding.detect_shards` shares files out among processes or machines.
    wm : Watermark
        The watermark whose key is asked about.
    prompts : iterable of array_like of int [length], optional
        The prompt of each text, as token ids. Windows that occur in it are not scored. −1 stands where something may be
        missing, as a template between turns.
    keep : array_like of int [m, k], optional
        The filter φ: the only windows that are scored. It must be chosen without the key.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.
    sample : float in (0, 1]
        Share of the windows that is scored, chosen by a public hash.
    tokenizer : transformers tokenizer, optional
        For files that hold strings.

    Returns
    -------
    Detection
        ``scored`` distinct pairs, their ``total`` score and ``log10_p``.

    Raises
    ------
    ValueError
        For ids outside the vocabulary, empty or too short texts, or unequal numbers of prompts; its subclass
        :class:`radio_utils.evidence.files.CorpusError` where a file is at fault, with the file's name and the row.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024; pairs count once as in P.
    Fernandez et al., *Three Bricks to Consolidate Watermarks for Large Language Models*, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> found = ru.detect(texts, wm)
    >>> found.seen, found.scored
    (1980, 1979)
    >>> found.log10_p > -3
    True
    """
    options = {"keep": keep, "dedup": dedup, "sample": sample}
    return judge(_collected(texts, wm, prompts, options, tokenizer), wm)


def _collected(texts: Texts, wm: Watermark, prompts: Any, options: dict[str, Any], tokenizer: Any = None) -> ev.Evidence:
    """The evidence of texts or of files of them."""
    options = options | {"shared": ev.shared_by(wm), "from_start": wm.marks_start}
    listed: list[Any] = list(texts) if isinstance(texts, list | tuple) else [texts]
    files = [Path(one) for one in listed if is_path(one)]
    if files and len(files) != len(listed):
        other = next(i for i, one in enumerate(listed) if not is_path(one))
        raise ValueError(
            f"texts mixes paths with other things: texts[{other}] is no path that ends in {', '.join(ENDINGS)} but "
            f"{type(listed[other]).__name__}; give only paths, or only sequences of token ids"
        )
    if not files:
        if tokenizer is not None:
            raise ValueError("tokenizer is for files; give token ids, or the paths of JSONL or Parquet files")
        return ev.collect(texts, wm.window, wm.vocab_size, prompts=prompts, **options)  # type: ignore[arg-type]
    if prompts is not None:
        raise ValueError("prompts must stand in the files, as prompt_ids or prompt, when texts are files")
    found: list[ev.Evidence] = [
        collect_file(file, None, window=wm.window, vocab_size=wm.vocab_size, tokenizer=tokenizer, options=options)
        for file in files
    ]
    return found[0].merge(*found[1:]) if len(found) > 1 else found[0]


def collect_file(
    file: Path,
    shard: Path | None,
    *,
    window: int,
    vocab_size: int,
    tokenizer: Any,
    options: dict[str, Any],
    prompts_refused: bool = False,
) -> Any:
    """The evidence of one file, or the path of ``shard`` after writing it there.

    ``prompts_refused`` where windows share draws: which of them a prompt has shown, only the key could tell.
    """
    corpus = CorpusFile(file, tokenizer)
    if prompts_refused and corpus.prompts() is not None:
        raise ValueError(
            f"{file} has prompts, and windows of this scheme share draws: what a prompt has shown depends on the key, which"
            " shards are not given; use radio_utils.detect"
        )
    ev.Collector(ev.Packing(window, vocab_size), **options)  # options at fault are not the file's fault
    try:
        found = ev.collect(corpus.texts(), window, vocab_size, prompts=corpus.prompts(), **options)
    except CorpusError:
        raise
    except ValueError as error:

        def check(name: str, ids: Any, is_prompt: bool) -> None:
            whole = options.get("from_start") and corpus.prompts() is not None
            if is_prompt:
                ev.checked_prompt(name, ids, vocab_size, shortest=0)
            else:
                ev.checked_sequence(name, ids, vocab_size, shortest=1 if whole else window + 1)

        raise corpus.blame(error, check) from error
    if shard is None:
        return found
    found.save(shard)
    return shard


def judge(found: ev.Evidence, wm: Watermark, *, respelt: float = 0.0) -> Detection:
    """The verdict on evidence that is already collected; p allows for a share ``respelt`` of tokens that were not drawn.

    Parameters
    ----------
    found : Evidence
        The distinct pairs, as :func:`radio_utils.evidence.collect` gives them.
    wm : Watermark
        The watermark whose key is asked about.
    respelt : float in [0, 1)
        Share of the tokens that may not be the ones drawn.

    Returns
    -------
    Detection
        The verdict, with its evidence.

    Raises
    ------
    ValueError
        For evidence of another window or vocabulary than the watermark's.

    Notes
    -----
    See :func:`detect`.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> from radio_utils import detection, evidence
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> found = evidence.collect(texts, window=1, vocab_size=1000)
    >>> detection.judge(found, wm).scored
    1979
    """
    check_evidence(found, wm)
    counted = None if respelt else _colour_counts(found, [wm])
    if counted is None:
        total, scored = _scored(found, wm)
        log10_p = float(wm.law.log10_allowing(total, scored, respelt))
    else:
        (total,), (log10_p,), _ = (each.tolist() for each in wm.judged_by_counts(counted, [wm]))
        scored = len(found)
    return Detection(
        seen=found.seen,
        scored=scored,
        total=total,
        log10_p=log10_p,
        scheme=wm.scheme,
        window=wm.window,
        dedup=found.dedup,
        fingerprint=wm.fingerprint,
        evidence=found,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether a suspect leans towards the key more than the model that he was made from.

    ``added`` pairs are the suspect's and not his base's, with mean score ``score``; ``base`` pairs are his base's, with
    mean ``base_score``. ``log10_p`` tests H₀ "what he added scores no higher than what his base had": a base with a trace
    of its own then convicts nobody who added nothing.
    """

    added: int
    score: float
    base: int
    base_score: float
    log10_p: float


def compare(found: ev.Evidence, base: ev.Evidence, wm: Watermark) -> Comparison:
    """Compare a suspect's pairs with those of his base at the same places (``places_of`` of ``Predictions.evidence``).

    The test is exact for two sets of independent pairs with one chance of green (or one mean score), whatever that is.

    Parameters
    ----------
    found : Evidence
        The suspect's pairs.
    base : Evidence
        The pairs of the model that he was made from.
    wm : Watermark
        The watermark whose key is asked about.

    Returns
    -------
    Comparison
        What was added, its mean score, and log10 p.

    Raises
    ------
    ValueError
        For evidence that was collected otherwise than with the watermark's window and vocabulary.

    Notes
    -----
    For green lists Fisher's exact test, for exponential scores an F test.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> from radio_utils import detection, evidence
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> own, base = (evidence.collect(half, window=1, vocab_size=1000) for half in (texts[:10], texts[10:]))
    >>> detection.compare(own, base, wm).added == len(own.without(base))
    True
    """
    check_evidence(found, wm)
    check_evidence(base, wm)
    own = found.without(base)
    (total, count), (other, others) = _scored(own, wm), _scored(base, wm)
    return Comparison(
        added=count,
        score=total / count if count else float("nan"),
        base=others,
        base_score=other / others if others else float("nan"),
        log10_p=wm.law.log10_between(total, count, other, others),
    )


MARKED = -3.0  # log10 p below which a text, or a twin, counts as marked: of unmarked ones, one in a thousand does

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def _scored(found: ev.Evidence, wm: Watermark) -> tuple[float, int]:
    """Total score of the independent pairs under this key, and how many they are."""

    def scored(pairs: Pairs) -> tuple[float, int]:
        return float(wm.scores(*pairs).sum()), pairs[1].size

    # blocks are cut by the set alone, so that the sum has the same last bit whatever the sharding
    each = list(side_by_side(scored, _independent(found, wm)))
    return float(sum(total for total, _ in each)), sum(count for _, count in each)


def _chooses(found: ev.Evidence, wm: Watermark) -> bool:
    """Whether some pairs may not count; without de-duplication every repeat is wanted, and p means nothing."""
    return (wm.shares_colours or wm.some_keyless) and found.dedup is not None


def _independent(found: ev.Evidence, wm: Watermark) -> Iterator[Pairs]:
    """The evidence in blocks; of pairs that have one colour under this key only the first, and none that no key decides."""
    if not _chooses(found, wm):
        yield from found.blocks()
        return
    first = np.ones(len(found), bool)
    if wm.shares_colours and len(found):
        first = ev.first_appearances(np.concatenate([wm.colour_ids(*pairs) for pairs in found.blocks()]))
    start = 0
    for windows, tokens in found.blocks():
        chosen = first[start : start + tokens.size] & ~wm.keyless(windows, tokens)
        start += tokens.size
        if chosen.any():
            yield windows[chosen], tokens[chosen]


def _colour_counts(found: ev.Evidence, keys: Sequence[Watermark]) -> Counts | None:
    """How many pairs of the evidence have each colour, where all of the keys have a test of that; else None."""
    first, colours = keys[0], [wm.colours for wm in keys]
    if not all(colours) or found.dedup is None or not len(found):
        return None
    each = (np.bincount(first.colour_ids(*pairs).astype(np.int64), minlength=colours[0] or 0) for pairs in found.blocks())
    return np.asarray(np.sum(list(each), axis=0))


def curve(found: ev.Evidence, wm: Watermark, *, points: int = 60) -> tuple[NDArray[np.int64], Floats]:
    """log10 p of the first n pairs, for ``points`` values of n from about 1 to all: (n, log10 p).

    Evidence has no order of its own; the pairs are taken in one fixed random order, that of a text read at random. Pairs
    that are no trials of their own are left out, as :func:`judge` leaves them out.

    Parameters
    ----------
    found, wm
        As in :func:`judge`.
    points : int
        How many values of n.

    Returns
    -------
    tuple of int64 [points] and float [points]
        The numbers of pairs n, and log10 p of the first n pairs.

    Raises
    ------
    ValueError
        For empty evidence, or fewer than 2 points.

    Notes
    -----
    The order is a fixed hash of the pairs, not that of the texts.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> from radio_utils import detection, evidence
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> found = evidence.collect(texts, window=1, vocab_size=1000)
    >>> n, log10_p = detection.curve(found, wm, points=5)
    >>> int(n[-1]) == len(found)
    True
    """
    check_evidence(found, wm)
    if len(found) == 0:
        raise ValueError("evidence is empty; there is no curve to draw")
    if points < 2:
        raise ValueError(f"points must be at least 2, the first and the last pair, got {points}")
    windows, tokens = found.windows, found.tokens
    counted = _colour_counts(found, [wm])
    if counted is None and _chooses(found, wm):
        if not (parts := list(_independent(found, wm))):
            raise ValueError("no pair of the evidence depends on the key; there is no curve to draw")
        windows, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
    counts = np.unique(np.geomspace(1, tokens.size, points).round().astype(np.int64))
    order = np.random.default_rng(0).permutation(tokens.size)
    if counted is not None:
        ids = wm.colour_ids(windows, tokens).astype(np.int64)[order]
        first = (np.bincount(ids[:count], minlength=counted.size) for count in counts)
        return counts, np.array([wm.judged_by_counts(some, [wm])[1][0] for some in first])
    totals = np.cumsum(wm.scores(windows, tokens)[order])[counts - 1]
    return counts, np.asarray(wm.log10_p(totals, counts), np.float64)


def null_audit(
    texts: Texts,
    wm: Watermark,
    *,
    keys: int = 1000,
    seed: int = 0,
    prompts: Iterable[ArrayLike] | None = None,
    **options: Any,
) -> NullAudit:
    """Run :func:`detect` on the same texts, with the same options, under ``keys`` decoy keys, in one pass.

    A check of the arithmetic, which says nothing of leakage (:class:`NullAudit`).

    Parameters
    ----------
    texts, wm
        As in :func:`detect`.
    keys : int
        How many decoy keys to try.
    seed : int
        Which decoys; another seed, others.
    prompts, **options
        Options of :func:`detect`.

    Returns
    -------
    NullAudit
        p-values [keys] under the decoys and the test that they are not too small.

    Raises
    ------
    ValueError
        As :func:`detect` does, and for fewer than 5 keys.

    Notes
    -----
    The decoys' keys are derived from ``seed`` and are nobody's.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> audit = ru.null_audit(texts, wm, keys=200)
    >>> audit.keys, bool(audit.ks_p > 1e-3)
    (200, True)
    """
    unknown = options.keys() - {"keep", "dedup", "sample", "tokenizer"}
    if unknown:
        raise TypeError(f"null_audit got an unexpected keyword argument {sorted(unknown)[0]!r}; it takes those of detect")
    tokenizer = options.pop("tokenizer", None)
    return audit_evidence(_collected(texts, wm, prompts, options, tokenizer), wm, keys=keys, seed=seed)


def audit_evidence(found: ev.Evidence, wm: Watermark, *, keys: int = 1000, seed: int = 0) -> NullAudit:
    """The null audit of evidence that is already collected: a check of the arithmetic (:class:`NullAudit`).

    Parameters
    ----------
    found, wm
        As in :func:`judge`.
    keys, seed
        As in :func:`null_audit`.

    Returns
    -------
    NullAudit
        p-values [keys] under the decoys and the test that they are not too small.

    Raises
    ------
    ValueError
        For evidence of another window or vocabulary than the watermark's.

    Notes
    -----
    See :func:`null_audit`.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> from radio_utils import detection, evidence
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> found = evidence.collect(texts, window=1, vocab_size=1000)
    >>> detection.audit_evidence(found, wm, keys=100).log10_p.shape
    (100,)
    """
    _, _, log10_p, above = _under(found, _decoys(found, wm, keys, seed), [wm])
    return audit_of(log10_p, above, seed=seed)


def audit_of(log10_p: Floats, log10_p_above: Floats, *, seed: int) -> NullAudit:
    """The audit of p-values under decoy keys; ``log10_p_above`` is log10 P(S > s), which tells the steps of p."""
    uniform = ks.randomised(log10_p, log10_p_above, np.random.default_rng([seed, 1]))
    return NullAudit(log10_p=log10_p, ks=ks.ks_small(uniform), uniform_p=uniform)


def _decoys(found: ev.Evidence, wm: Watermark, keys: int, seed: int) -> list[Watermark]:
    if keys < 5:
        raise ValueError(f"keys must be at least 5 for a distribution to show, got {keys}")
    if len(found) == 0:
        raise ValueError("evidence is empty; there is nothing to audit")
    check_evidence(found, wm)
    return [wm.with_decoy(seed, index) for index in range(keys)]


def which_key(
    texts: Texts,
    candidates: Sequence[Watermark],
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
) -> KeySearch:
    """Which of many keys wrote these texts? One pass over the texts, with the family-wise error controlled.

    ``candidates`` are the same scheme with the same parameters under different keys. H₀ of each test is "written without
    this key", so candidates must be different keys: two that colour alike would both be found, and one is innocent.

    Parameters
    ----------
    texts
        As in :func:`detect`.
    candidates : sequence of Watermark
        One scheme with the same parameters under different keys.
    prompts, keep, dedup
        As in :func:`detect`.

    Returns
    -------
    KeySearch
        log10 p [keys], Holm's adjustment of them, and the strongest key.

    Raises
    ------
    ValueError
        For no candidates, differing parameters, two candidates that are one key in effect (the same colours everywhere,
        as where transformers' lefthash keys are equal modulo 2³²), and two with adjusted p of 0.05 or less that share
        more colours on these texts' windows than unrelated keys do.

    Notes
    -----
    S. Holm, *A simple sequentially rejective multiple test procedure*, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (20, 100))
    >>> search = ru.which_key(texts, [wm.with_key(name) for name in ("alice", "carol", "dave")])
    >>> search.log10_p.shape, search.found(alpha=1e-3)
    ((3,), [])
    """
    if not candidates:
        raise ValueError("candidates is empty; give one watermark for each key that may have been used")
    first = candidates[0]
    _check_alike(candidates)
    _check_distinct(candidates)
    found = _collected(texts, first, prompts, {"keep": keep, "dedup": dedup})
    totals, counts, log10_p, _ = _under(found, candidates, candidates)
    log10_family = ks.family_wise(log10_p)
    convincing = [int(i) for i in np.argsort(log10_p)[:_COMPARED] if log10_family[i] <= np.log10(_CONVINCING)]
    _check_unrelated(found, candidates, convincing)
    return KeySearch(log10_p, log10_family, totals, counts)


_PROBES = 64  # random pairs that tell most keys apart; those that they don't are asked many more
_CONVINCING = 0.05  # adjusted p of keys that somebody may call found, and that are compared with one another
_COMPARED = 50  # of them, the strongest
_SHARED = 1 << 15  # pairs on which they are compared
_UNRELATED = 6.0  # standard deviations that the correlation of two unrelated keys does not reach: once in 10⁹


def _check_distinct(candidates: Sequence[Watermark]) -> None:
    """Raise ``ValueError`` if two candidates give random pairs, the same for all, the same marks."""
    first, rng = candidates[0], np.random.default_rng(0)
    chances = first.law.mark_distribution[1]
    more = max(16 * _PROBES, int(80 / (1.0 - chances @ chances)))  # over the chance that two keys differ on a pair
    groups = [list(range(len(candidates)))]
    for probes in (_PROBES, more):
        windows = rng.integers(0, first.vocab_size, (probes, first.window))
        tokens = rng.integers(0, first.vocab_size, probes)
        weights = rng.integers(1, 1 << 34, probes)  # sums are whole numbers that a float64 holds, and tell marks apart
        alike = []
        for group in groups:
            sums = first.totals(windows, tokens, [candidates[i] for i in group], weights)
            same: dict[float, list[int]] = {}
            for i, total in zip(group, sums.tolist(), strict=True):
                same.setdefault(total, []).append(i)
            alike += [members for members in same.values() if len(members) > 1]
        groups = alike
    if groups:
        one, other = groups[0][:2]
        raise ValueError(
            f"candidates[{one}] and candidates[{other}] are one key in effect: they give every pair the same colour, so "
            "both would be found where one was used; leave one of them out"
        )


def _check_unrelated(found: ev.Evidence, candidates: Sequence[Watermark], indices: Sequence[int]) -> None:
    """Raise ``ValueError`` if two of these candidates share colours on the evidence's windows beyond chance.

    The tokens are random: those of the evidence were perhaps chosen by their colours.
    """
    if len(indices) < 2:
        return
    rng = np.random.default_rng(1)
    windows, tokens = found.windows, rng.integers(0, found.packing.vocab_size, _SHARED)
    windows = windows[rng.integers(0, len(found), _SHARED)]
    distinct = ev.first_rows(np.column_stack([windows, tokens]))
    windows, tokens = windows[distinct], tokens[distinct]
    decided = ~candidates[0].keyless(windows, tokens)
    windows, tokens = windows[decided], tokens[decided]
    scores = [candidates[i].scores(windows, tokens) for i in indices]
    for at, (i, own) in enumerate(zip(indices, scores, strict=True)):
        wm = candidates[i]
        # pairs that share a colour under this key are one draw of it
        draws = ev.first_appearances(wm.colour_ids(windows, tokens)) if wm.shares_colours else slice(None)
        mine = own[draws] - own[draws].mean()
        for j, other in zip(indices[at + 1 :], scores[at + 1 :], strict=True):
            theirs = other[draws] - other[draws].mean()
            spread = np.sqrt((mine @ mine) * (theirs @ theirs))
            shared = float(mine @ theirs / spread) if spread > 0 else 0.0
            if shared * np.sqrt(mine.size) > _UNRELATED:
                raise ValueError(
                    f"candidates[{min(i, j)}] and candidates[{max(i, j)}] share {shared:.0%} of their colours beyond "
                    "chance on the windows of these texts, so both may be found where one was used; search for one of them"
                )


def _check_alike(candidates: Sequence[Watermark]) -> None:
    """Raise ``ValueError`` unless the watermarks differ in their keys only."""
    by_key = candidates[0].law_of_key
    expected = candidates[0].parameters | ({} if by_key else {"law": candidates[0].law})
    for i, other in enumerate(candidates):
        given = other.parameters | ({} if by_key else {"law": other.law})
        for name in expected:
            if given.get(name) != expected[name]:
                raise ValueError(
                    "candidates must be one scheme with the same parameters under different keys, but "
                    f"candidates[{i}] has {name} {given.get(name)!r} and candidates[0] has {expected[name]!r}; "
                    "search each kind of watermark by itself"
                )


def _under(
    found: ev.Evidence, keys: Sequence[Watermark], asked: Sequence[Watermark]
) -> tuple[Floats, Counts, Floats, Floats]:
    """Total score, number of pairs summed, log10 P(S ≥ total) and log10 P(S > total) under each key: [keys] each.

    The test is the one that suits the keys ``asked`` about, of which the others may be decoys.
    """
    if (counted := _colour_counts(found, asked)) is not None:
        totals, log10_p, above = asked[0].judged_by_counts(counted, keys)
        return totals, np.full(len(keys), len(found), np.int64), log10_p, above
    totals, counts = _totals(found, keys)
    if not keys[0].law_of_key:
        both = keys[0].log10_p(totals, counts), keys[0].law.log10_above(totals, counts)
    else:
        each = list(zip(keys, totals, counts, strict=True))
        both = [wm.log10_p(*one) for wm, *one in each], [wm.law.log10_above(*one) for wm, *one in each]
    return totals, counts, np.asarray(both[0], np.float64), np.asarray(both[1], np.float64)


def _totals(found: ev.Evidence, keys: Sequence[Watermark]) -> tuple[Floats, Counts]:
    """Total score of the evidence under each key, and the number of pairs summed: [keys], [keys]."""
    if _chooses(found, keys[0]):  # which pairs count depends on the key
        each = [_scored(found, wm) for wm in keys]
        return np.array([total for total, _ in each]), np.array([count for _, count in each], np.int64)
    totals = np.zeros(len(keys))
    for windows, tokens in found.blocks():
        totals += keys[0].totals(windows, tokens, keys)
    return totals, np.full(len(keys), len(found), np.int64)


def check_evidence(found: ev.Evidence, wm: Watermark) -> None:
    """Raise ``ValueError`` unless the evidence was collected with the watermark's window and vocabulary."""
    if found.packing.window != wm.window or found.packing.vocab_size != wm.vocab_size:
        raise ValueError(
            f"evidence was collected with window={found.packing.window} and vocab_size={found.packing.vocab_size}, the "
            f"watermark has {wm.window} and {wm.vocab_size}; collect it with the watermark's own"
        )
