"""Instruction data that a chat model writes: an instruction as its user would, then the answer as itself.

Given its template up to the user's turn, a chat model writes what a user might ask (Magpie: Xu et al. 2024, arXiv
2406.08464). A subject in the system line gives variety, and the turn is begun with one of :data:`BEGINNINGS`, without which
a small model often makes statements or goes on for ever. The answer is then drawn as for any user, after the template's own
opening. Instructions never carry the mark: users write them, and a prompt that the key has touched is one more way for a
test to go wrong.

What is kept: an instruction that the model ended by itself within :data:`LONGEST` tokens, on one line of at least
:data:`WORDS` words, and that is no near-duplicate, sharing less than :data:`ALIKE` of their words with each one before. Of
answers only those without a word are dropped: any other rule would choose among answers by their words, and so by the mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils import decoding
from radio_utils.suspects import check_vocabulary
from radio_utils.watermarks import Watermark
from radio_utils.world.chunks import Chunks
from radio_utils.world.instructions import Pair, TooFewPairsError
from radio_utils.world.subjects import SUBJECTS
from radio_utils.world.training import Example

Ids = NDArray[np.int64]

LONGEST = 48  # tokens of an instruction
WORDS = 4
ALIKE = 0.7
BEGINNINGS = ("What", "How", "Why", "Which", "When", "Explain", "Describe", "Can you", "Give me", "Write")
_SYSTEM = "The user asks one short question about {}."
_MARK = "\N{BLACK SQUARE}\N{BLACK SQUARE}"  # stands for what is said, to see what a template sets around it
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Turn(Pair):
    """A pair whose prompt is the user's turn in a chat template: ``asked`` is the prompt as a text."""

    asked: str = field(default="", repr=False, compare=False)

    @property
    def prompt(self) -> str:
        """What a model is asked: everything before the answer."""
        return self.asked

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return f"{self.asked}{self.answer}"


