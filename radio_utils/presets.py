"""Presets: one validated file, ``presets.yaml``, holds every size the chapters use at each tier.

An unknown preset, an unknown field or a value out of range is a :class:`PresetError` that names the field.
"""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from radio_utils import decoding, engines
from radio_utils.keys import SCHEMES, make_watermark
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import Key, derive_bytes

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


REAL, REAL_NAME = "pocket", "SmolLM2-135M-Instruct (pocket)"  # the tier of a real model, and its name in figures


class PresetError(ValueError):
    """An unknown preset or field, or a value out of range."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Corpus(_Section):
    """Packages whose docstrings are read; "*" stands for all that are installed."""

    packages: Annotated[tuple[str, ...], Field(min_length=1)]


class Tokenizer(_Section):
    """Byte-level BPE, trained on the corpus."""

    vocab_size: Annotated[int, Field(ge=300)]


class Build(_Section):
    """A model to be made here: its architecture and sizes."""

    architecture: Literal["llama", "gpt_neox"]
    width: Count
    layers: Count
    heads: Count
    key_value_heads: Count

    @pydantic.model_validator(mode="after")
    def _divides(self) -> Build:
        if self.width % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"heads={self.heads} must divide width={self.width}, and be a multiple of "
                f"key_value_heads={self.key_value_heads}"
            )
        return self


class Pretraining(_Section):
    """Tokens seen, AdamW learning rate, sequences a batch, tokens a sequence."""

    tokens: Count
    learning_rate: Positive
    batch_size: Count
    length: Count


class Model(_Section):
    """A model made here (``build`` and ``pretraining``) or taken by folder, GGUF file or hub name (``hub``)."""

    build: Build | None = None
    pretraining: Pretraining | None = None
    hub: str | None = None
    parameters: Positive | None = None
    bytes_per_parameter: Positive = 16

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Model:
        given = [part is not None for part in (self.build, self.pretraining, self.hub)]
        if given not in ([True, True, False], [False, False, True]):
            raise ValueError("give either build with pretraining, or hub")
        if self.hub is not None and self.parameters is None:
            raise ValueError("a hub model needs parameters, for the memory estimate")
        return self


def _plain(name: Any) -> Any:
    """The scheme that is given by its stored name; any other as it is."""
    return next((plain for plain, one in SCHEMES.items() if one.stored and one.stored == name), name)


def _stored(name: str) -> str:
    return SCHEMES[name].stored if name in SCHEMES else name


class Scheme(_Section):
    """Alice's watermark: one of this package's, or with scheme "engine" what an inference engine writes.

    ``engine`` is the configuration that the engine is started with, without its key, which is derived from Alice's. It says
    the window and all else: ``window``, ``gamma`` and ``delta`` belong to this package's schemes.
    """

    scheme: Annotated[
        Literal["green list", "gumbel max", "engine"], pydantic.BeforeValidator(_plain), pydantic.PlainSerializer(_stored)
    ]
    window: Count
    gamma: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(ge=0)]
    engine: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _of_an_engine(self) -> Scheme:
        if (self.scheme == "engine") != (self.engine is not None):
            raise ValueError("scheme 'engine' and the field engine, its configuration, belong together")
        if self.engine is not None:
            if self.engine.keys() & {"key", "keys", "hashing_key", "hash_key", "watermark_key"}:
                raise ValueError("engine holds a key, which would be stored in clear; leave it out")
            self.make("a key to try with", 1000)
        return self

    def make(self, key: Key, vocab_size: int) -> Watermark:
        """The watermark under a key."""
        if self.engine is not None:
            return engines.from_config(self.engine_config(key), vocab_size)
        return make_watermark(self.scheme, key, vocab_size, self.window, self.gamma, self.delta)

    def engine_config(self, key: Key) -> dict[str, Any]:
        """The engine's configuration with its own key, or keys of layers, derived from Alice's."""
        if self.engine is None:
            raise ValueError(f"scheme={self.scheme!r} is this package's; only that of an engine has a configuration")
        if "ngram_len" in self.engine:
            return {"keys": [_derived(key, f"layer {layer}", 31) for layer in range(_LAYERS)], **self.engine}
        label = f"{self.engine.get('algorithm', '')}/key"  # two marks of one engine must not share their words
        return {"key": _derived(key, label, 63) | 1, **self.engine}  # odd, as an even key leaves SBW fewer seeds

    def named(self, wm: Watermark) -> dict[str, Any]:
        """What a text written under this watermark depends on, without the key."""
        engine = {} if self.engine is None else {"engine": self.engine}
        return {"fingerprint": wm.fingerprint, "delta": self.delta, **engine}


_LAYERS = 30  # of SynthID, as in the examples of its authors and of transformers


def _derived(key: Key, name: str, bits: int) -> int:
    """A number of so many bits for an engine, from a key of any kind."""
    return int.from_bytes(derive_bytes(key, f"engine/{name}", 8), "big") >> (64 - bits)


class Sampling(_Section):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def make(self) -> decoding.Sampling:
        """The sampling that the decoder takes."""
        return decoding.Sampling(self.temperature, self.top_k, self.top_p)


class SelfInstruct(_Section):
    """Pairs for Bob (``pairs``), kept but not used by Bob (``unused``), and fresh ones that nobody saw.

    With ``answers_only`` the marked sets are her answers to the questions of plain sets, as an engine answers its users.
    A model with a chat template writes in it, and the mark is in its answers only; any other is ``shown`` demonstrations.
    """

    pairs: Count
    unused: Count
    fresh: Count
    shown: Count
    max_new_tokens: Count
    sampling: Sampling
    batch_size: Count
    answers_only: bool = False


class Mixtures(_Section):
    """|D| in pairs and the shares ρ."""

    size: Count
    rhos: Annotated[tuple[Share, ...], Field(min_length=1)]


class Adapter(_Section):
    """A low-rank adapter (LoRA, Hu et al. 2022) in place of full fine-tuning; ``quantised`` reads the base in 4 bits."""

    rank: Count
    alpha: Count
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("all-linear",)
    quantised: bool = False


class FineTuning(_Section):
    """Bob's recipe. With ``checkpoints`` the model is kept after every epoch, not only after the last."""

    epochs: Positive
    learning_rate: Positive
    batch_size: Count
    max_length: Count
    adapter: Adapter | None = None
    checkpoints: bool = False


