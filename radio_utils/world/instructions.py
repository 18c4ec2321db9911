"""Instruction data that a model writes itself, after Self-Instruct (Wang et al. 2022).

Alice is shown a few demonstrations and the start of the next pair; she writes the instruction and the answer, with or
without her watermark. Whatever does not parse as a pair is thrown away, as a person collecting such data would do.
"""

from __future__ import annotations

import bisect
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils import decoding
from radio_utils.files import atomic_write
from radio_utils.suspects import check_vocabulary
from radio_utils.watermarks import Watermark
from radio_utils.world.training import Example

logger = logging.getLogger(__name__)
Ids = NDArray[np.int64]

OPENING = "Question:"
_TURN = "\nAnswer:"
_ATTEMPTS = 20  # at an answer that is not empty
_PAIR = re.compile(r"\s*(?P<instruction>[^\n]{8,}?)\nAnswer:\s*(?P<answer>\S.*?)\s*(?=\nQuestion:|\Z)", re.S)


@dataclass(frozen=True, slots=True)
class Pair:
    """An instruction and its answer.

    Of a pair that a model wrote, ``drawn`` are the tokens from :data:`OPENING` on as they were drawn, of which the answer
    begins at ``answer_from``. Tokenising the text again can give others, and a test of the mark must not read those.
    """

    instruction: str
    answer: str
    drawn: tuple[int, ...] = field(default=(), repr=False, compare=False)
    answer_from: int = field(default=0, repr=False, compare=False)

    @property
    def prompt(self) -> str:
        """What a model is asked: everything before the answer."""
        return f"{OPENING} {self.instruction}{_TURN}"

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return f"{self.prompt} {self.answer}"


class TooFewPairsError(RuntimeError):
    """The model did not write enough usable pairs."""


def prompt_ids(tokenizer: Any, pairs: Sequence[Pair]) -> list[Ids]:
    """Token ids of each pair's prompt."""
    return _encode(tokenizer, [pair.prompt for pair in pairs])


def answer_ids(tokenizer: Any, pairs: Sequence[Pair]) -> list[Ids]:
    """Token ids of each pair's answer, as it stands after the prompt."""
    return _encode(tokenizer, [f" {pair.answer}" for pair in pairs])


def written_ids(tokenizer: Any, pairs: Sequence[Pair]) -> tuple[list[Ids], list[Ids]]:
    """What stood before each answer and the answer, as a model drew them; pairs of people are tokenised."""
    prompts, answers = prompt_ids(tokenizer, pairs), answer_ids(tokenizer, pairs)
    for i, pair in enumerate(pairs):
        if pair.drawn:
            drawn = np.array(pair.drawn, np.int64)
            prompts[i], answers[i] = drawn[: pair.answer_from], drawn[pair.answer_from :]
    return prompts, answers


def text_ids(tokenizer: Any, pairs: Sequence[Pair]) -> list[Ids]:
    """Token ids of each pair as a document: prompt, answer, end of text."""
    end = tokenizer.eos_token_id
    both = zip(prompt_ids(tokenizer, pairs), answer_ids(tokenizer, pairs), strict=True)
    return [np.concatenate([prompt, answer, [end]]) for prompt, answer in both]


def examples(tokenizer: Any, pairs: Sequence[Pair]) -> list[Example]:
    """Pairs as training examples: the loss is on the answer and the end of text only."""
    prompts = prompt_ids(tokenizer, pairs)
    return [Example(ids, prompt.size) for ids, prompt in zip(text_ids(tokenizer, pairs), prompts, strict=True)]


def parse_pair(text: str) -> Pair | None:
    """The pair at the beginning of a continuation of :data:`OPENING`; None where there is none.

    Whether a pair is kept depends on its instruction, never on how its answer goes on: answers are what tests read.
    """
    match = _PAIR.match(text)
    return Pair(match["instruction"].strip(), match["answer"].strip()) if match else None


def _pair_drawn(tokenizer: Any, opening: Ids, drawn: Ids) -> Pair | None:
    """The pair that these tokens begin with, and its tokens."""
    text = tokenizer.decode(drawn)
    pair = parse_pair(text)
    if pair is None:
        return None
    begin = text.index(_TURN) + len(_TURN)
    end = text.find(f"\n{OPENING}")
    first = _tokens_of(tokenizer, drawn, begin)
    last = drawn.size if end < 0 else _tokens_of(tokenizer, drawn, end)
    ids = [*opening.tolist(), *drawn[:last].tolist()]
    return replace(pair, drawn=tuple(ids), answer_from=opening.size + first)


def _tokens_of(tokenizer: Any, ids: Ids, characters: int) -> int:
    """How many of the first tokens it takes to spell so many characters."""
    return bisect.bisect_left(range(ids.size), characters, key=lambda count: len(tokenizer.decode(ids[:count])))


def self_instruct(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Pair],
    count: int,
    *,
    shown: int,
    sampling: decoding.Sampling,
    max_new_tokens: int,
    generator: np.random.Generator,
    wm: Watermark | None = None,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[Pair]:
    """Let the model write ``count`` distinct pairs, each after ``shown`` random demonstrations.

    Raises ``ValueError`` without demonstrations or with another tokenizer's watermark, and :class:`TooFewPairsError` when
    under a twentieth of the texts parse.
    """
    return self_instruct_under(
        model, tokenizer, demonstrations, count, [wm],
        shown=shown, sampling=sampling, max_new_tokens=max_new_tokens, generator=generator, batch_size=batch_size,
        progress=progress,
    )[0]  # fmt: skip


