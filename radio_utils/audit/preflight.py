"""Preflight: what can be found wrong before a model runs or an answer is paid for.

The watermark must show in Alice's own texts under the given key, window and γ; the tokenizers must be the same, or known to
differ; and there must be text enough for the verdict that is asked for. What fails stops the audit with one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio_utils import detection, optout, planning
from radio_utils import evidence as ev
from radio_utils.audit.errors import AuditError, blamed
from radio_utils.audit.request import Request
from radio_utils.audit.texts import Texts
from radio_utils.keys import SCHEMES
from radio_utils.suspects.loading import rows_in_config
from radio_utils.suspects.vocabulary import VocabularySizes
from radio_utils.watermarks import Watermark

_WINDOWS = 8  # windows that are tried for a hint
_GAMMAS = (0.05, 0.1, 0.125, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.75)
_ROUND = (8, 64, 128, 256)  # numbers to which models are padded
_FAR_LIKELIER = 12.0  # nats by which another γ must explain the colours better
_ENOUGH = 200_000  # pairs at which γ is looked at


def detected(texts: Texts, wm: Watermark) -> detection.Detection:
    """The plain detector's verdict on texts, prompts excluded."""
    with blamed(texts.name, ValueError):
        return detection.detect(texts.ids, wm, prompts=texts.prompts)


def unmarked(texts: Texts, wm: Watermark) -> optout.UnmarkedShare:
    """About what share of the texts carries no mark: those of users who opted out, for instance."""
    with blamed(texts.name, ValueError):
        return optout.unmarked_share(texts.ids, wm, prompts=texts.prompts)


def log10_p_of(texts: Texts, wm: Watermark) -> float:
    """The plain detector's log10 p of all that a model is fed, prompts too: a context that is marked could be copied."""
    with blamed(texts.name, ValueError):
        return detection.detect(ev.long_pieces(texts.contexts, wm.window), wm).log10_p


def check_plain(texts: Texts, wm: Watermark) -> None:
    """Raise :class:`AuditError` for texts that should be without the key's mark and carry it."""
    if (log10_p := log10_p_of(texts, wm)) < detection.MARKED:
        raise AuditError(
            f"{texts.name} carry the watermark, or their prompts do (log10 p = {log10_p:.1f}), so a suspect could copy it "
            "from what it reads; give texts that were written without the key"
        )


def check_marked(texts: Texts, found: detection.Detection, wm: Watermark, request: Request) -> None:
    """Raise :class:`AuditError` unless the texts carry the watermark with these very parameters."""
    if found.log10_p >= detection.MARKED:
        raise AuditError(
            f"{texts.name} do not carry this watermark (log10 p = {found.log10_p:.1f} on {found.scored:,} pairs), so "
            f"nothing could be learned from them; {_hint(texts, wm, request)}"
        )
    rival = _likelier_gamma(found, request, wm)
    if rival is not None:
        raise AuditError(
            f"gamma={request.gamma:g} is not what {texts.name} were marked with: their colours fit gamma={rival:.3g} far "
            "better; give the γ of the watermark"
        )


def _hint(texts: Texts, wm: Watermark, request: Request) -> str:
    """Which other setting finds the mark, if one does; allowed is for all that are tried."""
    found = []
    for words, settings in _neighbours(wm, request):
        other = _made(wm, request, **settings)
        some = [] if other is None else [i for i, text in enumerate(texts.ids) if text.size > other.window]
        if other is not None and some:
            found.append((detected(texts.some(some), other).log10_p, words))
    log10_p, words = min(found, default=(0.0, ""))
    if log10_p + math.log10(len(found) or 1) < detection.MARKED:
        return f"with {words} they do (log10 p = {log10_p:.1f}): correct that parameter"
    return "check the key, the scheme, the tokenizer, and that these are the texts that were marked"