class Suspect(_Section):
    """How Bob's model answers."""

    max_new_tokens: Count
    sampling: Sampling
    batch_size: Count


class Reading(_Section):
    """Open-model test: texts read at most, and the shares ρ at which contrastive reading is tried.

    The re-marking control writes ``control_texts`` texts anew under each of ``worlds`` other keys.
    """

    texts: Count
    batch_size: Count
    worlds: Count
    control_texts: Count
    contrast_rhos: Annotated[tuple[Share, ...], Field(min_length=1)]


class Querying(_Section):
    """Closed-model test: prompts sent; a window is in the unsupervised filter from ``frequent`` texts on.

    ``batch`` prompts are sent at a time where the test may stop early.
    """

    prompts: Count
    frequent: Count
    batch: Count


class Membership(_Section):
    """Candidates, fresh texts, tokens a piece, and the degrees d that are drawn."""

    candidates: Count
    fresh: Count
    piece: Count
    degrees: Annotated[tuple[Share, ...], Field(min_length=1)]


class Rival(_Section):
    """The green lists that Gumbel-max is compared with: one window and γ, and values of δ about as strong."""

    window: Count
    gamma: Annotated[float, Field(gt=0, lt=1)]
    deltas: Annotated[tuple[Positive, ...], Field(min_length=1)]


class Ablations(_Section):
    """Chapter 8. Bobs trained for ``epochs`` on ``size`` pairs, all of them Alice's, ``runs`` times each for error bars.

    They are tested on ``texts`` texts, and ``scored`` pairs are counted in every test, so that the p-values compare.
    ``learning_rates``, ``longest`` (epochs), ``adapters`` and ``models`` vary Bob; ``windows``, ``deltas`` and ``gammas``
    Alice's watermark; Gumbel-max has ``rival`` green lists beside it. An engine's mark is written at temperature ``warm``,
    above the usual one, too.
    ``continuations`` of each opening in each language have at most ``max_new_tokens``; the openings are the package's own,
    or those of so many ``articles`` of the data set ``wikipedia``, cut after ``opening_words``. A model made here knows one
    language: it is ``taught`` the others for so many epochs, on every other opening.
    """

    size: Count
    texts: Count
    runs: Count
    scored: Count
    epochs: Count
    longest: Count
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=2)]
    adapters: tuple[Adapter, ...]
    adapter_learning_rate: Positive
    models: tuple[Model, ...]
    windows: Annotated[tuple[Count, ...], Field(min_length=2)]
    deltas: Annotated[tuple[Positive, ...], Field(min_length=1)]
    gammas: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    rival: Rival
    warm: Positive = 1.0
    languages: Annotated[tuple[Literal["en", "de", "es", "fr", "it"], ...], Field(min_length=1)]
    wikipedia: str | None = None
    articles: Count = 70
    taught: Annotated[int, Field(ge=0)] = 0
    opening_words: Count
    continuations: Count
    max_new_tokens: Count


class Limits(_Section):
    """Chapter 9. A Bob at ``rho`` is trained on clean pairs for ``epochs`` more epochs, at a ``learning_rate`` of its own.

    ``shares`` of the words of his data are drawn anew by his base model, ``keys`` are mixed in it, and Alice writes at
    ``temperatures``. ``repeats`` tests are simulated to check the power that was planned.
    """

    rho: Share
    epochs: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    shares: Annotated[tuple[Share, ...], Field(min_length=1)]
    keys: Annotated[tuple[Count, ...], Field(min_length=1)]
    temperatures: Annotated[tuple[Positive, ...], Field(min_length=1)]
    repeats: Count


