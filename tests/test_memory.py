"""A device without memory says what to lower; every other error goes by."""

from __future__ import annotations

import pytest
import torch

from radio_utils.suspects.memory import DeviceMemoryError, needs_memory


def test_out_of_memory_names_the_settings() -> None:
    with (
        pytest.raises(DeviceMemoryError, match=r"lower reading\.batch_size or reading\.texts of the preset") as caught,
        needs_memory("reading.batch_size", "reading.texts"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has 1 GiB")
    assert "(CUDA out of memory. Tried to allocate 2 GiB.)" in str(caught.value), "the first line only"
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_an_out_of_memory_without_a_message() -> None:
    with pytest.raises(DeviceMemoryError, match=r"lower suspect\.batch_size of"), needs_memory("suspect.batch_size"):
        raise torch.OutOfMemoryError


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyboardInterrupt()])
def test_others_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, needs_memory("reading.batch_size"):
        raise error
    assert caught.value is error


def test_what_works_is_left_alone() -> None:
    with needs_memory("reading.batch_size"):
        done = True
    assert done


def test_the_inner_name_is_kept() -> None:
    """Making one thing may make another first: the setting to lower is that of what ran out."""
    lower = r"lower inner\.size of"
    with pytest.raises(DeviceMemoryError, match=lower), needs_memory("outer.size"), needs_memory("inner.size"):
        raise torch.OutOfMemoryError("full")
