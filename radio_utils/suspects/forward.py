"""Running a model over texts: the one place that sorts them, pads them, feeds them and takes the padding off again.

Everything that reads goes through :func:`read`: reading mode, contrastive reading, counts, membership, quality. It asks
first whether the model can be read at all (:mod:`radio_utils.suspects.causality`), puts texts of like length together, no
more tokens at once than memory has room for, and goes on with half of them where a device is too small all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from radio_utils.decoding.passes import (
    check_finite,
    device_of,
    evaluating,
    free_memory,
    is_out_of_memory,
    logits_of,
    positions_of,
    rows_of,
    virtual_places,
)
from radio_utils.evidence.windows import padded
from radio_utils.suspects.causality import check_causal, honours_padding
from radio_utils.suspects.memory import DeviceMemoryError

Ids = NDArray[np.int64]

_LOGITS = 1 << 27  # of one model that are held at once: half a GB in single precision
FEWER = "the watermark's vocab_size={}; the suspect does not use Alice's tokenizer"


def read(
    models: Sequence[Any],
    contexts: Sequence[Ids],
    vocab_size: int | None = None,
    *,
    fed: Sequence[Sequence[Ids]] | None = None,
    batch_size: int = 64,  # a small model on a processor reads 256 short texts together 1.4 times as slowly
    longest_first: bool = False,
    finite: bool = True,
    fewer: str = FEWER,
    what: str = "texts",
    progress: str | None = None,
) -> Iterator[tuple[list[int], list[list[torch.Tensor]]]]:
    """Feed ``contexts`` (token ids, each of at least one) to each of ``models``, a batch at a time.

    Yields the numbers of the texts of a batch, and for each model the logits of each of these texts: [length, V] after each
    of its tokens, the first ``vocab_size`` of them or all. ``fed`` are for each model what it is fed in place of each text,
    where that ends as the text does and begins otherwise (:mod:`radio_utils.suspects.feeding`): what is yielded is then
    right for the places that both have. They are let go when the next batch is asked for. Texts come in
    order of length, at most ``batch_size`` together, fewer where their logits would be many or a device runs out of memory.
    Afterwards each model is in the mode in which it was, training or evaluation.

    Raises ``ValueError`` for a model that sees what it should predict, gives no logits for each token, has fewer than
    ``vocab_size`` (``fewer`` goes on with "fewer than"), has NaN or infinity among them, unless ``finite`` is false, or a
    text that is longer than a model's positions (``what`` names the texts);
    :class:`radio_utils.suspects.memory.DeviceMemoryError` where one text alone is too much.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(contexts) == 0:
        return
    with evaluating(*models), torch.inference_mode():
        padding, given = True, [contexts] * len(models) if fed is None else list(fed)
        for model, texts in zip(models, given, strict=True):
            least = rows_of(model)
            if vocab_size is not None and least is not None and least < vocab_size:
                raise ValueError(f"the model has {least} logits, fewer than {fewer.format(vocab_size)}")
            check_length(model, texts, what)
            check_causal(model, texts)
            padding &= honours_padding(model, texts)
        sizes = np.array([[text.size for text in texts] for texts in given]).max(axis=0)
        order = np.argsort(-sizes if longest_first else sizes, kind="stable")
        most = max(1, _LOGITS // max([vocab_size or 0, *(rows_of(model) or 0 for model in models), 1]))
        waiting = deque(_batches(order, sizes, batch_size, most, padding))
        with tqdm(total=len(contexts), desc=progress, disable=progress is None, unit="text", mininterval=5.0) as bar:
            while waiting:
                rows = waiting.popleft()
                found = _read_batch(models, [[texts[i] for i in rows] for texts in given], vocab_size, fewer, finite)
                if found is None:
                    waiting = _halved([rows, *waiting], max(1, len(rows) // 2))
                    continue
                if fed is not None:
                    wanted = [contexts[i].size for i in rows]
                    for number, of_model in enumerate(found):
                        found[number] = [_last(one, size) for one, size in zip(of_model, wanted, strict=True)]
                        of_model.clear()
                yield rows, found
                for of_model in found:
                    of_model.clear()  # before the next batch is made: whoever asked for this one still holds the list
                bar.update(len(rows))


def check_length(model: Any, contexts: Sequence[Ids], what: str = "texts") -> None:
    """Raise ``ValueError`` for a text longer than the model's positions, where a model fails or talks nonsense."""
    most = positions_of(model)
    if most is None:
        return
    most -= virtual_places(model)
    for i, context in enumerate(contexts):
        if context.size > most:
            raise ValueError(
                f"{what}[{i}] has {context.size:,} tokens with its prompt, and the model can read {most:,} at once; split "
                "the longer texts"
            )


def _batches(order: Ids, sizes: Ids, batch_size: int, most: int, padding: bool) -> Iterator[list[int]]:
    """Numbers of texts that are fed together: ``most`` tokens at most, padding counted, and without it of one length."""
    batch: list[int] = []
    for i in order.tolist():
        longest = max(int(sizes[i]), int(sizes[batch[0]])) if batch else 0
        full = len(batch) == batch_size or (len(batch) + 1) * longest > most
        if batch and (full or not (padding or sizes[i] == sizes[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _halved(batches: Sequence[list[int]], size: int) -> deque[list[int]]:
    """All that is left, in batches of at most ``size`` texts: what was too much once would be so again."""
    return deque(batch[start : start + size] for batch in batches for start in range(0, len(batch), size))


def _read_batch(
    models: Sequence[Any], given: list[list[Ids]], vocab_size: int | None, fewer: str, finite: bool
) -> list[list[torch.Tensor]] | None:
    """The logits of each text from each model; None where several are too much for the memory."""
    try:
        return [_logits(model, texts, vocab_size, fewer, finite) for model, texts in zip(models, given, strict=True)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(given[0]) == 1:
            raise DeviceMemoryError(
                f"the device ran out of memory with one text of {given[0][0].size:,} tokens; split the longer texts, lower "
                f"the precision (bfloat16), or take a device with more ({str(error).strip().partition(chr(10))[0]})"
            ) from error
    free_memory()
    return None


def _logits(model: Any, contexts: list[Ids], vocab_size: int | None, fewer: str, finite: bool) -> list[torch.Tensor]:
    ids, mask = padded(contexts)
    device = device_of(model)
    fed = torch.from_numpy(mask).to(device)
    every = logits_of(model, torch.from_numpy(ids).to(device), fed)
    if vocab_size is not None and every.shape[-1] < vocab_size:
        raise ValueError(f"the model has {every.shape[-1]} logits, fewer than {fewer.format(vocab_size)}")
    logits = every[..., :vocab_size]
    if finite:
        check_finite(logits, fed.bool())
    return [logits[row, : context.size] for row, context in enumerate(contexts)]


def _last(logits: torch.Tensor, size: int) -> torch.Tensor:
    """The last ``size`` rows; where there are fewer, the first stands for what nobody asks."""
    missing = size - logits.shape[0]
    return logits[-size:] if missing <= 0 else torch.cat([logits[:1].expand(missing, -1), logits])


def chosen(logits: Sequence[torch.Tensor], rows: Ids, places: Ids) -> torch.Tensor:
    """The logits [m, V] at ``places`` [m] of the texts ``rows`` [m] of a batch, which come in order."""
    found, starts = np.unique(rows, return_index=True)
    parts = [logits[row][torch.from_numpy(some)] for row, some in zip(found, np.split(places, starts[1:]), strict=True)]
    return torch.cat(parts) if parts else logits[0][:0]
