"""A world of words for models that a server answers with: each word is a blank and one sign, and one token of a real BPE.

Alice is a table of next-word probabilities. Whatever cuts her texts into tokens, by whichever library, finds the words that
were drawn.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import radio_utils as ru
from radio_utils import decoding
from radio_utils.world import training

Ids = NDArray[np.int64]
END, TURN = "<|end|>", "<|turn|>"
SIGNS = string.ascii_letters + string.digits + string.punctuation
TEMPLATE = (
    "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
LENGTH, DELTA, GAMMA = 48, 4.0, 0.25


def save_tokenizer(folder: Path, *, begins: bool = False, digits: bool = False, template: str | None = TEMPLATE) -> Any:
    """The tokenizer, saved: with an opening token or without, and with digits split one by one or not."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bytes_, words = sorted(pre_tokenizers.ByteLevel.alphabet()), [f"Ġ{sign}" for sign in SIGNS]
    vocabulary = {token: number for number, token in enumerate([END, TURN, *bytes_, *words])}
    plain = Tokenizer(models.BPE(vocabulary, [("Ġ", sign) for sign in SIGNS]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = [pre_tokenizers.Digits(individual_digits=True), byte_level]
    plain.pre_tokenizer = pre_tokenizers.Sequence(split) if digits else byte_level
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(END, special=True), AddedToken(TURN, special=True)])
    if begins:
        plain.post_processor = processors.TemplateProcessing(f"{TURN} $A", special_tokens=[(TURN, vocabulary[TURN])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=TURN, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, texts: Ids | None = None, *, seed: int = 0, tied: bool = False, **tokenizer: Any) -> Path:
    """A small LLaMA with its tokenizer, of random weights or trained on texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = save_tokenizer(folder, **tokenizer)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens) + 5, hidden_size=64, intermediate_size=96, num_hidden_layers=1 if texts is not None else 2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied,
        initializer_range=0.02 if texts is not None else 0.3, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if texts is None:  # words are likelier than single bytes, of which a server may hold the last back, and than an end
        model.lm_head.weight.data[: 2 + 256] *= 0.05
    else:
        recipe = training.Recipe(epochs=3, learning_rate=1e-2, batch_size=32, max_length=LENGTH)
        training.train(model, [training.Example(row) for row in texts], recipe, generator=np.random.default_rng(0))
    model.save_pretrained(folder)
    return folder


def write(count: int, wm: Any, seed: int) -> Ids:
    """Texts of Alice's as token ids, int64 [count, LENGTH], with a watermark or without."""
    size, first = 2 + 256 + len(SIGNS), 2 + 256
    table = torch.full((size, size), -torch.inf, dtype=torch.float64)
    table[:, first:] = torch.from_numpy(np.random.default_rng(7).normal(0, 1.0, (size, len(SIGNS))))
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(first, size, (count, 2), generator=generator)
    process = None if wm is None else wm.logits_processor()
    while texts.shape[1] < LENGTH:
        logits = table[texts[:, -1]]
        texts = torch.cat(
            [texts, decoding.draw(logits if process is None else process(texts, logits), generator)[:, None]], 1
        )
    found: Ids = texts.numpy()
    return found


def watermark(key: str) -> ru.GreenList:
    return ru.GreenList(key, 2 + 256 + len(SIGNS), 1, GAMMA, DELTA)


def write_file(path: Path, texts: Ids, tokenizer: Any, prompt: int = 8) -> str:
    """A JSONL file, the first tokens of each text as its prompt."""
    rows = [{"prompt": tokenizer.decode(one[:prompt]), "text": tokenizer.decode(one[prompt:])} for one in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
