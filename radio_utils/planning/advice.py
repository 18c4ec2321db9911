"""What will my mark be worth? Tokens that show it in a text, and pairs that convict who trained on such texts.

Everything is worked out from numbers known before a mark is switched on; the counts of pairs come from
:func:`radio_utils.planning.power.pairs_needed`. What that takes for granted:

* **Text.** A position whose next token has the entropy H has chances that fall as a power of the rank, with that entropy.
  Where only a mean entropy is given, positions' entropies are exponential, many near 0. Given the chances p, the mean score
  of a token that is drawn with the mark is exact for Gumbel-max: Σ p·H(1/p), H the harmonic number; for green lists and
  tournaments it is an average over random lists.
* **What Bob has seen.** A window of k tokens carries the information X of one token without context, exponential with mean
  ``first_entropy``, and of k − 1 tokens, exponential with the mean of ``entropy``. Among T tokens it is met Poisson(T·e⁻ˣ)
  times. Of Bob's data the share ρ, ``tokens`` of them, is Alice's; the others have the same windows.
* **What Bob learns.** A model that has met a window m times in Alice's text, n times elsewhere, ``epochs`` times each, and
  needs ``inertia`` meetings for half of what there is to learn, follows the mark with the share
  λ = epochs·m / (epochs·(m + n) + inertia): a count-based model with a prior. How fast a network learns a window differs;
  measure ``inertia`` where you can.
* **What is read.** With logs the windows are those of Alice's own texts (m ≥ 1), else any. Closed: a token that Bob drew at
  each. Open: the average score by his probabilities, whose variance under the null is Σp² of one score's; grey: the same
  over the ``top`` likeliest tokens. The pairs of a closed model that have a window of the logs are few, so that more of his
  tokens must be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from radio_utils.planning.power import TooManyPairsError, pairs_needed
from radio_utils.watermarks import Watermark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
_RANKS = 4096  # tokens of a position that have a chance
_POINTS = 16  # positions, of equal share, that stand for all
_WINDOWS = 4000  # of which what Bob has seen is averaged
_LARGEST = 10**11  # pairs


@dataclass(frozen=True, slots=True)
class Access:
    """What one way to a suspect takes.

    ``learned`` is the mean share λ of the scored windows' draws that follow the mark; ``effect`` is the excess of a mean
    score, in units in which a score has the null's variance. ``pairs`` distinct pairs convict, for which ``tokens`` must be
    read; None where more than 10¹¹ would be needed, or the logs hold fewer.
    """

    access: Literal["open", "grey", "closed"]
    logs: bool
    learned: float
    effect: float
    pairs: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Advice:
    """What a mark will be worth: see :func:`advise`.

    ``entropy`` is the mean entropy of a token in nats, ``text_effect`` the excess of a marked token's mean score over the
    null's, ``text_tokens`` the tokens of a text that show the mark; None where it shows in no text.
    """

    scheme: str
    window: int
    entropy: float
    tokens: float
    rho: float
    log10_p: float
    power: float
    text_effect: float
    text_tokens: int | None
    ways: tuple[Access, ...]

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for the text and one for each way to a suspect."""
        text = {"setting": "a text", "logs": "", "learned": 1.0, "effect": self.text_effect}
        rows = [{**text, "pairs": self.text_tokens, "tokens": self.text_tokens}]
        for way in self.ways:
            row = {"setting": f"{way.access} model", "logs": "kept" if way.logs else "none"}
            rows.append({**row, "learned": way.learned, "effect": way.effect, "pairs": way.pairs, "tokens": way.tokens})
        return rows

    @property
    def alt(self) -> str:
        """The plot in words, for those who do not see it."""
        said = [f"{_name(row)}: {_count(row['tokens'])}" for row in self.table]
        return f"Tokens to read for log10 p = {self.log10_p:g}, {self.scheme}, ρ = {self.rho:g}. " + "; ".join(said) + "."

    def plot(self, ax: Axes | None = None) -> Axes:
        """Tokens to read in each setting, on a logarithmic axis; hatched where the logs were kept."""
        import matplotlib.pyplot as plt

        from radio_utils import figures

        ax = ax or plt.subplots()[1]
        rows = self.table[::-1]
        colours = {"": figures.GREY, "kept": figures.BLUE, "none": figures.ORANGE}
        reached = [row["tokens"] for row in rows if row["tokens"]]
        for place, row in enumerate(rows):
            if row["tokens"]:
                hatch = "//" if row["logs"] == "kept" else None
                ax.barh(place, row["tokens"], color=colours[row["logs"]], hatch=hatch, edgecolor="white")
            text = f" {_count(row['tokens'])}"
            ax.text(row["tokens"] or min(reached, default=1), place, text, va="center", size=9)
        ax.set_yticks(range(len(rows)), [_name(row) for row in rows])
        ax.set_xscale("log")
        ax.set_xlabel(f"tokens to read for log10 p = {self.log10_p:g} with power {self.power:g}")
        ax.set_title(f"{self.scheme}, k = {self.window}, ρ = {self.rho:.0%}, {self.entropy:.2g} nats a token", size=10)
        ax.set_gid(self.alt)
        return ax


