"""What a model keeps of the tokens it has read: our key–value cache, its own, or nothing.

Models differ in what they remember: keys and values, the states of a recurrence, both. None is trusted by its name. Before
a text is written two steps of each kind of cache are compared with passes that keep nothing, and the first that agrees is
taken (:func:`proven`): ours, which rows can leave; the model's own; or none, slow and right for every model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, DynamicLayer

from radio_utils.decoding.passes import LOOSE, alike, device_of, logits_of, rows_of

Ids = NDArray[np.int64]
Logits = torch.Tensor

_AT_ONCE = 1 << 27  # logits of a pass that keeps nothing
_STATES = ("past_key_values", "cache_params", "state", "mems")  # what models call what they keep


class Memory(Protocol):
    """Reads prompts, then token after token."""

    def start(self) -> Logits:
        """Read the prompts: logits [n, V] after each."""
        ...

    def step(self, tokens: torch.Tensor) -> Logits:
        """Read one more token of each row, ``tokens`` [n]: logits [n, V] after it."""
        ...

    def select(self, rows: torch.Tensor) -> bool:
        """Keep only some rows of the batch; False where all must stay."""
        ...


# of the model, prompts and the number of tokens that will follow them
Kind = Callable[[Any, Sequence[Ids], int], Memory]


class FilledLayer(DynamicLayer):
    """Keys and values of one layer in a buffer of known capacity: no copy a step; attention sees the filled part only."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.filled = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers once the first keys show their shape."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append in place; return views of everything appended so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens appended so far."""
        return self.filled

    def select(self, rows: torch.Tensor) -> None:
        """Keep only some rows of the batch."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class OurCache:
    """Left-padded prompts and a key–value cache of ours."""

    mixed = True  # whether prompts of different lengths can stand in one batch

    def __init__(self, model: Any, prompts: Sequence[Ids], new: int) -> None:
        self.model, device = model, device_of(model)
        self.ids, mask = (torch.from_numpy(array).to(device) for array in left_padded(prompts, new))
        self.mask, self.filled = mask, self.ids.shape[1]
        self.positions = torch.tensor([prompt.size for prompt in prompts], device=device)
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [FilledLayer(self.filled + new) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))

    def start(self) -> Logits:
        """Logits [n, V] after each prompt."""
        return self._forward(self.ids, (self.mask[:, : self.filled].cumsum(1) - 1).clamp(min=0))

    def step(self, tokens: torch.Tensor) -> Logits:
        """Logits [n, V] after one more token of each row."""
        self.filled += 1
        logits = self._forward(tokens[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return logits

    def select(self, rows: torch.Tensor) -> bool:
        """Keep only some rows, if that can be."""
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        for layer in self.layers:
            layer.select(rows)
        return True

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> Logits:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask[:, : self.filled],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]


class ItsCache:
    """Prompts of one length, and what the model itself keeps of them."""

    mixed = False
    masked = True

    def __init__(self, model: Any, prompts: Sequence[Ids], new: int) -> None:
        self.model = model
        self.ids = torch.from_numpy(np.stack(prompts)).to(device_of(model))
        self.mask = torch.ones((len(prompts), self.ids.shape[1]), dtype=torch.long, device=self.ids.device)
        self.kept: dict[str, Any] = {}
        accepted = inspect.signature(model.forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def start(self) -> Logits:
        """Logits [n, V] after each prompt."""
        return self._forward(self.ids)

    def step(self, tokens: torch.Tensor) -> Logits:
        """Logits [n, V] after one more token of each row."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        return self._forward(tokens[:, None])

    def select(self, rows: torch.Tensor) -> bool:
        """Keep only some rows, if that can be."""
        return False

    def _forward(self, ids: torch.Tensor) -> Logits:
        mask = {"attention_mask": self.mask} if self.masked else {}
        output = self.model(input_ids=ids, use_cache=True, **mask, **self.options, **self.kept)
        self.kept = {name: found for name in _STATES if (found := getattr(output, name, None)) is not None}
        if not self.kept:
            raise ValueError("the model keeps nothing of what it has read")
        return output.logits[:, -1].float()  # type: ignore[no-any-return]


class ItsUnmasked(ItsCache):
    """The same, and no mask, which a recurrence may take for one of the new token alone."""

    masked = False


class NoCache:
    """Prompts of one length, read again from their beginning for every token."""

    mixed = False

    def __init__(self, model: Any, prompts: Sequence[Ids], new: int) -> None:
        self.model = model
        self.ids = torch.from_numpy(np.stack(prompts)).to(device_of(model))

    def start(self) -> Logits:
        """Logits [n, V] after each prompt."""
        step = max(1, _AT_ONCE // (self.ids.shape[1] * (rows_of(self.model) or 1)))
        return torch.cat([logits_of(self.model, some)[:, -1].float() for some in torch.split(self.ids, step)])

    def step(self, tokens: torch.Tensor) -> Logits:
        """Logits [n, V] after one more token of each row."""
        self.ids = torch.cat([self.ids, tokens[:, None].to(self.ids.device)], dim=1)
        return self.start()

    def select(self, rows: torch.Tensor) -> bool:
        """Keep only some rows, if that can be."""
        self.ids = self.ids[rows]
        return True


def left_padded(prompts: Sequence[Ids], new: int = 0) -> tuple[Ids, Ids]:
    """Prompts as one array, zeros on the left [n, longest], and a mask with room for ``new`` tokens more."""
    width = max(prompt.size for prompt in prompts)
    ids, mask = np.zeros((len(prompts), width), np.int64), np.ones((len(prompts), width + new), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.size :] = prompt
        mask[row, : width - prompt.size] = 0
    return ids, mask


def proven(model: Any, prompts: Sequence[Ids], new: int) -> type[OurCache] | type[ItsCache] | type[NoCache]:
    """The first kind of cache with which the model says what it says without any, tried on tokens of these prompts.

    Ours is not tried where the model looks back less far than the texts will be long: that would not show here.
    """
    tokens = np.unique(np.concatenate([prompt[:256] for prompt in prompts[:64]]))
    if tokens.size < 4:
        tokens = np.arange(min(rows_of(model) or 4, 1000))
    drawn = tokens[np.random.default_rng(0).integers(tokens.size, size=(2, 8))]
    reach = _reach(model)
    longest = max(prompt.size for prompt in prompts) + new
    kinds: list[type[OurCache] | type[ItsCache]] = [OurCache, ItsCache, ItsUnmasked]
    return next((kind for kind in kinds[bool(reach and longest > reach) :] if _holds(kind, model, drawn)), NoCache)


def _reach(model: Any) -> int | None:
    """How far back a model looks at least, in tokens, where its configuration sets a window."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((one for one in found if isinstance(one, int) and one > 0), default=None)


def _holds(kind: type[OurCache] | type[ItsCache], model: Any, drawn: Ids) -> bool:
    """Whether a prompt and two more tokens are read with this cache as they are without."""
    sizes = (5, 3) if kind.mixed else (5, 5)
    try:
        memory = kind(model, [row[:size] for row, size in zip(drawn, sizes, strict=True)], 2)
        found = [memory.start()]
        for i in range(2):
            following = [row[size + i] for row, size in zip(drawn, sizes, strict=True)]
            found.append(memory.step(torch.tensor(following, device=found[0].device)))
    except Exception:  # a model may refuse a cache that isn't its own, or any, in whatever way
        return False
    for row, size in enumerate(sizes):
        alone = torch.from_numpy(drawn[row, : size + 2][None]).to(device_of(model))
        plain = logits_of(model, alone)[0, size - 1 :]
        if not alike(plain, torch.stack([one[row] for one in found]), LOOSE):
            return False
    return True
