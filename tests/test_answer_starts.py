"""The first tokens of answers: what an engine's processor wrote is scored from the first token on; nothing leaks there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from innocents import check_false_alarms
from test_soft import Bigrams, language

import radio_utils as ru
from radio_utils import detection, evidence, querying, reading
from radio_utils.watermarks.engines import SBW, SGLangGumbel, VLLMDualKey, VLLMGreenList, VLLMGumbel, VLLMSynthID

V, OWN, K = 128, 100, 4  # answers are made of the first OWN ids, prompts of the others
Ids = np.ndarray[Any, np.dtype[np.int64]]

MARKED = {
    "gumbel": VLLMGumbel(5, V), "two keys": VLLMDualKey(5, V), "synthid": VLLMSynthID(5, V),
    "red-green": VLLMGreenList(5, V, delta=4.0), "lefthash": SBW(5, V, K, "lefthash", delta=4.0),
    "transformers": ru.SynthID([3, 1, 4, 1, 5, 9, 2, 6], V),
}  # fmt: skip
UNMARKED = {
    "windows that reach into the prompt": SGLangGumbel(5, V), "starts left unmarked": VLLMGumbel(5, V, repeats="all"),
    "colours that no key decides": SBW(5, V), "ours": ru.GumbelMax("a", V, K),
}  # fmt: skip


def write(wm: Any, texts: int, length: int, seed: int = 0) -> tuple[Ids, Ids]:
    """Prompts and answers by the scheme's own processor, from logits that are noise."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(OWN, V, (texts, 6), generator=generator)
    ids, processor = prompts, wm.logits_processor()
    for _ in range(length):
        logits = 2.0 * torch.randn(texts, V, generator=generator)
        logits[:, OWN:] = -torch.inf
        chances = processor(ids, logits).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return prompts.numpy(), ids[:, prompts.shape[1] :].numpy()


@pytest.mark.parametrize("name", MARKED)
def test_what_the_processor_wrote_is_scored_from_the_first_token_on(name: str) -> None:
    wm = MARKED[name]
    prompts, answers = write(wm, 200, 7)
    found = ru.detect(answers, wm, prompts=prompts)
    assert found.seen == answers.size and ru.detect(answers, wm).seen == answers.size - K * len(answers)
    padded = np.concatenate([np.full((len(answers), K), -1), answers], axis=1)
    expected = {tuple(row[t : t + K + 1]) for row in padded.tolist() for t in range(answers.shape[1])}
    pairs = zip(found.evidence.windows.tolist(), found.evidence.tokens.tolist(), strict=True)
    got = {(*window, token) for window, token in pairs}
    assert got == expected or (evidence.shared_by(wm) and got < expected and len(got) > 0.7 * len(expected))
    begins = found.evidence.windows[:, 0] == -1
    starts = evidence.collect(answers[:, :K], K, V, prompts=prompts, shared=evidence.shared_by(wm), from_start=True)
    assert np.count_nonzero(begins) == len(starts)
    alone = detection.judge(starts, wm)
    assert alone.seen == K * len(answers) and alone.log10_p < -6, "the answers' starts by themselves carry the mark"
    assert querying.score_answers(prompts, list(answers), wm).total == found.total


@pytest.mark.parametrize("name", UNMARKED)
def test_other_marks_are_scored_inside_the_answer(name: str) -> None:
    wm = UNMARKED[name]
    prompts, answers = np.full((9, 5), V - 1), np.random.default_rng(0).integers(OWN, size=(9, 7))
    assert not wm.marks_start and ru.detect(answers, wm, prompts=prompts).seen == 9 * (7 - K)


def test_files_and_memory_agree(tmp_path: Path) -> None:
    wm = MARKED["gumbel"]
    prompts, answers = write(wm, 30, 9)
    rows = [answer[: 1 + i % 9].tolist() for i, answer in enumerate(answers)]  # some shorter than a window
    lines = [json.dumps({"ids": row, "prompt_ids": prompt}) for row, prompt in zip(rows, prompts.tolist(), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:15]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[15:]))
    found = ru.detect([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], wm)
    assert found == ru.detect(rows, wm, prompts=prompts) and found.seen == sum(map(len, rows))
    found.evidence.save(tmp_path / "kept.npz")
    again = evidence.Evidence.load(tmp_path / "kept.npz")
    assert np.array_equal(again.windows, found.evidence.windows) and again.windows.min() == -1
    (tmp_path / "c.jsonl").write_text(lines[0].replace('"ids": [', '"ids": [], "other": ['))
    with pytest.raises(ValueError, match=r"c\.jsonl.*empty"):
        ru.detect(tmp_path / "c.jsonl", wm)


def test_the_filter_knows_starts() -> None:
    wm = MARKED["gumbel"]
    prompts, answers = write(wm, 30, 9)
    keep = evidence.frequent_windows(answers, K, V, from_start=True)
    assert ru.detect(answers, wm, prompts=prompts, keep=keep) == ru.detect(answers, wm, prompts=prompts)
    kept = evidence.frequent_windows(answers, K, V, from_start=True, at_least=30)
    assert kept.tolist() == [[-1] * K]
    assert ru.detect(answers, wm, prompts=prompts, keep=kept).scored == len(np.unique(answers[:, 0]))
    with pytest.raises(ValueError, match="-1 after a token id"):
        ru.detect(answers, wm, prompts=prompts, keep=[[-1, 1, -1, 2]])


