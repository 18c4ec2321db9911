"""Decoding: from logits to tokens, with or without a watermark.

The three truncations (temperature, top-k, nucleus) follow the definitions of transformers' own warpers, with which the
tests compare them. :func:`generate` is a plain batched sampler over a key–value cache, faster for many short answers
than ``model.generate`` because finished rows leave the batch; the processors work with either.
"""

from radio_utils.decoding.generation import generate, processor_for
from radio_utils.decoding.warping import Sampling, apply_temperature, draw, keep_nucleus, keep_top_k, warp
from radio_utils.watermarks.processors import GreenListProcessor, GumbelMaxProcessor

__all__ = [
    "GreenListProcessor",
    "GumbelMaxProcessor",
    "Sampling",
    "apply_temperature",
    "draw",
    "generate",
    "keep_nucleus",
    "keep_top_k",
    "processor_for",
    "warp",
]
