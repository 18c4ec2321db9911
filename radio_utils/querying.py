"""The closed-model test: prompt B, score its answers.

Only B's text is seen. Windows that occur in an answer's own prompt are not scored, and the filter φ keeps the windows that
were likely in B's training data (Sander et al. 2024, section 4; chapter "Closed model").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from radio_utils import detection
from radio_utils import evidence as ev
from radio_utils.suspects import Ids, LocalSuspect, Suspect
from radio_utils.watermarks import Watermark


def query_closed_model(
    suspect: Suspect | Any,
    prompts: Sequence[ArrayLike],
    wm: Watermark,
    *,
    keep: ArrayLike | None = None,
    budget: int | None = None,
    dedup: ev.Dedup = "window+token",
) -> detection.Detection:
    """Test H₀ "B never learned from text watermarked with this key" on B's answers to the prompts.

    ``suspect`` answers prompts (:class:`radio_utils.suspects.Suspect`); a bare transformers model is taken as a local
    one. At most ``budget`` prompts are sent. Answers too short to hold a window and a token are dropped.

    Raises ``ValueError`` for no prompts, a budget below 1, ids outside the vocabulary, or when no answer can be scored.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be at least 1 prompt, or None for all, got {budget}")
    asked = ev.checked_texts("prompts", list(prompts)[:budget], wm.vocab_size, shortest=1)
    if not asked:
        raise ValueError("prompts is empty; there is nothing to ask the suspect")
    answers = as_suspect(suspect).answer(asked)
    return score_answers(asked, answers, wm, keep=keep, dedup=dedup)


def score_answers(
    prompts: Sequence[ArrayLike],
    answers: Sequence[Ids],
    wm: Watermark,
    *,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
) -> detection.Detection:
    """The verdict on answers that were already gathered."""
    if len(prompts) != len(answers):
        raise ValueError(f"prompts and answers must be equal in number, got {len(prompts)} and {len(answers)}")
    usable = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if len(answer) > wm.window]
    if not usable:
        raise ValueError(f"no answer is longer than the watermark's window={wm.window}; let the suspect write more")
    return detection.detect(
        [answer for _, answer in usable], wm, prompts=[prompt for prompt, _ in usable], keep=keep, dedup=dedup
    )


def as_suspect(suspect: Suspect | Any) -> Suspect:
    """The suspect itself, or a local suspect around a transformers model with its own stop tokens."""
    if isinstance(suspect, Suspect):
        return suspect
    if not hasattr(suspect, "config") or not hasattr(suspect, "forward"):
        raise TypeError(f"suspect must have answer(prompts) or be a transformers model, got {type(suspect).__name__}")
    eos = getattr(getattr(suspect, "generation_config", None), "eos_token_id", None)
    stops = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
    return LocalSuspect(suspect, stops)
