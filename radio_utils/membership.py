"""Membership inference without a watermark: is this text in B's training data?

B is run once over the texts (:func:`token_scores`). From what the pass says of every token each method makes a score of
the text (:func:`membership_scores`), small for a member. The oldest is B's loss divided by the text's zlib entropy, so
that intrinsically simple text does not look like a member (Carlini et al. 2021). The scores of candidate documents are
compared with those of fresh documents that B cannot have seen, by a one-sided two-sample Kolmogorov–Smirnov test
(:func:`membership_test`). Explained in the chapter "Membership inference".
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats import ks

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
METHODS = ("zlib", "loss", "min-k", "min-k++", "reference")

# log-probabilities that are held at once, besides what the model itself returns: a processor's cache is small, and a GPU
# wants few, large steps
_SLICE = {"cpu": 1 << 21}
_SLICE_ELSEWHERE = 1 << 25
_NO_SPREAD = 1e-4  # nats: a distribution with less is certain or flat to the last bit, and the rest is rounding


def zlib_entropy(text: str) -> int:
    """Length in bytes of the zlib compression of the text.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    int
        Bytes of its UTF-8 form after compression.

    Notes
    -----
    N. Carlini et al., *Extracting Training Data from Large Language Models*, 2021.

    Examples
    --------
    >>> from radio_utils import membership
    >>> membership.zlib_entropy("ab" * 1000) < 40
    True
    """
    return len(zlib.compress(text.encode(), 9))


def pieces(tokenizer: Any, texts: Sequence[str], *, length: int = 256, shortest: int = 8) -> list[str]:
    """Cut texts into pieces of at most ``length`` tokens; pieces under ``shortest`` tokens are dropped.

    The cuts lie between characters, so that a character of several tokens is in one piece.
    Pieces of one text are no independent trials: :func:`labelled_pieces` says which text each comes from.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Makes token ids of strings.
    texts : sequence of str
        The texts to cut.
    length : int
        Most tokens of a piece.
    shortest : int
        Fewest tokens of a piece.

    Returns
    -------
    list of str
        The pieces, in order.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024: pieces of 256 tokens.
    """
    return labelled_pieces(tokenizer, texts, length=length, shortest=shortest)[0]


def labelled_pieces(tokenizer: Any, texts: Sequence[str], *, length: int = 256, shortest: int = 8) -> tuple[list[str], Ids]:
    """The pieces of :func:`pieces`, and the index among ``texts`` of the text that each was cut from: int array [pieces].

    The second is what :func:`membership_test` takes as ``documents``.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    fast = bool(getattr(tokenizer, "is_fast", False))
    options = {"return_offsets_mapping": True} if fast else {}
    cut = tokenizer(list(texts), add_special_tokens=False, **options) if texts else {"input_ids": []}
    found: list[str] = []
    labels: list[int] = []
    for label, (text, ids) in enumerate(zip(texts, cut["input_ids"], strict=True)):
        spans = cut["offset_mapping"][label] if fast else None
        parts = _parts(tokenizer, text, ids, spans, length)
        long = [part for part, size in parts if size >= shortest]
        found.extend(long)
        labels.extend([label] * len(long))
    return found, np.array(labels, np.int64)


def _parts(
    tokenizer: Any, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]] | None, length: int
) -> Iterator[tuple[str, int]]:
    """Pieces of a text, each with its tokens: the most up to ``length`` that end with a character, else the fewest above.

    ``spans`` are the characters of each token. Without them, a piece that holds a sign that stands for broken characters,
    and that the text has not, ends within one.
    """
    start = done = 0
    while start < len(ids):

        def ends(end: int, start: int = start) -> bool:
            if end == len(ids):
                return True
            if spans is None:
                return "\ufffd" in text or "\ufffd" not in tokenizer.decode(ids[start:end])
            return spans[end - 1][1] <= spans[end][0]

        most = min(start + length, len(ids))
        end = next(filter(ends, itertools.chain(range(most, start, -1), range(most + 1, len(ids) + 1))))
        last = done if spans is None else max(done, spans[end - 1][1])
        yield tokenizer.decode(ids[start:end]) if spans is None else text[done:last], end - start
        start, done = end, last


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What one forward pass of a model says about the tokens of one text.

    ``context`` [m] holds the ids of the prompt and the text. The n = m − ``first`` tokens from ``first`` on are scored, and
    the other arrays have one entry for each: ``log_p`` is the log-probability of the token (nats); ``mean`` and ``std`` are
    those of the log-probability of a token drawn from the model's own distribution at that place (Zhang et al. 2025).
    """

    text: str
    context: Ids
    first: int
    log_p: Floats
    mean: Floats
    std: Floats

    @property
    def loss(self) -> float:
        """The model's total loss on the text (nats)."""
        return float(-self.log_p.sum())