@given(st.integers(1, 5), st.sampled_from([2, 3, 64, 65, 50257, 1 << 17, (1 << 32) - 1, 1 << 32]), st.data())
def test_packed_windows_come_back(window: int, vocab_size: int, data: st.DataObject) -> None:
    ids = st.integers(0, vocab_size - 1)
    rows = []
    for _ in range(data.draw(st.integers(1, 6))):
        missing = data.draw(st.integers(0, window))
        rows.append([-1] * missing + [data.draw(ids) for _ in range(window - missing)])
    tokens = np.array([data.draw(ids) for _ in rows])
    packing = evidence.Packing(window, vocab_size)
    words = packing.pack_pairs(np.array(rows), tokens)
    back = packing.unpack(words)
    assert back[0].tolist() == rows and back[1].tolist() == tokens.tolist()
    assert packing.from_start(words).tolist() == [row[0] == -1 for row in rows]
    assert np.array_equal(packing.windows_of(words), packing.pack_windows(np.array(rows)))


def test_reading_begins_with_the_answer() -> None:
    """Against prefixes fed one by one: at each place the window holds -1 in place of the prompt."""
    wm = VLLMGreenList(5, 40, 2)
    rng, model = np.random.default_rng(1), Bigrams(language(0))
    prompts = [rng.integers(20, 40, size).tolist() for size in (3, 1, 0, 5)]
    answers = [rng.integers(0, 20, size).tolist() for size in (6, 1, 5, 2)]
    options: dict[str, Any] = {"prompts": prompts, "full_context": True, "from_start": True}
    every = reading.read_evidence(model, answers, 2, 40, skip_seen=False, **options)
    expected = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        for t in range(0 if prompt else 1, len(answer) + 1):
            context = torch.tensor([prompt + answer[:t]])
            expected.add((*([-1, -1, *answer[:t]][-2:]), int(model(context).logits[0, -1].argmax())))
    pairs = zip(every.windows.tolist(), every.tokens.tolist(), strict=True)
    assert {(*window, token) for window, token in pairs} == expected
    assert every.seen == sum(map(len, answers)) + 3
    sealed = reading.read_evidence(model, answers, 2, 40, **options)
    assert [-1, -1] in sealed.windows.tolist() and len(sealed) < len(every)
    verdict = ru.read_open_model(model, answers, wm, prompts=prompts, full_context=True)
    assert verdict.evidence.windows.tolist() == sealed.windows.tolist()
    softly = ru.read_open_model(model, answers, wm, prompts=prompts, full_context=True, soft=True)
    assert [-1, -1] in softly.evidence.windows.tolist() and softly.seen == every.seen
    contrasted = ru.read_open_model(model, answers, wm, prompts=prompts, reference=Bigrams(language(1)))
    assert contrasted.seen == every.seen - len(answers) and [-1, -1] in contrasted.evidence.windows.tolist()


@pytest.mark.parametrize("soft", [False, True])
def test_an_earlier_answer_in_the_prompt_whispers_to_nobody(soft: bool) -> None:
    """Prompts hold an answer of a turn before, and the innocent begins his as that one began."""
    told, naive, tongue = [], [], language(2, 0.3)
    for key in range(120):
        wm = VLLMGreenList(key, 40, 2, gamma=0.25, delta=5.0)
        rng = np.random.default_rng(key)
        generator = torch.Generator().manual_seed(key)
        ids, processor = torch.full((20, 1), 39), wm.logits_processor()
        for _ in range(5):
            logits = torch.from_numpy(tongue)[rng.integers(40, size=20)].float()
            ids = torch.cat([ids, torch.multinomial(processor(ids, logits).softmax(-1), 1, generator=generator)], dim=1)
        earlier = ids[:, 1:].numpy()
        prompts = np.concatenate([rng.integers(40, size=(20, 2)), earlier, rng.integers(40, size=(20, 3))], axis=1)
        answers = np.concatenate([earlier[:, :2], rng.integers(40, size=(20, 4))], axis=1)
        pairs = np.unique(np.concatenate([np.full((20, 2), -1), earlier[:, :1]], axis=1), axis=0)
        naive.append(float(wm.scores(pairs[:, :2], pairs[:, 2]).mean()))
        if not soft:
            told.append(ru.detect(answers, wm, prompts=prompts).log10_p)
            continue
        model = Echo(prompts, answers)
        told.append(ru.read_open_model(model, answers[:, 2:], wm, prompts=prompts, soft=True).log10_p)
        hard = ru.read_open_model(model, answers[:, 2:], wm, prompts=prompts).log10_p
        assert hard > -6
    check_false_alarms(told)
    assert np.mean(naive) > 0.35, "what the answers begin with is green too often"


class Echo(torch.nn.Module):
    """Expects, where the answer begins, what an earlier answer began with; elsewhere he knows nothing."""

    def __init__(self, prompts: Ids, answers: Ids) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.known = {tuple(p): int(a[0]) for p, a in zip(prompts.tolist(), answers.tolist(), strict=True)}
        self.size = prompts.shape[1]

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        logits = 0.01 * torch.sin(torch.arange(40.0) * (input_ids[..., None] + 1))
        for row, ids in enumerate(input_ids.tolist()):
            token = self.known.get(tuple(ids[: self.size]))
            if token is not None:
                logits[row, self.size - 1, token] += 5.0
        return type("Output", (), {"logits": logits})()
