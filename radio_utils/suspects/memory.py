"""What to lower when a device runs out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceMemoryError(RuntimeError):
    """The device ran out of memory; the message says what to lower."""


@contextmanager
def needs_memory(*settings: str) -> Iterator[None]:
    """Turn a device's "out of memory" into a :class:`DeviceMemoryError` that names the settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the device ran out of memory; lower {' or '.join(settings)} of the preset, or take a device with more "
            f"({str(error).strip().partition(chr(10))[0] or 'it gave no details'})"
        ) from error
