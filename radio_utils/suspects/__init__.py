"""Suspects: what Alice can ask of Bob's model.

An *open* suspect gives its next-token distribution (:class:`LocalSuspect`, any causal transformers model); a *closed*
suspect only answers prompts. Both speak token ids of Alice's tokenizer.
"""

from radio_utils.suspects.errors import ModelFolderError
from radio_utils.suspects.loading import check_same_tokenizer, check_vocabulary, load_model, load_tokenizer
from radio_utils.suspects.local import LocalSuspect, Suspect

__all__ = [
    "LocalSuspect",
    "ModelFolderError",
    "Suspect",
    "check_same_tokenizer",
    "check_vocabulary",
    "load_model",
    "load_tokenizer",
]
