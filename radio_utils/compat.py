"""Watermarks of other people's software, read with this package's tests (:mod:`radio_utils.watermarks.published`)."""

from radio_utils.watermarks.published import ReleasedGreenList, ReleasedGumbelMax, TransformersGreenList

__all__ = ["ReleasedGreenList", "ReleasedGumbelMax", "TransformersGreenList"]
