"""Earlier audits of the same suspect: each is one more chance of a false conviction, so the report counts them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from radio_utils.files import read_json

_LARGEST = 1 << 26  # bytes; a verdict is far smaller


def earlier_audits(folder: Path, inputs: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Verdicts on the same suspect in the folders beside this one: folder, date, outcome, α and fingerprint, oldest first.

    Who a suspect is follows from ``inputs`` of a verdict: the hashes of its weights, or its commit on the hub; its address
    and model; the hash of its answers. Names of folders and files count for nothing. What cannot be read is passed over.
    """
    wanted, own, found = _identities(inputs), folder.resolve(), []
    for path in sorted(folder.resolve().parent.glob("*/verdict.json")):
        try:
            if path.parent.resolve() == own or path.stat().st_size > _LARGEST:
                continue
            record = read_json(path)
            if not wanted & _identities(record["inputs"]):
                continue
            row: dict[str, Any] = {
                "folder": path.parent.name,
                "date": str(record["date"]),
                "outcome": str(record["outcome"]),
                "alpha": float(record["alpha"]),
                "fingerprint": str(record["fingerprint"]),
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if math.isfinite(row["alpha"]):
            found.append(row)
    return tuple(sorted(found, key=lambda row: row["date"]))


def weights_of(digest: dict[str, str]) -> list[str]:
    """The hashes of the files of weights among those of a model's folder, whatever the files are called."""
    return sorted(value for name, value in digest.items() if name.lower().endswith((".safetensors", ".gguf")))


def _identities(inputs: dict[str, Any]) -> set[tuple[Any, ...]]:
    """By what a suspect is known; two audits with one of these in common are of the same."""
    suspect, found = inputs["suspect"], set[tuple[Any, ...]]()
    digest = suspect.get("sha256")
    if isinstance(digest, dict):
        if weights := weights_of(digest):
            found.add(("weights", *weights))
        elif digest.get("hub commit", "unknown") != "unknown":
            found.add(("hub", suspect["name"], digest["hub commit"]))
    elif isinstance(digest, str):
        found.add(("answers", digest))
    else:
        found.add(("endpoint", suspect["name"].rstrip("/").casefold(), suspect["model"]))
    if "answers" in inputs:  # what a server said may be given as a file later
        found.add(("answers", inputs["answers"]["sha256"]))
    return found
