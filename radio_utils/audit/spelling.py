"""Texts as strings: how many of the tokens that a model draws are lost when its text is cut into tokens again.

Alice's model may draw "ab" as "a" and "b", where her tokenizer has one token for both. Which places are left then depends
on what was drawn, and so on the key. A p-value of reading allows for it
(:meth:`radio_utils.stats.laws.Law.log10_allowing`): the share of such draws is measured on text that is written for the
purpose, bounded from above, and multiplied by how much likelier a mark can make a token, 1/γ at most for a green list.
Rows with the token ids that were drawn need none of this, nor do tokenizers that spell nothing in two ways.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from radio_utils import evidence as ev
from radio_utils.audit.case import OPENING, Case, Ids, room
from radio_utils.audit.texts import Texts
from radio_utils.files import read_json, write_json
from radio_utils.provenance import code_version
from radio_utils.watermarks import Watermark

_TEXTS, _TOKENS = 64, 64  # how much is written to measure it
_SURE = 0.99
_MOST = 0.999  # an allowance that no test survives


@dataclass(frozen=True)
class Spelling:
    """Of ``tokens`` that ``writer`` drew, ``changed`` are others when the text is cut again; 0 where nobody could write."""

    changed: int
    tokens: int
    writer: str

    @property
    def most(self) -> float:
        """The upper 99 % confidence limit of their share (Clopper and Pearson)."""
        left = self.tokens - self.changed
        return float(stats.beta.ppf(_SURE, self.changed + 1, left)) if left else 1.0

    def allowance(self, wm: Watermark) -> float:
        """The share of trials for which a p-value must allow, below 1."""
        return min(self.most * wm.law.lift, _MOST)

    def words(self, wm: Watermark) -> str:
        """What a plan and a report say of it."""
        return (
            f"its tokens were made from strings; of {self.tokens:,} that {self.writer} drew {self.changed:,} are others "
            f"when cut again, so p allows for a share of {self.allowance(wm):.2g} (give rows with ids to avoid this)"
        )


def measured(case: Case) -> Spelling | None:
    """The spelling of Alice's model, or of a suspect with her tokenizer; None where nothing can be spelt in two ways."""
    request, tokenizer, models = case.request, case.tokenizer, case.models
    if not (case.texts.from_strings or (case.fresh is not None and case.fresh.from_strings)):
        return None
    if "open" not in request.modes or not respells(tokenizer):
        return None
    writer = models.alice or (models.suspect if models.vocabulary.same else None)
    if writer is None:
        return Spelling(0, 0, "nobody")
    openings = _openings(case.texts)
    fed = [writer.feeding.text(one) for one in openings]

    def build(folder: Path) -> None:
        drawn = writer.written(case, fed, room(writer, openings, _TOKENS), "spelling")
        counts = {"changed": sum(changed(tokenizer, ids) for ids in drawn), "tokens": sum(ids.size for ids in drawn)}
        write_json(folder / "spelling.json", counts)

    config = {"openings": [ids.tolist() for ids in openings], "writer": writer.digest, "seed": request.seed}
    config |= {"temperature": request.alice_temperature, "dtype": request.dtype, "fed": writer.feeding.digest}
    made = case.kept("spelling", config, build, writer.name, code_version(build))
    found = read_json(made / "spelling.json")
    return Spelling(found["changed"], found["tokens"], "Alice's model" if writer is models.alice else "the suspect")


def respells(tokenizer: Any) -> bool:
    """Whether cutting a text again can give other tokens: whether it does for random ones."""
    ids = np.array(sorted(set(tokenizer.get_vocab().values())), np.int64)
    drawn = ids[np.random.default_rng(0).integers(0, ids.size, (_TEXTS, _TOKENS))].tolist()
    return bool(cut_again(tokenizer, drawn) != drawn)


def cut_again(tokenizer: Any, ids: list[list[int]]) -> list[list[int]]:
    """Tokens of the texts that these tokens are."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return found


def changed(tokenizer: Any, drawn: Ids) -> int:
    """How many of the drawn tokens are no tokens of the text, cut again, at the same characters."""
    (again,) = cut_again(tokenizer, [drawn.tolist()])
    return sum((Counter(_spans(tokenizer, drawn.tolist())) - Counter(_spans(tokenizer, again))).values())


def _spans(tokenizer: Any, ids: list[int]) -> list[tuple[int, int, int]]:
    """Where each token begins and ends in the text, and the token."""
    prefixes = [ids[:end] for end in range(len(ids) + 1)]
    texts = tokenizer.batch_decode(prefixes, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ends = [len(text) for text in texts]
    return list(zip(ends, ends[1:], ids, strict=False))


def _openings(texts: Texts) -> list[Ids]:
    """What is continued: the last tokens of prompts, or the first of texts."""
    prompts = [ev.without_gaps(one) for one in texts.prompts or [text[:0] for text in texts.ids]]
    found = [p[-OPENING:] if p.size else t[:OPENING] for p, t in zip(prompts, texts.ids, strict=True)]
    return [found[i % len(found)] for i in range(_TEXTS)]