def token_scores(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    max_length: int = 512,
    chat_template: str = "none",
) -> list[TokenScores]:
    """Run the model once over each text, after its prompt if there is one, and keep what it says of every token.

    The model is fed as its tokenizer says: behind the tokens that this sets before a text, and with ``chat_template``
    "auto", or a file of Jinja source, prompts as the user's turn in that template (:mod:`radio_utils.suspects.feeding`).
    What is kept is 32 bytes a token; of the logits there is never more than one batch. Where only losses are needed
    :func:`losses` makes the same pass without the statistics over the vocabulary.

    Parameters
    ----------
    model : transformers model
        The suspect B, a causal language model.
    tokenizer : transformers tokenizer
        Makes token ids of strings.
    texts : sequence of str
        What is scored.
    prompts : sequence of str, optional
        What stood before each text.
    batch_size : int
        Sequences a forward pass.
    max_length : int
        Longest context in tokens.
    chat_template : str
        "auto" for the tokenizer's own, "none", or a file of Jinja source.

    Returns
    -------
    list of TokenScores
        log-probabilities and their moments for each token, in nats.

    Raises
    ------
    ValueError
        As :func:`losses` does, and for NaN among the logits.

    Notes
    -----
    See :func:`membership_scores`.
    """
    fed = _fed(tokenizer, texts, prompts, max_length, chat_template)
    found = []
    for i, (text, one, columns) in enumerate(zip(texts, fed, _measured(model, fed, batch_size, _statistics), strict=True)):
        log_p, mean, std = columns
        if np.isnan(mean).any():
            raise ValueError(
                f"the model's logits on texts[{i}] hold NaN; it diverged in training, or its precision overflowed"
            )
        found.append(TokenScores(text, one.ids, one.first, log_p, mean, std))
    return found


def losses(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    max_length: int = 512,
    chat_template: str = "none",
) -> Floats:
    """B's total loss (nats) on each text, given its prompt if there is one: float array [n].

    The pass of :func:`token_scores`, without the statistics over the vocabulary that a loss does not need.

    Raises ``ValueError`` for no texts, an empty text, one longer than ``max_length`` tokens with its prompt (cut, its loss
    would be that of another text), or unequal numbers of prompts.
    """
    fed = _fed(tokenizer, texts, prompts, max_length, chat_template)
    return np.array([-log_p.sum() for (log_p,) in _measured(model, fed, batch_size, _log_p)])


def zlib_calibrated_losses(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    chat_template: str = "none",
) -> Floats:
    """B's loss on each text (nats) over the text's zlib entropy (bytes): float array [n]; small looks like a member.

    Parameters
    ----------
    model, tokenizer, texts, prompts, batch_size, chat_template
        As in :func:`token_scores`.

    Returns
    -------
    float array [n]
        Nats a byte.

    Raises
    ------
    ValueError
        As :func:`losses` does.

    Notes
    -----
    N. Carlini et al., *Extracting Training Data from Large Language Models*, 2021.

    Examples
    --------
    >>> scores = ru.zlib_calibrated_losses(bob, tokenizer, texts)  # doctest: +SKIP
    """
    found = losses(model, tokenizer, texts, prompts=prompts, batch_size=batch_size, chat_template=chat_template)
    return found / np.array([zlib_entropy(text) for text in texts], np.float64)