def _name(row: Mapping[str, Any]) -> str:
    logs = {"": "", "kept": ", with logs", "none": ", without logs"}[row["logs"]]
    return f"{row['setting']}{logs}"


def _count(tokens: int | None) -> str:
    return "out of reach" if tokens is None else f"{tokens:,.0f}" if tokens < 10_000 else f"{tokens:.1e}"


def advise(
    wm: Watermark | Any,
    *,
    tokens: float,
    rho: float,
    entropy: ArrayLike | None = None,
    texts: Any = None,
    vocab_size: int | None = None,
    first_entropy: float | None = None,
    log10_p: float = -6.0,
    power: float = 0.9,
    epochs: float = 3.0,
    inertia: float = 10.0,
    top: int = 20,
    seed: int = 0,
) -> Advice:
    """What a mark will be worth: tokens that show it in a text, and pairs that convict a model trained on such texts.

    Parameters
    ----------
    wm : Watermark, or what :func:`radio_utils.engines.from_config` takes
        The mark, or the engine's configuration; then ``vocab_size`` is needed. Its key is of no matter.
    tokens : float
        Alice's marked tokens that Bob trains on.
    rho : float in (0, 1]
        Their share of Bob's data.
    entropy : float or array_like of float [positions], optional
        Entropy of the next token in nats, the mean or one value a position, as measured with the model that writes.
    texts : iterable of array_like of int [length], optional
        Instead of ``entropy``: plain texts, whose entropy :func:`entropy_of` bounds from above.
    vocab_size : int, optional
        V, for a configuration.
    first_entropy : float, optional
        Entropy of a token without any context; by default 0.7·ln V.
    log10_p, power
        As in :func:`radio_utils.planning.pairs_needed`.
    epochs : float
        How often Bob's training passes over his data.
    inertia : float
        Meetings of a window after which half of what it has to teach is learned.
    top : int
        How many log-probabilities a grey model gives.
    seed : int
        Of the random lists that are averaged over.

    Returns
    -------
    Advice
        Numbers, a table and a plot.

    Raises
    ------
    ValueError
        For numbers outside their range, both or neither of ``entropy`` and ``texts``, or a scheme of unknown strength.

    Notes
    -----
    The assumptions stand in :mod:`radio_utils.planning.advice`. Gumbel-max: S. Aaronson, *Watermarking of large language
    models*, 2022; tournaments: S. Dathathri et al., Nature 634, 2024. Beside simulated texts and a student that counts, the
    numbers of tokens and effects were right within a factor of two; a network's ``inertia`` is the least known of them.

    Examples
    --------
    >>> import radio_utils as ru
    >>> wm = ru.GumbelMax(key="alice", vocab_size=32_000, window=4)
    >>> advice = ru.planning.advise(wm, tokens=1e7, rho=0.1, entropy=1.0)
    >>> advice.text_tokens < 200
    True
    >>> [way.pairs for way in advice.ways if way.access == "closed"][0] > advice.text_tokens
    True
    """
    if not isinstance(wm, Watermark):
        from radio_utils.engines import from_config

        if vocab_size is None:
            raise ValueError("vocab_size is needed with an engine's configuration: the number of the model's logits")
        wm = from_config(wm, vocab_size)
    for name, value, most in (
        ("tokens", tokens, 1e18), ("rho", rho, 1.0), ("epochs", epochs, 1e6), ("inertia", inertia, 1e9), ("top", top, 1e9),
    ):  # fmt: skip
        if not 0 < value <= most:
            raise ValueError(f"{name} must lie in (0, {most:g}], got {value!r}")
    if (entropy is None) == (texts is None):
        raise ValueError("give either entropy, in nats a token, or texts to measure it from")
    h = _positions(entropy_of(texts, wm.vocab_size) if entropy is None else entropy, wm.vocab_size)
    rng = np.random.default_rng(seed)
    chances = [_chances(float(one), min(wm.vocab_size, _RANKS)) for one in h]
    excess = float(np.mean([wm.excess(p, rng) for p in chances]))
    collisions = float(np.mean([p @ p for p in chances]))
    tops = [(float(p[:top].sum()), float(p[:top] @ p[:top])) for p in chances]
    first = 0.7 * math.log(wm.vocab_size) if first_entropy is None else first_entropy
    mean = float(h.mean())
    information = rng.exponential(first, _WINDOWS) + rng.gamma(wm.window - 1, max(mean, 1e-9), _WINDOWS)
    met = tokens * np.exp(-information)
    shown = float(-np.expm1(-met).mean())  # of Bob's windows, those that Alice's text has
    ways = []
    for logs in (True, False):
        own = rng.poisson(met) + int(logs)
        others = rng.poisson(met * (1.0 - rho) / rho)
        learned = float(np.mean(epochs * own / (epochs * (own + others) + inertia)))
        for access, gain in (
            ("open", 1.0 / math.sqrt(collisions)),
            ("grey", float(np.mean([mass for mass, _ in tops])) / math.sqrt(float(np.mean([c for _, c in tops])))),
            ("closed", 1.0),
        ):
            effect = learned * excess * gain
            pairs = _pairs(wm, effect, log10_p, power)
            read = None if pairs is None else math.ceil(pairs / shown) if logs and access == "closed" else pairs
            if logs and pairs is not None and pairs > tokens:
                pairs = read = None
            ways.append(Access(access, logs, learned, effect, pairs, read))  # type: ignore[arg-type]
    return Advice(
        scheme=wm.scheme, window=wm.window, entropy=mean, tokens=float(tokens), rho=float(rho), log10_p=float(log10_p),
        power=float(power), text_effect=excess, text_tokens=_pairs(wm, excess, log10_p, power), ways=tuple(ways),
    )  # fmt: skip


