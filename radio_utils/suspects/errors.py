"""What goes wrong with models that somebody else made."""


class ModelFolderError(ValueError):
    """A folder, file or hub name does not hold a usable causal language model with its tokenizer."""
