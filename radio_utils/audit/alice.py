"""What Alice's own unmarked model adds to an audit: plain texts, which know no key, and the re-marking control."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from radio_utils import decoding, detection
from radio_utils import evidence as ev
from radio_utils.audit import preflight
from radio_utils.audit.case import Case, Ids, room
from radio_utils.audit.spelling import cut_again
from radio_utils.audit.texts import Texts, read_texts, rows_of
from radio_utils.audit.verdict import Control
from radio_utils.detection import Detection, detect
from radio_utils.files import atomic_write
from radio_utils.provenance import code_version
from radio_utils.remarking import RemarkControl, remark_control, write_under
from radio_utils.watermarks import Watermark

WRITTEN = 300  # plain texts that are written where none are at hand


def openings(case: Case) -> list[Ids]:
    """What Alice's model goes on from when it writes plain texts: nothing in which the key had a say.

    Prompts in which a mark as strong as that of the texts would show, and none does, are good. Else it is what all prompts
    begin with, as a template is; the beginning-of-text token; or random tokens.
    """
    given = [prompt for prompt in case.texts.prompts or [] if ev.without_gaps(prompt).size]
    prompts = [ev.without_gaps(prompt) for prompt in given]
    if long := ev.long_pieces(given, case.wm.window):
        found = detect(long, case.wm)
        need = preflight.power(case.wm, found.scored, case.of_texts, detection.MARKED)
        if need.enough and found.log10_p >= detection.MARKED:
            return [prompts[i % len(prompts)] for i in range(WRITTEN)]
    if len(shared := _common(prompts)):
        return [shared] * WRITTEN
    start = case.tokenizer.bos_token_id
    if start is None:
        start = case.tokenizer.eos_token_id
    if start is not None:
        return [np.array([start], np.int64)] * WRITTEN
    ids = np.array(sorted(case.tokenizer.get_vocab().values()), np.int64)
    return list(np.random.default_rng(case.request.seed).choice(ids, (WRITTEN, 1)))


def _common(prompts: Sequence[Ids]) -> Ids:
    """What at least two different prompts, and all others, begin with."""
    if len({prompt.tobytes() for prompt in prompts}) < 2:
        return np.zeros(0, np.int64)
    size = min(prompt.size for prompt in prompts)
    same = np.all([prompt[:size] == prompts[0][:size] for prompt in prompts], axis=0)
    return prompts[0][: size if same.all() else int(same.argmin())]


def plain_texts(case: Case) -> Texts:
    """The texts without the mark: those at hand, or what Alice's unmarked model writes, as drawn; kept.

    Raises :class:`AuditError` where that carries the mark.
    """
    if case.plain is not None:
        return case.plain
    request, alice = case.request, case.models.alice
    assert alice is not None
    prompts = openings(case)
    length = room(alice, prompts, max(case.wm.window + 1, round(case.texts.tokens / len(case.texts.ids))))
    fed = [alice.feeding.prompt(prompt) for prompt in prompts]

    def build(folder: Path) -> None:
        atomic_write(folder / "plain.jsonl", rows_of(prompts, alice.written(case, fed, length, "plain texts")))

    config = {"openings": [one.tolist() for one in prompts], "length": length, "alice": alice.digest, "seed": request.seed}
    config |= {"temperature": request.alice_temperature, "dtype": request.dtype, "fed": alice.feeding.digest}
    made = case.kept("plain", config, build, "alice", code_version(build))
    path = str(made / "plain.jsonl")
    case.plain = read_texts("texts that alice writes", path, None, case.wm.vocab_size, case.wm.window)
    preflight.check_plain(case.plain, case.wm)
    return case.plain


def no_control(case: Case) -> str:
    """Why the re-marking control is not run, and how to have it; empty where it is."""
    request = case.request
    if case.opened is None or "open" not in request.modes:
        return "it is made for the reading of marked texts, which is not among these tests"
    if case.models.alice is None:
        return "Alice's model is not at hand: give her own unmarked model as alice"
    if not request.worlds:
        return "worlds is 0: give the number of other keys, as 99"
    if case.wm.law.lift > 1 and not request.delta:
        return "how strongly her model marks is not known: give delta, the bias δ of its green lists"
    if not _prompted(case):
        return (
            f"the watermarked texts have no prompts of at least window={case.wm.window} tokens, without another of the "
            "texts, from which Alice's model could go on: give them with their prompts"
        )
    return ""


def _prompted(case: Case) -> list[int]:
    """The texts that Alice's model can write again: those with a prompt that holds a window, and none of the texts.

    Prompts stay as they are in all worlds, so that one in which the real key had a say sets the real world apart.
    """
    found = (
        i
        for i, prompt in enumerate(case.texts.prompts or [])
        if ev.without_gaps(prompt).size >= case.wm.window and not case.texts.within(prompt)
    )
    return list(islice(found, case.request.control_texts))


def control(case: Case, seed: int) -> Control:
    """The reading of marked texts, put to texts that Alice's model writes under keys that nobody used. Kept."""
    request, wm, texts, alice, suspect = case.request, case.wm, case.texts, case.models.alice, case.models.suspect
    assert alice is not None and texts.prompts is not None
    chosen = _prompted(case)
    real, prompts = texts.some(chosen).ids, [texts.prompts[i] for i in chosen]
    length = room(alice, prompts, max(text.size for text in real))
    fed = [alice.feeding.prompt(prompt) for prompt in prompts]
    sampling = decoding.Sampling(temperature=request.alice_temperature)

    def write(wms: Sequence[Watermark]) -> list[list[Ids]]:
        written = write_under(
            alice.model, fed, wms, max_new_tokens=length, sampling=sampling, stop_tokens=alice.stop_tokens,
            generator=torch.Generator(alice.model.device).manual_seed(seed % (1 << 62)), batch_size=4 * request.batch_size,
            progress=case.bar("re-marking control"),
        )  # fmt: skip
        if not texts.from_strings:
            return written
        again = [cut_again(case.tokenizer, [text.tolist() for text in one]) for one in written]
        return [[np.array(ids, np.int64) for ids in one] for one in again]

    def test(written: Sequence[Ids], key: Watermark) -> Detection:
        read = [(text, prompt) for text, prompt in zip(written, prompts, strict=True) if text.size]
        found = case.models.read(suspect, case, [text for text, _ in read], [prompt for _, prompt in read])
        pairs = found.evidence(
            key.window, key.vocab_size, shared=ev.shared_by(key), full_context=request.full_context,
            from_start=case.from_start(texts),
        )  # fmt: skip
        return detection.judge(pairs, key, respelt=case.allowance(texts))

    def build(folder: Path) -> None:
        found = remark_control(write, test, wm, texts=real, worlds=request.worlds, batched=True, seed=seed)
        found.save(folder / "control.json")

    config = {
        "texts": texts.digest, "chosen": chosen, "length": length, "from_strings": texts.from_strings, "seed": str(seed),
        "fingerprint": wm.fingerprint, "delta": request.delta, "worlds": request.worlds, "alice": alice.digest,
        "temperature": request.alice_temperature, "suspect": suspect.digest, "dtype": request.dtype,
        "full_context": request.full_context, "allowance": case.allowance(texts),
        "fed": [alice.feeding.digest, suspect.feeding.digest],
    }  # fmt: skip
    made = case.kept("re-marking", config, build, "alice or suspect", code_version(build, wm, case.models.read))
    return Control.of(RemarkControl.load(made / "control.json"), len(chosen))
