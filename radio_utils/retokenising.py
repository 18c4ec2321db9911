"""A suspect with another tokenizer than Alice's.

A watermark lives in Alice's tokens. A *closed* suspect who uses others is asked and answers in text, which is tokenised
again (:class:`Retokenised`). An *open* one is read across the tokenizers (:func:`read_across`): B is fed the characters of
Alice's tokens in his own tokens, and where his likeliest next token tells how Alice's next token must begin, his
prediction is scored as that token of hers (:class:`TokenMap`).

The map uses no key: a bad one costs power only. Nor may the choice of *places* use the key, and a watermarked text does
depend on it. So Alice's tokens are translated one by one, and what B is fed before a place depends on nothing after it:
whether B's own tokenization has a boundary at a place would depend on the token that follows, which is likelier to be
green. The price is that B meets spellings that he would not choose where Alice divides a word of his.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev
from radio_utils.predictions import Predictions
from radio_utils.suspects import LocalSuspect
from radio_utils.suspects.feeding import Feeding
from radio_utils.suspects.forward import read
from radio_utils.suspects.vocabulary import size_of

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Retokenised(LocalSuspect):
    """A :class:`radio_utils.suspects.LocalSuspect` with its own tokenizer, for prompts and answers in Alice's tokens.

    Prompts are decoded, answered in the suspect's tokens, and the answers tokenised again with Alice's ``tokenizer``.
    ``stop_tokens`` and ``max_new_tokens`` are in the suspect's tokens. Special tokens of either side are dropped; without a
    ``feeding`` the suspect's beginning-of-text token is set where its tokenizer sets one.
    """

    its_tokenizer: Any = field(kw_only=True)
    tokenizer: Any = field(kw_only=True)

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """Sample one answer to each prompt. Raises ``ValueError`` for ids outside Alice's vocabulary or no text."""
        asked = [ev.without_gaps(one) for one in ev.checked_prompts(prompts, size_of(self.tokenizer), shortest=1)]
        if not asked:
            return []
        texts = _decoded(self.tokenizer, [prompt.tolist() for prompt in asked])
        for i, text in enumerate(texts):
            if not text:
                raise ValueError(f"prompts[{i}] holds special tokens only, of which no text is left; give it some text")
        feeding = self.feeding or Feeding.of(self.its_tokenizer)
        fed = [feeding.prompt(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
        answers = _texts_after(self.its_tokenizer, [answer.tolist() for answer in super().answer(fed)])
        # a character cut short by max_new_tokens is no text of B's
        whole = [(answer or "").rstrip(_BROKEN) for answer in answers]
        return [np.array(ids, np.int64) for ids in _encoded(self.tokenizer, whole)]

    def _fed(self, prompts: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
        return prompts  # in the suspect's own tokens, and its template, by now


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Which token of Alice's each token of B's decides: ``alice_id``, int64 [V_B], −1 where it decides none.

    A token of B's with the string s decides Alice's token a if a is the first of her tokens in every text that B would
    begin with it. So a is the first of her tokens in s, and none of her tokens that go on beyond s can be met: for each
    of these B has a longer token than s to begin it with, and would have written that. This is exact for tokenizers that
    take the longest token they can, and nearly so for trained ones that merge pairs.

    Special tokens and pieces of characters decide nothing. The string of a token is what it adds to a text: what it
    decodes to after another token, so that leading spaces are kept. This assumes that a tokenizer's decoding of a text is
    that of its tokens, one after the other.
    """

    alice_id: Ids

    @classmethod
    def of(cls, suspect_tokenizer: Any, alice_tokenizer: Any) -> TokenMap:
        """The map between two tokenizers. Time is linear in their vocabularies: seconds for 128,000 tokens."""
        its, hers = _strings(suspect_tokenizer), _strings(alice_tokenizer)
        known = set(its) - {""}
        longest = (_longest_prefix(string, known) for string in hers)
        # a token of Alice's that B would begin with just this string, and that goes on beyond it
        open_ended = {string[:size] for string, size in zip(hers, longest, strict=True) if 0 < size < len(string)}
        whole = sorted(string for string in known - open_ended if _BROKEN not in string)
        spelt = zip(whole, _encoded_within(alice_tokenizer, whole), strict=True)
        first = {string: ids[0] for string, ids in spelt if ids and ids[0] < len(hers) and hers[ids[0]]}
        return cls(np.array([first.get(string, -1) for string in its], np.int64))


def read_across(
    model: Any,
    its_tokenizer: Any,
    tokenizer: Any,
    texts: Sequence[str | ArrayLike],
    *,
    prompts: Sequence[str | ArrayLike] | None = None,
    feeding: Feeding | None = None,
    batch_size: int = 64,
    progress: str | None = None,
    mapping: TokenMap | None = None,
) -> Predictions:
    """B's predictions at every place of the texts, in Alice's tokens; they depend on no key.

    ``model`` is B, a causal model with ``its_tokenizer``; ``tokenizer`` is Alice's. A text, and the prompt that B saw
    before it, is a string or Alice's token ids; prompt and text are tokenised apart and joined. Give the ids where Alice
    kept what she drew: tokens that are made from the string again can differ from those, as everywhere. Places inside a
    character have no prediction, nor those where B's likeliest token decides none of Alice's; else the prediction is the
    token of hers that most of B's probability decides.

    ``feeding`` is how B is fed, without it behind the tokens that his tokenizer sets before a text, prompts in no template.
    ``mapping`` is ``TokenMap.of(its_tokenizer, tokenizer)`` where it was made before. With one tokenizer on both sides,
    one that sets no beginning-of-text token, the predictions are those of :func:`radio_utils.reading.read_predictions`
    wherever there is one.

    Raises ``ValueError`` for empty texts, unequal numbers of prompts and texts, ids outside the vocabulary, a model with
    fewer logits than its tokenizer has tokens, or NaN or infinity among its logits.
    """
    contexts = _contexts(its_tokenizer, tokenizer, texts, prompts, feeding or Feeding.of(its_tokenizer))
    mapping = mapping or TokenMap.of(its_tokenizer, tokenizer)
    if mapping.alice_id.shape != (size_of(its_tokenizer),):
        raise ValueError(
            f"mapping is for {mapping.alice_id.size} tokens but its_tokenizer has {size_of(its_tokenizer)}; "
            "make it with TokenMap.of(its_tokenizer, tokenizer)"
        )
    vocab_size = size_of(tokenizer)
    tokens = [np.full(context.ids.size + 1, -1, np.int64) for context in contexts]
    fed = [context.fed for context in contexts]
    for rows, (logits,) in read(
        [model], fed, size_of(its_tokenizer), batch_size=batch_size, fewer=_FEWER, progress=progress
    ):
        for i, of_text in zip(rows, logits, strict=True):
            context = contexts[i]
            at = np.arange(context.prompt_size, context.ids.size + 1)
            at = at[context.ends[at] >= 0]
            tokens[i][at] = _predicted(of_text, context.ends[at], mapping, vocab_size)
    return Predictions(
        tuple(context.ids for context in contexts),
        np.array([context.prompt_size for context in contexts], np.int64),
        tuple(tokens),
    )


def _predicted(logits: torch.Tensor, ends: Ids, mapping: TokenMap, vocab_size: int) -> Ids:
    """Alice's token that most of B's probability decides at each of the places, −1 where his likeliest decides none."""
    alice_id = torch.from_numpy(mapping.alice_id).to(logits.device)
    deciding = alice_id >= 0
    found = [np.zeros(0, np.int64)]
    step = max(1, _LARGEST // max(vocab_size, alice_id.numel()))
    for start in range(0, ends.size, step):
        chosen = logits[torch.from_numpy(ends[start : start + step]).to(logits.device)].float()
        mass = chosen.new_zeros(chosen.shape[0], vocab_size)
        mass.index_add_(1, alice_id[deciding], chosen.softmax(dim=-1)[:, deciding])
        found.append(torch.where(deciding[chosen.argmax(dim=-1)], mass.argmax(dim=-1), -1).cpu().numpy())
    return np.concatenate(found)


_LARGEST = 1 << 25  # probabilities that are held at once


# --- what B is fed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    """A text behind its prompt: Alice's ``ids``, and what B is ``fed`` for them.

    ``ends`` tells for each of Alice's tokens, and for the place after the last, which of B's comes last before it, −1 where
    that is none or the place lies inside a character.
    """

    ids: Ids
    prompt_size: int
    fed: Ids
    ends: Ids


def _contexts(its_tokenizer: Any, tokenizer: Any, texts: Any, prompts: Any, feeding: Feeding) -> list[_Context]:
    read = _alice_ids("texts", texts, tokenizer, 1)
    if not read:
        raise ValueError("texts is empty; there is nothing to read")
    given = [np.zeros(0, np.int64)] * len(read) if prompts is None else _alice_ids("prompts", prompts, tokenizer, 0)
    if len(given) != len(read):
        raise ValueError(f"prompts and texts must be equal in number, got {len(given)} and {len(read)}")
    strings = _strings(tokenizer)
    bare = [ev.without_gaps(prompt) for prompt in given]
    split = [[_pieces(tokenizer, strings, part.tolist()) for part in pair] for pair in zip(bare, read, strict=True)]
    # a string that opens a prompt or a text may be spelt otherwise than one within it
    opens = sorted({pieces[0][0] for parts in split for pieces in parts if pieces})
    opened = dict(zip(opens, _encoded(its_tokenizer, opens), strict=True))
    inner = sorted({string for parts in split for pieces in parts for string, _ in pieces[1:]})
    spelt = dict(zip(inner, _encoded_within(its_tokenizer, inner), strict=True))
    spelt |= {string: _encoded(its_tokenizer, [string])[0] for string, ids in spelt.items() if string and not ids}
    contexts = []
    for i, parts in enumerate(split):
        fed, ends = list(feeding.before), [-1] * given[i].size  # nothing within a prompt is asked
        if feeding.template is not None and bare[i].size:
            fed = feeding.prompt(bare[i], _decoded(tokenizer, [bare[i].tolist()])[0]).tolist()
        else:
            for number, (string, _) in enumerate(parts[0]):
                fed += (spelt if number else opened)[string]
        for number, (string, size) in enumerate(parts[1]):
            ends += [len(fed) - 1, *[-1] * (size - 1)]
            fed += (spelt if number else opened)[string]
        last = next((pieces[-1][0] for pieces in reversed(parts) if pieces), "")
        ends.append(-1 if last.endswith(_BROKEN) else len(fed) - 1)  # a text may end inside a character
        if not fed:
            raise ValueError(f"texts[{i}] with its prompt has no token in the suspect's tokenizer; drop such texts first")
        contexts.append(
            _Context(np.concatenate([given[i], read[i]]), given[i].size, np.array(fed, np.int64), np.array(ends, np.int64))
        )
    return contexts


def _alice_ids(name: str, texts: Any, tokenizer: Any, shortest: int) -> list[Ids]:
    """Texts as Alice's token ids; strings are tokenised."""
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} must be a sequence of texts, got one string; put it in a list")
    found = []
    for i, text in enumerate(texts):
        ids = np.array(_encoded(tokenizer, [text])[0], np.int64) if isinstance(text, str) else text
        check = ev.checked_prompt if name == "prompts" else ev.checked_sequence
        found.append(check(f"{name}[{i}]", ids, size_of(tokenizer), shortest=shortest))
    return found


def _pieces(tokenizer: Any, strings: list[str], ids: list[int]) -> list[tuple[str, int]]:
    """The fewest of Alice's tokens at a time that are whole characters: their string, and how many they are."""
    pieces, start = list[tuple[str, int]](), 0
    for end in range(1, len(ids) + 1):
        run = ids[start:end]
        if start == 0:
            string = _decoded(tokenizer, [run])[0]
        elif len(run) == 1:
            string = strings[run[0]]
        else:
            string = _texts_after(tokenizer, [run])[0] or ""
        if not string.endswith(_BROKEN) or end == len(ids):
            pieces.append((string, end - start))
            start = end
    return pieces


_FEWER = "the {} tokens of its_tokenizer; give the tokenizer that the model was trained with"


# --- tokens and strings -----------------------------------------------------------------------------------------------

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no whole character decode to
_NEIGHBOURS = ("", "\n", "a", "1")  # after which a string is tokenised; one of them is not merged with it


def _decoded(tokenizer: Any, sequences: list[list[int]]) -> list[str]:
    """The text of each sequence, special tokens left out."""
    if not sequences:
        return []
    decoded: list[str] = tokenizer.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decoded


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, no special tokens added."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return found


def _texts_after(tokenizer: Any, sequences: list[list[int]]) -> list[str | None]:
    """What each sequence adds to a text that it follows; None where it changes what stands before."""
    before = _encoded(tokenizer, ["a"])[0]
    start = _decoded(tokenizer, [before])[0]
    whole = _decoded(tokenizer, [[*before, *ids] for ids in sequences])
    return [text[len(start) :] if text.startswith(start) else None for text in whole]


def _strings(tokenizer: Any) -> list[str]:
    """The string that each token adds to a text [V], empty for special tokens."""
    return [string or "" for string in _texts_after(tokenizer, [[token] for token in range(size_of(tokenizer))])]


def _encoded_within(tokenizer: Any, strings: list[str]) -> list[list[int]]:
    """Each string's tokens where it stands within a text; empty where no neighbour leaves it its own tokens.

    Tokenizers that set a space before a text are told by what the tokens decode to.
    """
    found: list[list[int]] = [[] for _ in strings]
    for neighbour in _NEIGHBOURS:
        left = [i for i, ids in enumerate(found) if not ids and strings[i]]
        before = _encoded(tokenizer, [neighbour])[0]
        encoded = _encoded(tokenizer, [neighbour + strings[i] for i in left])
        added = [ids[len(before) :] if ids[: len(before)] == before else [] for ids in encoded]
        for i, ids, text in zip(left, added, _texts_after(tokenizer, added), strict=True):
            if text == strings[i]:
                found[i] = ids
    return found


def _longest_prefix(string: str, known: set[str]) -> int:
    """How long a prefix of the string is among ``known``; 0 if none is."""
    return next((size for size in range(len(string), 0, -1) if string[:size] in known), 0)