def membership_scores(
    statistics: Sequence[TokenScores], method: str, *, reference: ArrayLike | None = None, k_percent: float = 20.0
) -> Floats:
    """The score of each text by one of :data:`METHODS`: float array [n]; small looks like a member.

    - ``zlib``: the loss over the zlib entropy, nats a byte (Carlini et al. 2021).
    - ``loss``: the mean loss, nats a token (Yeom et al. 2018).
    - ``min-k``: the mean loss of the ``k_percent`` % least likely tokens, nats (Shi et al. 2024).
    - ``min-k++``: the same after each log-probability was standardised, by its mean and standard deviation under the
      model's own distribution at that place; no unit (Zhang et al. 2025).
    - ``reference``: the mean loss less that of a reference model, nats a token (Carlini et al. 2021 take the ratio).

    The difference of the losses rather than their ratio, because it is the log-likelihood ratio of the two
    models: what training added, summed over the tokens. A ratio is ruled by the texts on which the reference's loss is
    near 0.

    Of n tokens both min-k scores take ``⌊k n / 100⌋``, at least one. Where the model's distribution has no spread, being
    certain or flat, the deviation is set to 0.0001 nats.

    Parameters
    ----------
    statistics : sequence of TokenScores
        What :func:`token_scores` returned, one a text.
    method : str
        One of the methods above.
    reference : array_like of float [n], optional
        Another model's total losses on the same texts, in nats, from :func:`losses`; only that method reads them.
    k_percent : float in (0, 100]
        Share of the tokens that both min-k scores take.

    Returns
    -------
    float array [n]
        Scores; small looks like a member.

    Raises
    ------
    ValueError
        For no statistics, an unknown method, ``k_percent`` outside (0, 100], and a ``reference`` that is missing or
        does not hold one finite number for each text.

    Notes
    -----
    The sources stand beside the methods.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if len(statistics) == 0:
        raise ValueError("statistics is empty; make them with token_scores first")
    if not 0.0 < k_percent <= 100.0:
        raise ValueError(f"k_percent must lie in (0, 100], got {k_percent}; 20 takes the least likely fifth of the tokens")
    if method == "min-k":
        return np.array([_lowest(one.log_p, k_percent) for one in statistics])
    if method == "min-k++":
        return np.array([_lowest((s.log_p - s.mean) / np.maximum(s.std, _NO_SPREAD), k_percent) for s in statistics])
    totals = np.array([one.loss for one in statistics])
    if method == "zlib":
        return totals / np.array([zlib_entropy(one.text) for one in statistics], np.float64)
    if method == "reference":
        totals -= _checked_reference(reference, totals.size)
    return totals / np.array([one.log_p.size for one in statistics], np.float64)


def _lowest(values: Floats, k_percent: float) -> float:
    """Minus the mean of the ``k_percent`` % lowest values, of one at least."""
    count = max(1, int(k_percent * values.size / 100.0))
    return float(-np.partition(values, count - 1)[:count].mean())


def _checked_reference(reference: ArrayLike | None, count: int) -> Floats:
    if reference is None:
        raise ValueError("method 'reference' needs reference=…, another model's membership.losses on the same texts")
    found = np.asarray(reference, np.float64)
    if found.shape != (count,):
        raise ValueError(f"reference must hold one loss for each of the {count} texts, got shape {list(found.shape)}")
    if not np.all(np.isfinite(found)):
        raise ValueError("reference holds NaN or infinite values; drop those texts, or use another reference model")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Fed:
    """What is fed to a model: a text's tokens behind its prompt's, scored from ``first`` on."""

    ids: Ids
    first: int


def _fed(
    tokenizer: Any, texts: Sequence[str], prompts: Sequence[str] | None, max_length: int, chat_template: str
) -> list[_Fed]:
    from radio_utils.suspects.feeding import Feeding

    texts = _strings("texts", texts)
    if not texts:
        raise ValueError("texts is empty; there is no loss to compute")
    asked = [""] * len(texts) if prompts is None else _strings("prompts", prompts)
    if len(asked) != len(texts):
        raise ValueError(f"prompts and texts must be equal in number, got {len(asked)} prompts for {len(texts)} texts")
    bodies = tokenizer(texts, add_special_tokens=False)["input_ids"]
    feeding = Feeding.of(tokenizer, chat_template)
    bare = tokenizer(asked, add_special_tokens=False)["input_ids"]
    heads = [feeding.prompt(np.array(ids, np.int64)).tolist() for ids in bare]
    fed = []
    for i, (head, body) in enumerate(zip(heads, bodies, strict=True)):
        if len(head) + len(body) < 2 or not body:
            raise ValueError(f"texts[{i}] is too short to have a loss: {texts[i]!r}; drop such texts first")
        if len(head) + len(body) > max_length:
            raise ValueError(
                f"texts[{i}] has {len(head) + len(body)} tokens with its prompt, more than max_length={max_length}; "
                "cut texts with membership.pieces first, or raise max_length"
            )
        fed.append(_Fed(np.array(head + body, np.int64), max(1, len(head))))
    return fed


def _strings(name: str, values: Any) -> list[str]:
    """Texts as a list of plain strings, from whatever holds them: a list, an array, a column of a table."""
    if isinstance(values, str):
        raise ValueError(f"{name} must be a sequence of strings, got one string; put it in a list")
    found = list(values)
    for i, one in enumerate(found):
        if not isinstance(one, str):
            raise ValueError(f"{name}[{i}] is no string but {type(one).__name__}; leave it out, or give its text")
    return [str(one) for one in found]


# of the logits before some tokens [m, V] and those tokens [m]: what is wanted of them, each [m]
Measure = Callable[["torch.Tensor", "torch.Tensor"], "tuple[torch.Tensor, ...]"]


def _measured(model: Any, fed: list[_Fed], batch_size: int, measure: Measure) -> list[list[NDArray[Any]]]:
    """What ``measure`` finds at the scored tokens of each text. Texts of like length are fed together."""
    import torch

    from radio_utils.suspects.forward import read

    found: list[list[NDArray[Any]]] = [[] for _ in fed]
    with torch.inference_mode():
        for rows, (logits,) in read([model], [one.ids for one in fed], batch_size=batch_size, finite=False):
            for i, of_text in zip(rows, logits, strict=True):
                before, tokens = of_text[fed[i].first - 1 : -1], torch.from_numpy(fed[i].ids[fed[i].first :])
                step = max(1, _SLICE.get(of_text.device.type, _SLICE_ELSEWHERE) // of_text.shape[-1])
                slices = [slice(start, start + step) for start in range(0, tokens.numel(), step)]
                parts = [measure(before[some], tokens[some].to(of_text.device)) for some in slices]
                columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
                found[i] = [(one.double() if one.is_floating_point() else one).numpy() for one in columns]
    return found


def _log_p(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The log-probability of each token, in float32 at least."""
    from torch.nn import functional

    return (-functional.cross_entropy(_precise(logits), tokens, reduction="none"),)


