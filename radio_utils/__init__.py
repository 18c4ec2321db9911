"""Helper package of the book "Radioactive Watermarks".

The statistical core (:mod:`radio_utils.stats`, ``watermarks``, ``compat``, ``engines``, ``evidence``, ``detection``,
``eprocess``, ``planning``) needs numpy and scipy only; names that need more are imported when they are first used, and
say which extra of the package is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from radio_utils import compat, engines, extras
from radio_utils.detection import Detection, KeySearch, NullAudit, detect, null_audit, which_key
from radio_utils.eprocess import EProcess
from radio_utils.watermarks import GreenList, GumbelMax, Watermark
from radio_utils.watermarks.synthid import SynthID

if TYPE_CHECKING:
    from radio_utils import planning
    from radio_utils.audit import audit_suspect
    from radio_utils.contrast import ContrastiveReading
    from radio_utils.membership import MembershipTest, membership_test, zlib_calibrated_losses
    from radio_utils.querying import SequentialVerdict, query_closed_model, query_until
    from radio_utils.reading import read_open_model
    from radio_utils.remarking import RemarkControl, remark_control
    from radio_utils.soft import SoftReading

extras.install()  # what is imported from here on names the extra that it lacks

__version__ = "0.1.0"

__all__ = [
    "ContrastiveReading",
    "Detection",
    "EProcess",
    "GreenList",
    "GumbelMax",
    "KeySearch",
    "MembershipTest",
    "NullAudit",
    "RemarkControl",
    "SequentialVerdict",
    "SoftReading",
    "SynthID",
    "Watermark",
    "audit_suspect",
    "compat",
    "detect",
    "engines",
    "membership_test",
    "null_audit",
    "planning",
    "query_closed_model",
    "query_until",
    "read_open_model",
    "remark_control",
    "which_key",
    "zlib_calibrated_losses",
]

_LAZY = {
    "ContrastiveReading": "contrast",
    "RemarkControl": "remarking",
    "SequentialVerdict": "querying",
    "SoftReading": "soft",
    "MembershipTest": "membership",
    "membership_test": "membership",
    "query_closed_model": "querying",
    "query_until": "querying",
    "read_open_model": "reading",
    "remark_control": "remarking",
    "zlib_calibrated_losses": "membership",
    "audit_suspect": "audit",
}


def __getattr__(name: str) -> Any:
    if name == "planning":
        return importlib.import_module("radio_utils.planning")
    if name in _LAZY:
        return getattr(importlib.import_module(f"radio_utils.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'radio_utils' has no attribute {name!r}")