class Chat:
    """A tokenizer's own chat template: what it sets around an instruction and an answer, and where a turn ends."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ``ValueError`` for a tokenizer without a template, or one that does not show what is said."""
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat_template; take an instruct model's tokenizer")
        self._tokenizer = tokenizer
        self._user_end = self._around([{"role": "user", "content": _MARK}])[1]
        replied = self._around([{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}])[1]
        self._answer_end = self._up_to_a_stop(replied)

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens with which a turn ends."""
        special = set(self._tokenizer.all_special_ids)
        ends = {*self._encoded(self._user_end).tolist(), *self._answer_end.tolist()}
        return sorted({self._tokenizer.eos_token_id} | (ends & special))

    def turns(self, pairs: Iterable[Pair]) -> list[Turn]:
        """Pairs as turns of a chat."""
        return [Turn(p.instruction, p.answer, p.drawn, p.answer_from, self.asked(p.instruction)) for p in pairs]

    def asked(self, instruction: str) -> str:
        """The prompt of an instruction: the template up to where the assistant begins."""
        return self._rendered([{"role": "user", "content": instruction}], add_generation_prompt=True)

    def examples(self, pairs: Iterable[Pair]) -> list[Example]:
        """Pairs as training examples: the loss is on the answer and on the end of its turn only."""
        result = []
        for pair in pairs:
            prompt = self._encoded(self.asked(pair.instruction))
            result.append(Example(np.concatenate([prompt, self._encoded(pair.answer), self._answer_end]), prompt.size))
        return result

    def users_turn(self, subject: str, beginning: str) -> Ids:
        """The template up to the user's first words, behind a system line that names a subject."""
        said = [{"role": "system", "content": _SYSTEM.format(subject)}, {"role": "user", "content": _MARK}]
        return self._encoded(self._around(said)[0] + beginning)

    def instruction(self, beginning: str, drawn: Ids) -> str:
        """What the user said, of what was drawn behind :meth:`users_turn`; nothing where a special token was drawn."""
        if set(drawn.tolist()) & set(self._tokenizer.all_special_ids):
            return ""
        text: str = beginning + self._tokenizer.decode(drawn)
        end = self._user_end.strip()
        return text.partition(end)[0].strip() if end else text.strip()

    def answered(self, instruction: str, prompt: Ids, drawn: Ids) -> Turn | None:
        """The turn with this answer, or None for an answer without a word."""
        answer = self._tokenizer.decode(drawn, skip_special_tokens=True).strip()
        if not _WORD.search(answer):
            return None
        return Turn(instruction, answer, (*prompt.tolist(), *drawn.tolist()), prompt.size, self.asked(instruction))

    def prompt(self, instruction: str) -> Ids:
        """Token ids of :meth:`asked`."""
        return self._encoded(self.asked(instruction))

    def _around(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        head, mark, tail = self._rendered(messages).rpartition(_MARK)
        if not mark:
            raise ValueError("the chat template does not show what is said; take another model's tokenizer")
        return head, tail

    def _rendered(self, messages: list[dict[str, str]], **options: Any) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _encoded(self, text: str) -> Ids:
        return np.array(self._tokenizer([text], add_special_tokens=False)["input_ids"][0], np.int64)

    def _up_to_a_stop(self, text: str) -> Ids:
        """The tokens that end an answer, up to the one that stops generation, which is added where a template has none."""
        ids, end = self._encoded(text), self._tokenizer.eos_token_id
        at = np.flatnonzero(ids == end)
        return ids[: at[0] + 1] if at.size else np.append(ids, end)


class _New:
    """Instructions so far, and whether another one is new and fit to be asked."""

    def __init__(self) -> None:
        self._met: list[frozenset[str]] = []

    def __call__(self, text: str) -> bool:
        words = frozenset(_WORD.findall(text.casefold()))
        if "\n" in text or len(_WORD.findall(text)) < WORDS:
            return False
        if any(len(words & other) >= ALIKE * len(words | other) for other in self._met):
            return False
        self._met.append(words)
        return True


def write_turns(
    model: Any,
    tokenizer: Any,
    count: int,
    wms: Sequence[Watermark] | Sequence[Watermark | None],
    *,
    sampling: decoding.Sampling,
    max_new_tokens: int,
    generator: np.random.Generator,
    subjects: Sequence[str] = SUBJECTS,
    batch_size: int = 32,
    progress: str | None = None,
    kept: Path | None = None,
) -> list[list[Turn]]:
    """Let a chat model write ``count`` distinct turns under each of several watermarks, or the only one may be None.

    Every world has instructions of its own, drawn alike and without any key. With a folder ``kept`` each batch is kept
    there, and a writing that was killed goes on behind it with the same texts. Raises ``ValueError`` for a tokenizer
    without a template or another one's watermark, and :class:`TooFewPairsError` when under a twentieth of the texts can be
    used.
    """
    keyed = [wm for wm in wms if wm is not None]
    if len(keyed) != len(wms) and len(wms) != 1:
        raise ValueError("wms mixes watermarks with None; write without a watermark apart")
    for wm in keyed:
        check_vocabulary(tokenizer, wm.vocab_size)
    chat = Chat(tokenizer)
    chunks = Chunks(kept)
    device = next(model.parameters()).device

    def draw(prompts: list[Ids], under: list[Watermark], longest: int, label: str) -> list[Ids]:
        found: list[Ids] = []
        for start in range(0, len(prompts), batch_size):
            some, keys = prompts[start : start + batch_size], under[start : start + batch_size]
            seed = int(generator.integers(1 << 62))

            def generate(some: list[Ids] = some, keys: list[Watermark] = keys, seed: int = seed) -> list[list[int]]:
                texts = decoding.generate(
                    model,
                    some,
                    max_new_tokens=longest,
                    sampling=sampling,
                    wm=None if not keys else keys[0] if len(set(keys)) == 1 else keys,
                    generator=torch.Generator(device).manual_seed(seed),
                    stop_tokens=chat.stop_tokens,
                    batch_size=batch_size,
                    progress=None if progress is None else f"{progress}, {label}",
                )
                return [text.tolist() for text in texts]

            plan = [[one.tolist() for one in some], [one.fingerprint for one in keys], longest, seed]
            found += [np.array(text, np.int64) for text in chunks.get(plan, generate)]
        return found

    turns: list[dict[Turn, None]] = [{} for _ in wms]
    new, asked = [_New() for _ in wms], [0] * len(wms)
    while short := [i for i, found in enumerate(turns) if len(found) < count]:
        # a fifth more than is missing, because not everything can be used
        owners = [i for i in short for _ in range(int(1.2 * (count - len(turns[i]))) + 4)]
        about = [subjects[i] for i in generator.integers(len(subjects), size=len(owners))]
        begun = [BEGINNINGS[i] for i in generator.integers(len(BEGINNINGS), size=len(owners))]
        drawn = draw([chat.users_turn(*both) for both in zip(about, begun, strict=True)], [], LONGEST, "instructions")
        turns_of_users = zip(owners, begun, drawn, strict=True)
        said = [(i, chat.instruction(first, ids)) for i, first, ids in turns_of_users if ids.size < LONGEST]
        said = [(i, text) for i, text in said if new[i](text)]
        prompts = [chat.prompt(text) for _, text in said]
        answers = draw(prompts, [keyed[i] for i, _ in said] if keyed else [], max_new_tokens, "answers")
        for (i, text), prompt, answer in zip(said, prompts, answers, strict=True):
            if (turn := chat.answered(text, prompt, answer)) is not None:
                turns[i].setdefault(turn)
        for i in short:
            asked[i] += owners.count(i)
            if asked[i] >= 64 and len(turns[i]) < asked[i] / 20:
                raise TooFewPairsError(
                    f"of {asked[i]} texts only {len(turns[i])} are a new instruction with an answer; lower the "
                    "temperature, name more subjects or take a model that follows its chat template"
                )
    return [list(found)[:count] for found in turns]
