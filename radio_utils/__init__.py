"""Helper package of the book "Radioactive Watermarks".

The statistical core (:mod:`radio_utils.prf`, ``watermarks``, ``pvalues``, ``evidence``, ``detection``) needs numpy and
scipy only; names that need torch are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from radio_utils.detection import Detection, NullAudit, detect, null_audit
from radio_utils.watermarks import GreenList, GumbelMax, Watermark

if TYPE_CHECKING:
    from radio_utils.membership import MembershipTest, membership_test, zlib_calibrated_losses
    from radio_utils.querying import query_closed_model
    from radio_utils.reading import read_open_model

__version__ = "0.1.0"

__all__ = [
    "Detection",
    "GreenList",
    "GumbelMax",
    "MembershipTest",
    "NullAudit",
    "Watermark",
    "detect",
    "membership_test",
    "null_audit",
    "query_closed_model",
    "read_open_model",
    "zlib_calibrated_losses",
]

_LAZY = {
    "MembershipTest": "membership",
    "membership_test": "membership",
    "query_closed_model": "querying",
    "read_open_model": "reading",
    "zlib_calibrated_losses": "membership",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"radio_utils.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'radio_utils' has no attribute {name!r}")
