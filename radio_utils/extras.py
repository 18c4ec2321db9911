"""Which extra of the package brings what a module imports, said where it is missing.

``pip install radio-utils`` brings numpy, scipy and tqdm. Everything else belongs to an extra of pyproject.toml, and most
modules import it at their top: a plain ``No module named 'torch'`` would not tell a reader what to install.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

_PACKAGE = "radio_utils"
# by the name that is imported; an extra that holds another is named by the smaller one
EXTRAS = {
    "accelerate": "models", "huggingface_hub": "models", "peft": "models", "safetensors": "models",
    "psutil": "models", "tokenizers": "models", "torch": "models", "transformers": "models", "filelock": "models",
    "jinja2": "audit", "matplotlib": "audit", "pandas": "audit", "pydantic": "audit", "seaborn": "audit", "yaml": "audit",
    "IPython": "chapters",
    "jupyter_book": "book", "jupyter_client": "book", "jupyter_server_mathjax": "book", "nbclient": "book",
    "nbformat": "book", "papermill": "book", "docutils": "book", "sphinx": "book",
    "bitsandbytes": "quantised", "datasets": "wikipedia", "gguf": "gguf", "lm_eval": "quality", "openai": "api",
    "playwright": "test", "pyarrow": "parquet", "ray": "ray",
}  # fmt: skip


def remedy(module: str) -> str:
    """What to install where ``module``, by the name that is imported, is missing."""
    return f"pip install 'radio-utils[{EXTRAS[module]}]'"


@contextmanager
def named(needing: str) -> Iterator[None]:
    """Imports whose failure names the extra that would have brought the module; ``needing`` is what needs it.

    Raises ``ModuleNotFoundError``: one sentence for a module of :data:`EXTRAS`, the import's own for any other.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS or error.msg != f"No module named {error.name!r}":  # said already, by an inner module
            raise
        raise ModuleNotFoundError(f"{needing} needs {module}: {remedy(module)}", name=error.name) from error


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with named(module.__name__):
            super().exec_module(module)


class _Finder:
    """Finds this package's own modules as Python does, and lets them say which extra they lack."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{_PACKAGE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Let every module of the package name the extra that it lacks; modules of others are imported as before."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
