"""A world for audits: Alice is a table of next-token probabilities, every Bob a model of a few thousand weights.

Alice's words are ``w0`` … ``w127``, each a token, so text and token ids are the same thing. Bob is trained on her text from
a base that was trained on her unmarked text; all of them are folders, as a stranger would have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import radio_utils as ru
from radio_utils import decoding
from radio_utils.audit import Request, Verdict, run
from radio_utils.presets import Build
from radio_utils.world import models, training

Ids = NDArray[np.int64]
WORDS, LENGTH, KEY, OTHER_KEY = 128, 48, "alice's key 4711 of the tests", "carol's key"
GAMMA, DELTA = 0.25, 4.0
TABLE = torch.from_numpy(np.random.default_rng(7).normal(0, 1.0, (WORDS, WORDS)))


def watermark(key: str | bytes | int = KEY, window: int = 1) -> ru.GreenList:
    return ru.GreenList(key, WORDS, window, GAMMA, DELTA)


def write_ids(count: int, wm: Any, seed: int, *, start: Ids | None = None, length: int = LENGTH) -> Ids:
    """Texts of Alice's, int64 [count, length], with a watermark or without; ``start`` are first tokens to go on from."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, WORDS, (count, 2), generator=generator) if start is None else torch.from_numpy(start)
    process = None if wm is None else wm.logits_processor()
    while texts.shape[1] < length:
        logits = TABLE[texts[:, -1]]
        if process is not None:
            logits = process(texts, logits)
        texts = torch.cat([texts, decoding.draw(logits, generator)[:, None]], dim=1)
    found: Ids = texts.numpy()
    return found


def words(ids: Iterable[int]) -> str:
    return " ".join(f"w{one}" for one in ids)


def write_file(path: Path, texts: Iterable[Iterable[int]], prompt: int = 0) -> str:
    """A JSONL file; the first ``prompt`` words of each text are its prompt."""
    with path.open("w") as file:
        for text in texts:
            text = list(text)
            row = {"prompt": words(text[:prompt]), "text": words(text[prompt:])} if prompt else {"text": words(text)}
            file.write(json.dumps(row) + "\n")
    return str(path)


def save_tokenizer(folder: Path, vocabulary: dict[str, int]) -> str:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(str(folder))
    return str(folder)


def save_model(folder: Path, texts: Ids, *, base: str = "", epochs: int = 3) -> str:
    """Train a model on texts, from scratch or from the model in folder ``base``, and save it with its tokenizer."""
    if base:
        model = ru.suspects.load_model(base)
    else:
        build = Build(architecture="gpt_neox", width=64, layers=1, heads=2, key_value_heads=2)
        model = models.new_model(build, WORDS, 0, seed=1)
    recipe = training.Recipe(epochs=epochs, learning_rate=1e-2, batch_size=32, max_length=LENGTH)
    training.train(model, [training.Example(row) for row in texts], recipe, generator=np.random.default_rng(0))
    model.generation_config.eos_token_id = None
    model.save_pretrained(str(folder))
    save_tokenizer(folder, {f"w{i}": i for i in range(WORDS)})
    return str(folder)


@dataclass(frozen=True)
class World:
    """Folders of models and files of texts. ``used`` taught the guilty Bob, ``fresh`` nobody."""

    root: Path
    base: str
    guilty: str
    innocent: str
    carols: str
    used: str
    fresh: str
    plain: str


def audited(world: World, folder: Path, suspect: str, **changes: Any) -> Verdict:
    """One audit; a verdict of another one in the folder, which would be refused, is taken away, its evidence is not."""
    (folder / "verdict.json").unlink(missing_ok=True)
    return run(request(world, folder, suspect, **changes))


def request(world: World, folder: Path, suspect: str, **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "suspect": suspect, "watermarked_texts": world.used, "window": 1, "gamma": GAMMA, "decoys": 99,
        "max_queries": 60, "max_tokens": 32, "output_dir": str(folder),
    }  # fmt: skip
    if "key_env" not in changes and "key_file" not in changes:
        settings["key"] = KEY
    return Request(**(settings | changes))
