"""Watermarks: what a scheme is (``base``), this package's own (``schemes``), and other people's.

The latter are research releases' (``published``, ``lists``) and inference engines' (``engines``, ``synthid``).
"""

from radio_utils.watermarks.base import Watermark, as_ids, check_ids
from radio_utils.watermarks.schemes import GreenList, GumbelMax

__all__ = ["GreenList", "GumbelMax", "Watermark", "as_ids", "check_ids"]
