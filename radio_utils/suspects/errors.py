"""What goes wrong with models that somebody else made."""


class ModelFolderError(ValueError):
    """A folder, file or hub name does not hold a usable causal language model with its tokenizer."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line; its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