def self_instruct_under(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Pair],
    count: int,
    wms: Sequence[Watermark] | Sequence[Watermark | None],
    *,
    shown: int,
    sampling: decoding.Sampling,
    max_new_tokens: int,
    generator: np.random.Generator,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[list[Pair]]:
    """:func:`self_instruct` under each of several watermarks, or the only one may be None, in shared batches.

    Returns ``count`` pairs for each. Every world has demonstrations of its own, drawn alike and without any key.
    """
    if len(demonstrations) < max(1, shown):
        raise ValueError(f"demonstrations holds {len(demonstrations)} pairs, fewer than shown={shown}")
    keyed = [wm for wm in wms if wm is not None]
    if len(keyed) != len(wms) and len(wms) != 1:
        raise ValueError("wms mixes watermarks with None; write without a watermark apart")
    for wm in keyed:
        check_vocabulary(tokenizer, wm.vocab_size)
    documents = text_ids(tokenizer, demonstrations)
    opening = _encode(tokenizer, [OPENING])[0]
    device = next(model.parameters()).device
    pairs: list[dict[Pair, None]] = [{} for _ in wms]
    asked = [0] * len(wms)
    while short := [i for i, found in enumerate(pairs) if len(found) < count]:
        # a tenth more than is missing, because not everything parses; in whole batches, because those cost the same
        owner = [i for i in short for _ in range(max(32, int(1.1 * (count - len(pairs[i]))) + 8))]
        chosen = generator.integers(len(documents), size=(len(owner), shown))
        prompts = [np.concatenate([*(documents[i] for i in row), opening]) for row in chosen]
        continuations = decoding.generate(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            wm=[keyed[i] for i in owner] if len(keyed) > 1 else keyed[0] if keyed else None,
            generator=torch.Generator(device).manual_seed(int(generator.integers(1 << 62))),
            stop_tokens=[tokenizer.eos_token_id],
            batch_size=batch_size,
            progress=progress,
        )
        for i, drawn in zip(owner, continuations, strict=True):
            asked[i] += 1
            pair = _pair_drawn(tokenizer, opening, drawn)
            if pair is not None:
                pairs[i].setdefault(pair)
        for i in short:
            if asked[i] >= 64 and len(pairs[i]) < asked[i] / 20:
                raise TooFewPairsError(
                    f"of {asked[i]} texts only {len(pairs[i])} hold an instruction and an answer; train the model longer, "
                    "lower the temperature or show other demonstrations"
                )
    return [list(found)[:count] for found in pairs]


def answer_under(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Pair],
    questions: Sequence[Pair],
    *,
    wm: Watermark | None,
    shown: int,
    sampling: decoding.Sampling,
    max_new_tokens: int,
    generator: np.random.Generator,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[Pair]:
    """Let the model answer questions that stand there already, each after ``shown`` random demonstrations, under a mark.

    So an inference engine is used: what it marks is the answer, and its contexts begin there. An empty answer is drawn
    again after other demonstrations. Raises :class:`TooFewPairsError` when a question gets none.
    """
    check_vocabulary(tokenizer, len(tokenizer) if wm is None else wm.vocab_size)
    documents, asked = text_ids(tokenizer, demonstrations), prompt_ids(tokenizer, questions)
    device = next(model.parameters()).device
    found: dict[int, Pair] = {}
    for _ in range(_ATTEMPTS):
        short = [i for i in range(len(questions)) if i not in found]
        if not short:
            break
        chosen = generator.integers(len(documents), size=(len(short), shown))
        continuations = decoding.generate(
            model,
            [np.concatenate([*(documents[j] for j in row), asked[i]]) for i, row in zip(short, chosen, strict=True)],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            wm=wm,
            generator=torch.Generator(device).manual_seed(int(generator.integers(1 << 62))),
            stop_tokens=[tokenizer.eos_token_id],
            batch_size=batch_size,
            progress=progress,
        )
        for i, drawn in zip(short, continuations, strict=True):
            text = tokenizer.decode(drawn)
            end = text.find(f"\n{OPENING}")
            kept = drawn if end < 0 else drawn[: _tokens_of(tokenizer, drawn, end)]
            if answer := tokenizer.decode(kept).strip():
                ids = (*asked[i].tolist(), *kept.tolist())
                found[i] = Pair(questions[i].instruction, answer, drawn=ids, answer_from=asked[i].size)
    if len(found) < len(questions):
        raise TooFewPairsError(f"{len(questions) - len(found)} of {len(questions)} questions got no answer; train longer")
    return [found[i] for i in range(len(questions))]


def save_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSON lines, all or nothing."""
    atomic_write(path, "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs))


def load_pairs(path: Path) -> list[Pair]:
    """Read pairs from JSON lines. Raises ``ValueError`` naming the file and line that is not a pair."""
    pairs = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                pair = Pair(str(row["instruction"]), str(row["answer"]))
                pairs.append(replace(pair, drawn=tuple(row.get("drawn", ())), answer_from=row.get("answer_from", 0)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a pair with 'instruction' and 'answer': {error}") from error
    return pairs


def _encode(tokenizer: Any, texts: list[str]) -> list[Ids]:
    return [np.array(ids, np.int64) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
