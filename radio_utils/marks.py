"""Marks that inference engines write, tried in the small world of the ablations: strong in the text, how loud in Bob?

Alice's engine is started with a configuration, as a provider's is; her key is added to it. Bob is the one of
:func:`radio_utils.experiments.variant`, all of whose data are Alice's, and each mark gets equally many pairs, texts and
questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import experiments, querying
from radio_utils.detection import Detection, judge
from radio_utils.evidence import frequent_windows
from radio_utils.files import atomic_write, write_json
from radio_utils.predictions import Predictions
from radio_utils.reading import read_open_model
from radio_utils.world import instructions
from radio_utils.world.instructions import Pair
from radio_utils.world.names import PairSet
from radio_utils.world.world import World

BOB = experiments.BOB
# whether Alice kept what she wrote for Bob, and how far she may look into his model
SETTINGS = ("reading, supervised", "reading, unsupervised", "answers, supervised", "answers, unsupervised")


def with_window(config: Mapping[str, Any], window: int) -> dict[str, Any]:
    """An engine's configuration with another number of preceding tokens that seed a draw."""
    return {**config, **({"ngram_len": window + 1} if "ngram_len" in config else {"context_width": window})}


def marked(world: World, config: Mapping[str, Any] | None = None, **changes: Any) -> World:
    """The small world whose Alice answers users with an engine that was started with this configuration, her key added.

    Without a configuration she marks with the preset's own watermark. Questions are the same for all marks, and unmarked.
    """
    if config is not None:
        changes = {"watermark__scheme": "engine", "watermark__engine": dict(config), **changes}
    return experiments.variant(world, self_instruct__answers_only=True, **changes)


def verdict(world: World, setting: str) -> Detection:
    """The test of one of :data:`SETTINGS` on the Bob of a small world.

    Answers are those to the questions of texts that Alice kept, with the filter φ of their windows, or of fresh ones. Read
    without what she kept are :func:`unseen` texts.
    """
    access, _, supervision = setting.partition(", ")
    if setting not in SETTINGS:
        raise ValueError(f"setting must be one of {', '.join(map(repr, SETTINGS))}, got {setting!r}")
    wm = world.watermark
    if setting == SETTINGS[0]:
        return judge(experiments.reading(world, BOB, "supervised"), wm)
    if access == "reading":
        asked, texts = instructions.written_ids(world.tokenizer, unseen(world)[: world.preset.reading.texts])
        if not texts:  # of a mark so narrow, or a model so small, that every answer came again
            return judge(experiments.scored(world, Predictions((), np.zeros(0, np.int64), ())), wm)
        found = read_open_model(world.bob(BOB), texts, wm, prompts=asked, full_context=True)
        assert isinstance(found, Detection)
        return found
    prompts_of: PairSet = "watermarked" if supervision == "supervised" else "fresh"
    asked, given = experiments.answers(world, BOB, prompts_of, world.preset.reading.texts)
    keep = None
    if supervision == "supervised":
        texts = instructions.answer_ids(world.tokenizer, world.used_by(BOB))
        keep = frequent_windows(texts, wm.window, wm.vocab_size)
    return querying.score_answers(asked, given, wm, keep=keep)


def unseen(world: World) -> list[Pair]:
    """Fresh pairs whose answers Bob was not given word for word, to another question.

    An engine's draws at the start of an answer are the same for every question, so that short answers come again.
    """
    given = {pair.answer for pair in world.used_by(BOB)}
    return [pair for pair in world.pairs("fresh") if pair.answer not in given]


def rows(name: str, world: World) -> list[dict[str, Any]]:
    """The rows of the table ``marks`` of one mark: its strength in 40 pairs of the text, and each setting's verdict.

    ``log10_p_40`` is what 40 pairs of Bob's would give, to compare with as many pairs of the text.
    """
    text, error = experiments.strength(world, world.pairs("watermarked"))
    found = {setting: verdict(world, setting) for setting in SETTINGS}
    return [
        {
            "scheme": name,
            "k": world.watermark.window,
            "log10_p_text": text,
            "setting": setting,
            "log10_p": one.log10_p,
            "log10_p_40": experiments.log10_p_at(world.watermark, one.score, 40) if one.scored else 0.0,
            "stderr_text": error,
            "temperature": world.preset.self_instruct.sampling.temperature,
            "scored": one.scored,
        }
        for setting, one in found.items()
    ]


def wide(table: Sequence[Mapping[str, Any]], column: str = "log10_p") -> list[dict[str, Any]]:
    """The table ``marks`` with one row a mark, and ``column`` in each setting."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in table:
        mark = found.setdefault((row["scheme"], row["k"]), {name: row[name] for name in ("scheme", "k", "log10_p_text")})
        mark[row["setting"]] = row[column]
    return list(found.values())


def convicted(seeds: Sequence[Sequence[Mapping[str, Any]]], level: float = -3.0) -> list[dict[str, Any]]:
    """For each mark of the first of several tables ``marks``, how many of them convict in each setting: "2 of 3"."""
    runs = [{(mark["scheme"], mark["k"]): mark for mark in wide(rows)} for rows in seeds]
    found = []
    for name in runs[0]:
        those = [run[name] for run in runs if name in run]
        counts = {one: sum(mark[one] <= level for mark in those) for one in SETTINGS}
        found.append({"scheme": name[0], "k": name[1]} | {one: f"{hits} of {len(those)}" for one, hits in counts.items()})
    return found


def write_case(world: World, folder: Path) -> dict[str, str]:
    """The files that an audit of this world's Bob is given: the engine's configuration, what Alice kept and fresh texts.

    The fresh texts are those that are :func:`unseen`. Returns the paths by the names that
    :class:`radio_utils.audit.Request` has for them. The configuration holds the key.
    """
    from radio_utils.audit.texts import rows_of  # chapters, which only look at the marks, do without the audit

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "engine.json", world.preset.watermark.engine_config(world.key))
    texts = {"watermarked_texts": world.used_by(BOB), "fresh_texts": unseen(world)}
    for name, pairs in texts.items():
        atomic_write(folder / f"{name}.jsonl", rows_of(*instructions.written_ids(world.tokenizer, pairs)))
    return {"engine_config": str(folder / "engine.json"), **{name: str(folder / f"{name}.jsonl") for name in texts}}