def _statistics(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability of each token, and mean and deviation of log-probability there: each [m]."""
    every = _precise(logits).log_softmax(dim=-1)
    log_p = every.gather(1, tokens[:, None]).squeeze(1)
    p = every.exp()
    every.clamp_(min=-1000.0)  # exp(-1000) is 0 in any precision, and 0 times minus infinity would be NaN
    mean = (p * every).sum(dim=-1)
    every -= mean[:, None]  # centred first: the difference of two large moments would lose a small variance
    variance = p.mul_(every).mul_(every).sum(dim=-1)
    return log_p, mean, variance.sqrt()


def _precise(logits: torch.Tensor) -> torch.Tensor:
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class MembershipTest:
    """The one-sided test of candidate documents against fresh ones.

    ``statistic`` is D⁺, the largest lead of the candidates' distribution function over that of fresh text: 0 where the
    candidates are nowhere more member-like. ``candidates`` and ``fresh`` are numbers of *documents*, ``candidate_pieces``
    and ``fresh_pieces`` how many scores they were made of. ``log10_p`` holds under :attr:`hypothesis`.
    """

    statistic: float
    log10_p: float
    candidates: int
    fresh: int
    candidate_pieces: int
    fresh_pieces: int

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows."""
        return float(10.0**self.log10_p)

    @property
    def hypothesis(self) -> str:
        """What a small p-value speaks against, in words."""
        return (
            f"the {self.candidates} candidate documents and the {self.fresh} fresh ones are exchangeable: which of them "
            "are the candidates was settled by nothing that their scores depend on"
        )


def membership_test(
    candidate_scores: ArrayLike,
    fresh_scores: ArrayLike,
    *,
    documents: ArrayLike | None = None,
    fresh_documents: ArrayLike | None = None,
) -> MembershipTest:
    """Test H₀ "candidate and fresh documents are exchangeable" against "candidates score lower, as members do".

    A document's score is the mean over its pieces, and the test is the one-sided Kolmogorov–Smirnov test of these
    (:func:`radio_utils.stats.ks.ks_lower`): under H₀ all ways to choose the candidates among the documents are equally
    likely, which makes p exact without ties, and cautious with them. It is a permutation test of documents whose
    permutations are counted instead of drawn. Candidates that look *less* like members than fresh text never convict.

    What a rejection does not prove. Exchangeability fails for an innocent B, too, where candidates and fresh documents
    differ in anything that a score depends on: time, topic, style, length, number of pieces, or the model that wrote them.
    The test sees *that* candidates score lower, not why; only fresh documents made in the same way as the candidates,
    and perhaps drawn by lot from one pool, leave training as the reason. A score, or a way to cut, that is chosen after
    looking counts as one more test. Documents that are near copies of one another must share a label.

    Parameters
    ----------
    candidate_scores : array_like of float [n]
        Scores of what the suspect may have learned; small looks like a member (:func:`membership_scores`).
    fresh_scores : array_like of float [m]
        Scores of what he cannot have learned.
    documents : array_like [n], optional
        Which document each score is a piece of, as labels of any kind (:func:`labelled_pieces`). Pieces of one document
        share its author and its topic: as trials of their own they convict innocents. Without labels each is a document.
    fresh_documents : array_like [m], optional
        The same for the fresh scores.

    Returns
    -------
    MembershipTest
        The statistic D⁺ and log10 p.

    Raises
    ------
    ValueError
        Naming the sample that has fewer than 2 documents, NaN or infinite values, labels of only one sample, or labels
        that are not one for each score.

    Notes
    -----
    J. L. Hodges, *The significance probability of the Smirnov two-sample test*, 1958.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> rng = np.random.default_rng(0)
    >>> found = ru.membership_test(rng.normal(-1, 1, 200), rng.normal(0, 1, 200))
    >>> found.candidates, bool(found.log10_p < -10)
    (200, True)
    """
    if (documents is None) != (fresh_documents is None):
        missing, given = ("fresh_documents", "documents") if fresh_documents is None else ("documents", "fresh_documents")
        raise ValueError(
            f"{missing} is missing while {given} is given: the mean of a document's pieces has another distribution than a "
            "single piece has; label the pieces of both samples, or of neither"
        )
    candidates = _of_documents("candidate_scores", candidate_scores, "documents", documents)
    fresh = _of_documents("fresh_scores", fresh_scores, "fresh_documents", fresh_documents)
    result = ks.ks_lower(candidates, fresh)
    return MembershipTest(
        statistic=result.statistic,
        log10_p=result.log10_p,
        candidates=candidates.size,
        fresh=fresh.size,
        candidate_pieces=np.size(candidate_scores),
        fresh_pieces=np.size(fresh_scores),
    )


def _of_documents(name: str, scores: ArrayLike, labels_name: str, labels: ArrayLike | None) -> Floats:
    """One score for each document, the mean of its pieces'."""
    sample = np.asarray(scores, np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 values, got shape {list(sample.shape)}")
    if not np.all(np.isfinite(sample)):
        raise ValueError(f"{name} holds NaN or infinite values; drop them before testing")
    if labels is None:
        return sample
    given = np.asarray(labels)
    if given.shape != sample.shape:
        raise ValueError(
            f"{labels_name} must hold one label for each of the {sample.size} values of {name}, got shape "
            f"{list(given.shape)}"
        )
    found, owner, counts = np.unique(given, return_inverse=True, return_counts=True)
    if found.size < 2:
        raise ValueError(f"{labels_name} names {found.size} document; at least 2 documents a sample can be compared")
    # shifted by one of the values: a document of equal pieces then has their very score, and ties stay ties
    first = sample[np.unique(owner, return_index=True)[1]]
    means: Floats = first + np.bincount(owner, sample - first[owner]) / counts
    return means


def candidates_needed(distance: float, d: float, log10_p: float) -> int:
    """Candidate documents (and as many fresh ones) for which a share ``d`` of members is expected to reach ``log10_p``.

    ``distance`` is D⁺ of members alone (d = 1). With a share d it is d·distance, and Smirnov's limit gives
    p ≈ exp(−n·(d·distance)²) for n candidates and n fresh documents.

    Parameters
    ----------
    distance : float in (0, 1]
        D⁺ of members alone.
    d : float in (0, 1]
        Degree of supervision: the share of members among the candidates.
    log10_p : float
        The log10 p to be reached.

    Returns
    -------
    int
        Documents on each side.

    Raises
    ------
    ValueError
        For shares outside (0, 1] or a positive ``log10_p``.

    Notes
    -----
    N. V. Smirnov's limit law.

    Examples
    --------
    >>> from radio_utils import membership
    >>> membership.candidates_needed(0.5, d=0.1, log10_p=-3)
    2764
    """
    if not (0 < distance <= 1 and 0 < d <= 1 and log10_p < 0):
        raise ValueError(f"distance and d must lie in (0, 1] and log10_p below 0, got {distance}, {d}, {log10_p}")
    return math.ceil(-log10_p * math.log(10) / (d * distance) ** 2)
