"""Models and tokenizer of the world made here: small, from scratch, in the standard transformers format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from radio_utils.presets import Build

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 1024  # positions a model made here can attend to


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE tokenizer and save it in the hub's format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    fast.save_pretrained(str(folder))


def new_model(build: Build, vocab_size: int, end_of_text: int, seed: int) -> Any:
    """A randomly initialised causal model of the named architecture."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": build.width,
        "num_hidden_layers": build.layers,
        "num_attention_heads": build.heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if build.architecture == "llama":
            inner = 8 * (build.width * 8 // 3 // 8)
            return LlamaForCausalLM(
                LlamaConfig(**common, num_key_value_heads=build.key_value_heads, intermediate_size=inner)
            )
        return GPTNeoXForCausalLM(GPTNeoXConfig(**common, intermediate_size=4 * build.width))
