"""What everything else in a world follows from: the preset, the seed, Alice's key, and the store where it is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers

from radio_utils.artifacts import Artifact, Store, default_root
from radio_utils.presets import Preset
from radio_utils.watermarks.prf import Key, derive_bytes


@dataclass(frozen=True)
class Spec:
    """What names an artifact in the store: its kind, its configuration, what it is made from and the code's version."""

    kind: str
    config: dict[str, Any]
    inputs: list[Artifact]
    version: str


class Setting:
    """One preset, seed and key, and the use of chance that follows from them."""

    def __init__(
        self,
        preset: Preset,
        *,
        seed: int = 0,
        run: int = 0,
        key: Key | None = None,
        store: Store | None = None,
        progress: bool = True,
        device: str | None = None,
    ) -> None:
        """``key`` is Alice's secret; without one a demonstration key is derived from the seed, which protects nothing.

        Another ``run`` draws Bob's data and the order of his training anew, from the same models and the same text.
        """
        self.preset, self.seed, self.run, self.progress = preset, seed, run, progress
        self.store = store or Store(default_root())
        self.key: Key = key if key is not None else f"demonstration key {seed}"
        self.device = device or (preset.device if preset.device == "cpu" or torch.cuda.is_available() else "cpu")
        self.precision = torch.bfloat16 if preset.precision == "bfloat16" and has_bf16(self.device) else torch.float32

    def changed(self, *, run: int | None = None, key: Key | None = None, **changes: Any) -> Self:
        """The same world but for another run, another key, or other fields of the preset (dots written as ``__``)."""
        return type(self)(
            self.preset.changed(**changes),
            seed=self.seed,
            run=self.run if run is None else run,
            key=self.key if key is None else key,
            store=self.store,
            progress=self.progress,
            device=self.device,
        )

    def with_keys(self, count: int) -> list[Self]:
        """Worlds with the same Alice and ``count`` keys; the first is this world's."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        others = [derive_bytes(self.key, f"mixed key {number}") for number in range(1, count)]
        return [self, *(self.changed(key=other) for other in others)]

    def description(self) -> dict[str, Any]:
        """All that another process must know to make the same, as plain JSON values: **the key is among them**."""
        key: Any = self.key if not isinstance(self.key, bytes) else {"hex": self.key.hex()}
        fields = {"preset": self.preset.model_dump(), "seed": self.seed, "run": self.run, "key": key}
        return fields | {"store": str(self.store.root)}

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Self:
        """The world of a :meth:`description`, without progress bars."""
        key = bytes.fromhex(said["key"]["hex"]) if isinstance(said["key"], dict) else said["key"]
        preset, store = Preset(**said["preset"]), Store(said["store"])
        return cls(preset, seed=said["seed"], run=said["run"], key=key, store=store, progress=False)

    def number(self, name: str) -> int:
        """A seed for one use of chance."""
        return int(self._generator(name).integers(1 << 31))

    def _generator(self, name: str, *, run: bool = False) -> np.random.Generator:
        """Each use of chance has its own stream, so that adding one leaves the others as they were.

        With ``run`` the stream is another one in another run.
        """
        stream = f"{name}/run {self.run}" if run and self.run else name
        return np.random.default_rng([self.seed, zlib.crc32(stream.encode())])

    def _bar(self, label: str) -> str | None:
        return label if self.progress else None

    def _get(self, spec: Spec, build: Callable[[Path], None]) -> Artifact:
        return self.store.get(spec.kind, spec.config, build, inputs=spec.inputs, version=spec.version)

    def _has(self, spec: Spec) -> bool:
        return self.store.has(spec.kind, spec.config, inputs=spec.inputs, version=spec.version)


def has_bf16(device: str) -> bool:
    """Whether a device has arithmetic in bfloat16. One that only imitates it is slower so than in float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in asked)


def library_versions() -> dict[str, str]:
    """The libraries on which trained weights depend."""
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
