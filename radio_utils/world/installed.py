"""Which packages a corpus is read from, where the preset says "all that are installed"."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

from radio_utils.world.corpus import STANDARD_LIBRARY

EVERYTHING = "*"
_OURS = {"radio_utils"}


def resolved(packages: Sequence[str]) -> tuple[str, ...]:
    """The packages, with ``"*"`` replaced by the standard library and every installed package that has Python source."""
    if EVERYTHING not in packages:
        return tuple(packages)
    return STANDARD_LIBRARY, *sorted(name for name in importlib.metadata.packages_distributions() if _has_source(name))


def _has_source(name: str) -> bool:
    if not name.isidentifier() or name.startswith("_") or name in _OURS:
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and spec.origin.endswith(".py")