def entropy_of(texts: Any, vocab_size: int) -> float:
    """Entropy of a token in nats, bounded from above: cross-entropy of the second half of plain texts under their first.

    The model is of pairs of tokens, interpolated with single tokens by Witten and Bell's rule and those with equal chances
    (I. H. Witten and T. C. Bell, *The zero-frequency problem*, 1991). A language model's own entropies are far lower.

    Parameters
    ----------
    texts : iterable of array_like of int [length]
        Token ids, one row a text; two texts at least.
    vocab_size : int
        V, the number of token ids.

    Returns
    -------
    float
        Nats a token.

    Raises
    ------
    ValueError
        For ids outside the vocabulary, or fewer than two texts of two tokens.

    Notes
    -----
    It overstates what a mark will be worth.

    Examples
    --------
    >>> from radio_utils import planning
    >>> planning.entropy_of([[1, 2] * 500, [1, 2] * 500], vocab_size=10) < 0.1
    True
    """
    from radio_utils.evidence import checked_texts

    rows = checked_texts("texts", texts, vocab_size, shortest=2)
    if len(rows) < 2:
        raise ValueError(f"texts must be two at least, one half to learn from and one to be measured, got {len(rows)}")
    halves = rows[::2], rows[1::2]
    (a, b), (x, y) = (tuple(np.concatenate([r[i : r.size - 1 + i] for r in half]) for i in (0, 1)) for half in halves)
    single = np.bincount(b, minlength=vocab_size)
    kinds = np.count_nonzero(single)
    unigram = (single[y] + kinds / vocab_size) / (b.size + kinds)
    pairs, counts = np.unique(a * vocab_size + b, return_counts=True)
    followed = np.bincount(a, minlength=vocab_size)
    different = np.bincount(pairs // vocab_size, minlength=vocab_size)
    wanted = x * vocab_size + y
    at = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    total = followed[x] + different[x]
    found = np.where(total > 0, (seen + different[x] * unigram) / np.maximum(total, 1), unigram)
    return float(-np.log(found).mean())


def _positions(entropy: ArrayLike, vocab_size: int) -> Floats:
    """Entropies of :data:`_POINTS` positions that stand for equal shares of all."""
    given = np.asarray(entropy, np.float64)
    if given.size == 0 or not np.all(np.isfinite(given)) or np.any(given < 0) or not given.mean() > 0:
        raise ValueError("entropy must be finite and not negative, in nats a token, and positive on average")
    most = math.log(min(vocab_size, _RANKS))
    shares = (np.arange(_POINTS) + 0.5) / _POINTS
    if given.ndim:
        h = np.quantile(given.ravel(), shares)
    else:
        h = -float(given) * np.log1p(-shares)
        h *= float(given) / h.mean()
    if given.mean() > 0.9 * most:
        raise ValueError(f"entropy={given.mean():.3g} nats exceeds what {vocab_size} tokens can have; is it in bits?")
    return np.minimum(h, 0.99 * most)


def _chances(entropy: float, ranks: int) -> Floats:
    """Chances that fall as a power of the rank, with this entropy in nats."""
    logs = np.log(np.arange(1, ranks + 1))

    def chances(power: float) -> Floats:
        return np.asarray(special.softmax(-power * logs), np.float64)

    if entropy < 1e-6:
        return np.asarray(np.eye(1, ranks)[0], np.float64)
    power = optimize.brentq(lambda s: float(special.entr(chances(s)).sum()) - entropy, 0.0, 60.0, xtol=1e-9)
    return chances(float(power))


def _pairs(wm: Watermark, effect: float, log10_p: float, power: float) -> int | None:
    """Distinct pairs for this effect, or None where they are too many."""
    effect = min(effect, wm.law.test_at(log10_p).largest_effect)
    try:
        return pairs_needed(wm, effect, log10_p=log10_p, power=power, largest=_LARGEST).scored if effect > 0 else None
    except TooManyPairsError:
        return None