class Preset(_Section):
    """All sizes of one tier.

    ``memory_gb`` is what a process may need, of a device or a machine: as many work side by side as have it.
    ``questions`` are asked in the quality check. ``compile`` translates models before they are trained, where that pays.
    With ``precision`` bfloat16 models write, read and learn in it where the device has such arithmetic, in half the time;
    the weights that are trained stay in float32. Writing and reading are cut into ``shards``, which several machines may
    share out among them.
    """

    name: str
    description: str
    minutes: Positive
    device: Literal["cpu", "cuda"]
    memory_gb: Positive = 4
    devices: Count = 1
    corpus: Corpus
    tokenizer: Tokenizer
    alice: Model
    base: Model
    watermark: Scheme
    self_instruct: SelfInstruct
    mixtures: Mixtures
    fine_tuning: FineTuning
    suspect: Suspect
    reading: Reading
    querying: Querying
    membership: Membership
    audit_keys: Annotated[int, Field(ge=5)]
    questions: Count
    ablations: Ablations
    limits: Limits
    compile: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    shards: Count = 1

    @pydantic.model_validator(mode="after")
    def _enough_pairs(self) -> Preset:
        if self.mixtures.size > self.self_instruct.pairs:
            raise ValueError(f"mixtures.size={self.mixtures.size} exceeds self_instruct.pairs={self.self_instruct.pairs}")
        if self.membership.candidates > self.self_instruct.unused:
            raise ValueError("membership.candidates exceeds self_instruct.unused; at d = 0 every candidate is unused")
        if self.membership.candidates > self.mixtures.size:
            raise ValueError("membership.candidates exceeds mixtures.size: at d = 1 every candidate is one of Bob's pairs")
        if self.membership.fresh > self.self_instruct.fresh:
            raise ValueError("membership.fresh exceeds self_instruct.fresh")
        return self

    @pydantic.model_validator(mode="after")
    def _one_tokenizer(self) -> Preset:
        if (self.alice.hub is None) != (self.base.hub is None):
            raise ValueError("alice and base must both be made here or both come from a hub: they share one tokenizer")
        return self

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Preset:
        if self.memory_estimate_gb() > self.memory_gb:
            raise ValueError(
                f"the models need about {self.memory_estimate_gb():.1f} GB a device, over memory_gb={self.memory_gb:g}; "
                "take smaller models or more devices"
            )
        return self

    def changed(self, **changes: Any) -> Preset:
        """The preset with other values of some fields: dotted names with ``__`` for the dot.

        Raises :class:`PresetError` for an unknown field or a value out of range.
        """
        tree = self.model_dump(exclude={"name"}, exclude_none=True)
        return validate(self.name, _with_changes(self.name, tree, changes))

    def memory_estimate_gb(self) -> float:
        """GB a device: weights (for Bob gradients and Adam's moments too) of the larger model, plus a quarter.

        The quarter is for activations. Alice and Bob are never in memory together: she writes, is freed, he is trained.
        """
        sizes = [
            model.parameters * model.bytes_per_parameter / 1e9 for model in (self.alice, self.base) if model.parameters
        ]
        return 1.25 * max(sizes, default=0.0) / self.devices


def names() -> list[str]:
    """The presets there are."""
    return list(_file())


def load_preset(name: str, **changes: Any) -> Preset:
    """The preset of that name, validated. ``changes`` replace fields by dotted name with ``__`` for the dot.

    Raises :class:`PresetError` for an unknown name or field, or a value out of range.
    """
    raw = _file()
    if name not in raw:
        raise PresetError(f"unknown preset {name!r}; choose one of {', '.join(raw)}")
    return validate(name, _with_changes(name, _resolved(raw, name), changes))


def _with_changes(name: str, tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for field, value in changes.items():
        branch = tree
        *path, last = field.split("__")
        for part in path:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise PresetError(f"presets: {name}.{field.replace('__', '.')}: unknown field ({part!r} holds no fields)")
        branch[last] = value
    return tree


def validate(name: str, tree: dict[str, Any]) -> Preset:
    """A preset from its fields, or a :class:`PresetError` that names the first field at fault."""
    try:
        return Preset(name=name, **tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"  # a whole branch says nothing
        raise PresetError(f"presets: {where}: {what}{got}") from error


def _file() -> dict[str, Any]:
    return dict(yaml.safe_load(resources.files("radio_utils").joinpath("presets.yaml").read_text(encoding="utf-8")))


def _resolved(raw: dict[str, Any], name: str) -> dict[str, Any]:
    tree = dict(raw[name])
    parent = tree.pop("extends", None)
    return _merged(_resolved(raw, parent), tree) if parent else tree


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``new`` over ``old``, branch by branch; a model is replaced whole, as its source may differ."""
    result = dict(old)
    for field, value in new.items():
        whole = field in ("alice", "base") or not (isinstance(value, dict) and isinstance(old.get(field), dict))
        result[field] = value if whole else _merged(old[field], value)
    return result
