"""What Alice's own unmarked model adds to an audit: plain texts, which know no key, and the re-marking control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from radio_utils import decoding, detection
from radio_utils import evidence as ev
from radio_utils.artifacts import Store
from radio_utils.audit import preflight
from radio_utils.audit.case import Case, Ids, OpenModel, readable, room
from radio_utils.audit.spelling import cut_again
from radio_utils.audit.texts import Texts, read_texts
from radio_utils.audit.verdict import Control
from radio_utils.detection import Detection, detect
from radio_utils.files import atomic_write
from radio_utils.provenance import code_version
from radio_utils.remarking import RemarkControl, remark_control, write_under
from radio_utils.watermarks import Watermark

WRITTEN = 300  # plain texts that are written where none are at hand


def openings(audit: Case) -> list[Ids]:
    """What Alice's model goes on from when it writes plain texts: nothing in which the key had a say.

    Prompts in which a mark as strong as that of the texts would show, and none does, are good. Else it is what all prompts
    begin with, as a template is; the beginning-of-text token; or random tokens.
    """
    prompts = [prompt for prompt in audit.texts.prompts or [] if prompt.size]
    if long := [prompt for prompt in prompts if prompt.size > audit.wm.window]:
        found = detect(long, audit.wm)
        need = preflight.power(audit.wm, found.scored, audit.of_texts, detection.MARKED)
        if need.enough and found.log10_p >= detection.MARKED:
            return [prompts[i % len(prompts)] for i in range(WRITTEN)]
    if len(shared := _common(prompts)):
        return [shared] * WRITTEN
    start = audit.tokenizer.bos_token_id
    if start is None:
        start = audit.tokenizer.eos_token_id
    if start is not None:
        return [np.array([start], np.int64)] * WRITTEN
    ids = np.array(sorted(audit.tokenizer.get_vocab().values()), np.int64)
    return list(np.random.default_rng(audit.request.seed).choice(ids, (WRITTEN, 1)))


def _common(prompts: Sequence[Ids]) -> Ids:
    """What at least two different prompts, and all others, begin with."""
    if len({prompt.tobytes() for prompt in prompts}) < 2:
        return np.zeros(0, np.int64)
    size = min(prompt.size for prompt in prompts)
    same = np.all([prompt[:size] == prompts[0][:size] for prompt in prompts], axis=0)
    return prompts[0][: size if same.all() else int(same.argmin())]


def plain_texts(audit: Case, opened: OpenModel, progress: bool) -> Texts:
    """Texts of Alice's unmarked model, as drawn; kept. Raises :class:`AuditError` where they carry the mark."""
    request, alice = audit.request, opened.alice
    assert alice is not None
    prompts = openings(audit)
    length = room(alice, prompts, max(audit.wm.window + 1, round(audit.texts.tokens / len(audit.texts.ids))))
    fed = [alice.feeding.prompt(prompt) for prompt in prompts]
    sampling = decoding.Sampling(temperature=request.alice_temperature)

    def build(folder: Path) -> None:
        drawn = decoding.generate(
            alice.model, fed, max_new_tokens=length, sampling=sampling, stop_tokens=alice.stop_tokens,
            generator=torch.Generator(alice.model.device).manual_seed(request.seed), batch_size=4 * request.batch_size,
            progress="plain texts" if progress else None,
        )  # fmt: skip
        rows = [{"prompt_ids": p.tolist(), "ids": t.tolist()} for p, t in zip(prompts, drawn, strict=True)]
        atomic_write(folder / "plain.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    config = {"openings": [one.tolist() for one in prompts], "length": length, "alice": alice.digest, "seed": request.seed}
    config |= {"temperature": request.alice_temperature, "dtype": request.dtype, "fed": alice.feeding.digest}
    with audit.timed("model"), readable("alice"):
        version = code_version("audit.alice")
        made = Store(request.folder / "evidence").get("plain", config, build, version=version)
    path = str(made / "plain.jsonl")
    found = read_texts("texts that alice writes", path, None, audit.wm.vocab_size, audit.wm.window)
    preflight.check_plain(found, audit.wm)
    return found


def no_control(audit: Case, opened: object) -> str:
    """Why the re-marking control is not run, and how to have it; empty where it is."""
    request = audit.request
    if not isinstance(opened, OpenModel) or "open" not in request.modes:
        return "it is made for the reading of marked texts, which is not among these tests"
    if opened.alice is None:
        return "Alice's model is not at hand: give her own unmarked model as alice"
    if not request.worlds:
        return "worlds is 0: give the number of other keys, as 99"
    if audit.wm.law.lift > 1 and not request.delta:
        return "how strongly her model marks is not known: give delta, the bias δ of its green lists"
    if not _prompted(audit):
        return (
            f"the watermarked texts have no prompts of at least window={audit.wm.window} tokens, from which Alice's model "
            "could go on: give them with their prompts"
        )
    return ""


def _prompted(audit: Case) -> list[int]:
    """The texts that Alice's model can write again: those with a prompt that holds a window."""
    prompts = audit.texts.prompts or []
    return [i for i, prompt in enumerate(prompts) if prompt.size >= audit.wm.window][: audit.request.control_texts]


def control(audit: Case, opened: OpenModel, seed: int, progress: bool) -> Control:
    """The reading of marked texts, put to texts that Alice's model writes under keys that nobody used. Kept."""
    request, wm, alice, texts = audit.request, audit.wm, opened.alice, audit.texts
    assert alice is not None and texts.prompts is not None
    chosen = _prompted(audit)
    real, prompts = [texts.ids[i] for i in chosen], [texts.prompts[i] for i in chosen]
    length = room(alice, prompts, max(text.size for text in real))
    fed = [alice.feeding.prompt(prompt) for prompt in prompts]
    sampling = decoding.Sampling(temperature=request.alice_temperature)

    def write(wms: Sequence[Watermark]) -> list[list[Ids]]:
        written = write_under(
            alice.model, fed, wms, max_new_tokens=length, sampling=sampling, stop_tokens=alice.stop_tokens,
            generator=torch.Generator(alice.model.device).manual_seed(seed % (1 << 62)), batch_size=4 * request.batch_size,
            progress="re-marking control" if progress else None,
        )  # fmt: skip
        if not texts.from_strings:
            return written
        again = [cut_again(audit.tokenizer, [text.tolist() for text in one]) for one in written]
        return [[np.array(ids, np.int64) for ids in one] for one in again]

    def test(written: Sequence[Ids], key: Watermark) -> Detection:
        read = [(text, prompt) for text, prompt in zip(written, prompts, strict=True) if text.size]
        found = opened.read(opened.suspect, audit, [text for text, _ in read], [prompt for _, prompt in read])
        pairs = found.evidence(key.window, key.vocab_size, shared=ev.shared_by(key), full_context=request.full_context)
        return detection.judge(pairs, key, respelt=audit.allowance(texts))

    def build(folder: Path) -> None:
        found = remark_control(write, test, wm, texts=real, worlds=request.worlds, batched=True, seed=seed)
        found.save(folder / "control.json")

    config = {
        "texts": texts.digest, "chosen": chosen, "length": length, "from_strings": texts.from_strings, "seed": str(seed),
        "fingerprint": wm.fingerprint, "delta": request.delta, "worlds": request.worlds, "alice": alice.digest,
        "temperature": request.alice_temperature, "suspect": opened.suspect.digest, "dtype": request.dtype,
        "full_context": request.full_context, "allowance": audit.allowance(texts),
        "fed": [alice.feeding.digest, opened.suspect.feeding.digest],
    }  # fmt: skip
    with audit.timed("model"), readable("alice or suspect"):
        made = Store(request.folder / "evidence").get("re-marking", config, build, version=code_version("audit.alice"))
    return Control.of(RemarkControl.load(made / "control.json"), len(chosen))