def _neighbours(wm: Watermark, request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    for window in range(1, _WINDOWS + 1):
        if window != wm.window:
            yield f"window={window}", {"window": window}
    if wm.asked_gamma is not None:
        for gamma in _GAMMAS:
            if abs(gamma - request.gamma) > 0.02:
                yield f"gamma={gamma:.3g}", {"gamma": gamma}
    for size in sorted(_padded_sizes(wm.vocab_size, request)):
        yield f"vocab_size={size}, rows of the model and not tokens alone,", {"vocab_size": size}
    if other := SCHEMES[request.scheme].rival:
        yield f"scheme={other!r}", {"scheme": other}


def _padded_sizes(size: int, request: Request) -> set[int]:
    """Vocabularies over which the mark may have been made: those of the models' configurations, and round numbers."""
    named = (request.alice, request.reference, request.suspect if request.kind == "model" else "", request.tokenizer)
    found = {rows_in_config(name) for name in named if name} | {-(-size // step) * step for step in _ROUND}
    return {rows for rows in found if rows is not None and rows > size}


def _made(wm: Watermark, request: Request, **settings: Any) -> Watermark | None:
    """The watermark with other settings; None where they are impossible, as a γ of less than one token is."""
    try:
        return request.variant(**{"vocab_size": wm.vocab_size, **settings})
    except AuditError:
        return None


def _likelier_gamma(found: detection.Detection, request: Request, wm: Watermark) -> float | None:
    """Another γ under which the texts' colours are far likelier; None where the given one is good.

    The lists of smaller γ lie within those of larger ones, so a wrong γ finds a mark too, only a weaker one. Text marked
    with γ has two densities of tokens, one inside that list and one outside, and the likelihood is greatest where the line
    between them is drawn right.
    """
    if wm.asked_gamma is None:
        return None
    windows, tokens = found.evidence.windows[:_ENOUGH], found.evidence.tokens[:_ENOUGH]

    def likelihood(gamma: float) -> tuple[float, float]:
        other: Any = _made(wm, request, gamma=gamma)
        if other is None:
            return -math.inf, gamma
        rate, null = float(np.mean(other.scores(windows, tokens))), float(other.law.mean)
        inside = rate * math.log(rate / null) if rate > 0 else 0.0
        outside = (1 - rate) * math.log((1 - rate) / (1 - null)) if rate < 1 else 0.0
        return tokens.size * (inside + outside), null

    given, _ = likelihood(request.gamma)
    rivals = [likelihood(gamma) for gamma in _GAMMAS if abs(gamma - request.gamma) > 0.02]
    value, gamma = max(rivals)
    return gamma if value > given + _FAR_LIKELIER else None


@dataclass(frozen=True)
class Vocabulary:
    """How the suspect's tokenizer stands to Alice's: ``same``, or ``differing`` tokens; ``padding`` are rows of the model
    that no token of the tokenizer has, as (first, last), or None.
    """

    same: bool
    differing: int
    padding: tuple[int, int] | None

    @property
    def words(self) -> str:
        """One sentence for the report."""
        same = "The suspect's tokenizer is Alice's, token by token."
        if not self.same:
            same = (
                f"The suspect's tokenizer differs from Alice's in {self.differing:,} tokens: answers are cut into tokens "
                "again with hers, and reading scores the places where one token of his decides hers."
            )
        if self.padding is None:
            return same
        return (
            f"{same} Rows {self.padding[0]:,} to {self.padding[1]:,} of the model's vocabulary have no token; they are "
            "ignored, unless the watermark was made over them (vocab_size)."
        )


def compare_vocabularies(tokenizer: Any, its_tokenizer: Any, logits: int | None) -> Vocabulary:
    """Compare two tokenizers by content, and the model's ``logits`` with its own tokenizer.

    Raises :class:`AuditError` for a model that has fewer logits than its tokenizer has tokens.
    """
    ours, theirs = tokenizer.get_vocab(), its_tokenizer.get_vocab()
    differing = 0 if ours == theirs else sum(ours.get(t) != theirs.get(t) for t in ours.keys() | theirs.keys())
    sizes = VocabularySizes.of(its_tokenizer)
    if logits is None:
        return Vocabulary(differing == 0, differing, None)
    if logits < sizes.size:
        raise AuditError(
            f"suspect has {logits} logits and its tokenizer {sizes.ids} tokens with ids up to {sizes.highest}; either "
            "tokens were added without resizing the model (remove them, or resize_token_embeddings), or the folder mixes "
            "two models: save the model and its own tokenizer together"
        )
    return Vocabulary(differing == 0, differing, (sizes.size, logits - 1) if logits > sizes.size else None)


@dataclass(frozen=True)
class Need:
    """What a test of about ``pairs`` distinct pairs can find, nine times in ten: an effect of ``smallest`` or more.

    The marked texts themselves have ``strongest``. ``smallest`` is None if not even a perfect score would reach the level.
    Both are means over all texts. Where a share of these carries no mark, it dilutes both alike.
    """

    pairs: int
    smallest: float | None
    strongest: float

    @property
    def enough(self) -> bool:
        """Whether a suspect that marks as strongly as Alice's texts do would be convicted."""
        return self.smallest is not None and self.smallest <= self.strongest


def where_marked(need: Need, unmarked_share: float) -> float | None:
    """The smallest effect that can be found, as a mean over the texts that carry the mark; None where none can."""
    return None if need.smallest is None or unmarked_share >= 1.0 else need.smallest / (1.0 - unmarked_share)


def power(wm: Watermark, pairs: int, of_texts: detection.Detection, log10_level: float) -> Need:
    """Power planning for a test of about so many distinct pairs at this level."""
    smallest = None
    with suppress(ValueError):
        smallest = float(planning.effect_seen(wm, max(1, pairs), log10_p=min(log10_level, -0.301)))
    return Need(pairs, smallest, of_texts.score - wm.law.mean)


def check_enough(needs: dict[str, Need], alpha: float) -> None:
    """Raise :class:`AuditError` if no planned test could convict even a suspect that marks like Alice."""
    if needs and not any(need.enough for need in needs.values()):
        most = max(need.pairs for need in needs.values())
        raise AuditError(
            f"too little text for alpha={alpha:g}: at most about {most:,} pairs can be scored, too few even for a "
            "suspect that is marked as strongly as the texts themselves; give more watermarked_texts, raise max_queries or "
            "max_tokens, or raise alpha"
        )
