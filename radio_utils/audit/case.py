"""The case: what a request names, read, checked and opened, before anything is tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils import decoding, detection, keys, querying, reading, suspects
from radio_utils import evidence as ev
from radio_utils.artifacts import Artifact, Store
from radio_utils.audit import copies, preflight
from radio_utils.audit.earlier import weights_of
from radio_utils.audit.errors import AuditError, blamed
from radio_utils.audit.request import Request
from radio_utils.audit.texts import Texts, read_texts, tokenizer_digest
from radio_utils.commit import Commitment
from radio_utils.decoding.passes import is_out_of_memory, positions_of, rows_of
from radio_utils.files import read_json, sha256_of
from radio_utils.predictions import Predictions
from radio_utils.retokenising import TokenMap, read_across
from radio_utils.suspects.feeding import Feeding, TemplateError
from radio_utils.suspects.gguf_files import gguf_file, quantisation
from radio_utils.suspects.loading import identity
from radio_utils.suspects.memory import DeviceMemoryError
from radio_utils.suspects.vocabulary import size_of
from radio_utils.watermarks import Watermark

if TYPE_CHECKING:
    from radio_utils.audit.answers import Heard
    from radio_utils.audit.spelling import Spelling

Ids = NDArray[np.int64]
OPENING = 16  # tokens of a text that serve as its prompt where it has none


@dataclass(frozen=True)
class Asked:
    """What a closed suspect is asked, ``source`` in words; ``chats`` are prompts, and not the first tokens of texts."""

    prompts: list[Ids]
    source: str
    chats: bool = True


@dataclass
class Case:
    """What an audit knows before its tests: parameters, watermark, texts, how the mark shows in them, and the suspect.

    The suspect is ``opened`` if its weights are at hand, a ``server``, or ``answers``. ``commitment`` says what opened with
    the key: file, its hash and its date; None where the key was not committed to. ``heard`` is what a test was answered and
    hands on to the next, ``copied`` what :func:`copied_among` says of answers in a file, ``first_answers`` what the first
    answers promise of all, ``kept_answers`` the files of those of models at hand. ``tokenizers`` are those of the models
    that were named, ``quantised`` how those that are GGUF files store their weights. ``clock`` adds up the seconds that
    models and statistics take.
    """

    request: Request
    tokenizer: Any
    wm: Watermark
    texts: Texts
    fresh: Texts | None
    answers: Texts | None
    of_texts: detection.Detection
    of_fresh: detection.Detection | None
    plain: Texts | None = None  # without the mark, prompts and all
    spelling: Spelling | None = None
    commitment: dict[str, str] | None = None
    copied: tuple[int, int] = (0, 0)
    opened: OpenModel | None = None
    server: Any = None
    progress: bool = False
    heard: Heard | None = None
    first_answers: dict[str, Any] = field(default_factory=dict)
    kept_answers: dict[str, Path] = field(default_factory=dict)
    tokenizers: dict[str, Any] = field(default_factory=dict)
    quantised: dict[str, str] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "statistics": 0.0})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that passes to the clock's "model" or "statistics"."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.clock[what] += time.perf_counter() - started

    @cached_property
    def asked(self) -> Asked:
        """``max_queries`` prompts, each once, then each again; at temperature 0, where answers would be the same, once."""
        found = Asked(
            [text[:OPENING] for text in self.texts.ids], f"the first {OPENING} tokens of the watermarked texts", chats=False
        )
        for texts, name in ((self.fresh, "fresh"), (self.texts, "watermarked")):
            if texts is not None and texts.prompts is not None:
                found = Asked(texts.prompts, f"the prompts of the {name} texts")
        most = self.request.max_queries
        given = {prompt.tobytes(): prompt for prompt in found.prompts if ev.without_gaps(prompt).size}
        distinct = [self.texts.parted(prompt) for prompt in islice(given.values(), most)]
        number = most if self.request.temperature else len(distinct)
        return replace(found, prompts=[distinct[i % len(distinct)] for i in range(number)])

    @property
    def models(self) -> OpenModel:
        """The models at hand, of a suspect whose weights are."""
        assert self.opened is not None
        return self.opened

    def bar(self, words: str) -> str | None:
        """The name of a bar of progress; None where none is shown."""
        return words if self.progress else None

    @property
    def store(self) -> Store:
        """Where evidence is kept, so that an audit that was cut goes on there."""
        return Store(self.request.folder / "evidence")

    def kept(self, kind: str, config: dict[str, Any], build: Callable[[Path], None], of: str, version: str) -> Artifact:
        """Evidence that a model makes, now or before. ``of`` names the parameters to blame for what cannot be read."""
        with self.timed("model"), readable(of):
            return self.store.get(kind, config, build, version=version)

    @cached_property
    def windows(self) -> Ids:
        """The filter φ of answers: the windows of the texts that the suspect may have used."""
        start = self.from_start(self.texts)
        return ev.frequent_windows(self.texts.ids, self.wm.window, self.wm.vocab_size, from_start=start)

    def from_start(self, texts: Texts) -> bool:
        """Whether texts are answers whose first tokens are scored too, after windows that −1 fills up."""
        return self.wm.marks_start and texts.prompts is not None

    def allowance(self, texts: Texts) -> float:
        """The share of these texts' tokens for which a p-value of reading must allow, as they may not be those drawn."""
        return self.spelling.allowance(self.wm) if self.spelling is not None and texts.from_strings else 0.0


@dataclass(frozen=True)
class Weights:
    """A model at hand: the parameter that names it, the hashes of all files that decide it, and how it is fed.

    ``unused`` are weights of its folder that the model has no place for. ``quantisation`` says how a GGUF file stores them,
    empty for any other.
    """

    name: str
    model: Any
    digest: dict[str, str]
    feeding: Feeding
    unused: tuple[str, ...] = ()
    quantisation: str = ""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The tokens that end what it writes."""
        found = querying.as_suspect(self.model)
        assert isinstance(found, suspects.LocalSuspect)
        return found.stop_tokens

    def written(self, case: Case, fed: Sequence[Ids], length: int, bar: str) -> list[Ids]:
        """What it goes on with after each of these, up to so many tokens."""
        return decoding.generate(
            self.model, fed, max_new_tokens=length, sampling=decoding.Sampling(temperature=case.request.alice_temperature),
            generator=torch.Generator(self.model.device).manual_seed(case.request.seed), stop_tokens=self.stop_tokens,
            batch_size=4 * case.request.batch_size, progress=case.bar(bar),
        )  # fmt: skip


@dataclass
class OpenModel:
    """A suspect whose weights are at hand, what it was made from, and Alice's own unmarked model."""

    suspect: Weights
    tokenizer: Any
    vocabulary: preflight.Vocabulary
    reference: Weights | None = None
    alice: Weights | None = None
    mapping: TokenMap | None = field(default=None, repr=False)  # made when it is needed

    def read(self, of: Weights, case: Case, texts: Any, prompts: Any) -> Predictions:
        """What the suspect, or its reference, expects along texts in Alice's tokens."""
        options: dict[str, Any] = {"prompts": prompts, "batch_size": case.request.batch_size, "feeding": of.feeding}
        if self.vocabulary.same:
            return reading.read_predictions(of.model, texts, case.wm.vocab_size, **options)
        return read_across(of.model, self.tokenizer, case.tokenizer, texts, mapping=self._mapping(case), **options)

    @property
    def all(self) -> list[Weights]:
        """The models that were given."""
        return [one for one in (self.suspect, self.reference, self.alice) if one is not None]

    def tokenizers(self, case: Case) -> list[str] | None:
        """The hashes of Alice's tokenizer and the suspect's where they differ: part of what names kept evidence."""
        return None if self.vocabulary.same else [tokenizer_digest(case.tokenizer), tokenizer_digest(self.tokenizer)]

    def _mapping(self, case: Case) -> TokenMap:
        if self.mapping is None:
            self.mapping = TokenMap.of(self.tokenizer, case.tokenizer)
        return self.mapping


def prepared(request: Request) -> Case:
    """Read and check everything that a folder holds. Raises :class:`AuditError`; no model is loaded, no server asked."""
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(f"output_dir={request.output_dir!r} cannot be made a folder ({error.strerror})") from error
    try:
        return _prepared(request)
    except AuditError:
        with suppress(OSError):  # a folder that holds something stays
            request.folder.rmdir()
        raise


def _prepared(request: Request) -> Case:
    secret = request.secret()
    if not request.rehearsal and secret is not None:
        try:
            keys.check_secret(secret, request.named)
        except ValueError as error:
            raise AuditError(str(error)) from error
    quantised, tokenizers = _quantised(request), _tokenizers(request)
    tokenizer = tokenizers[next(name for name in ("tokenizer", "alice", "suspect") if name in tokenizers)]
    size = size_of(tokenizer)
    wm = request.watermark(size)
    if wm.vocab_size < size:
        raise AuditError(f"vocab_size={wm.vocab_size} is smaller than the tokenizer's {size} tokens; leave it 0")
    commitment = _opened_commitment(request, wm)
    texts = read_texts("watermarked_texts", request.watermarked_texts, tokenizer, wm.vocab_size, wm.window)
    if not request.full_context:
        texts = texts.with_gaps_before(texts)
    fresh = None
    if request.fresh_texts:
        fresh = read_texts("fresh_texts", request.fresh_texts, tokenizer, wm.vocab_size, wm.window)
        both = set(_long(texts)) & set(_long(fresh))
        if both or fresh.sha256 == texts.sha256:
            raise AuditError(
                f"fresh_texts holds {len(both):,} of the watermarked_texts; give texts that the suspect cannot have used"
            )
    plain = _plain(request, fresh, tokenizer, wm)
    answers, copied = None, (0, 0)
    if request.kind == "answers":
        answers = read_texts("suspect", request.suspect, tokenizer, wm.vocab_size, wm.window, last_turn=True)
        answers = answers.with_gaps_before(texts)
        copied = _not_alices(answers, texts, fresh)
    _check_folder(request, wm)
    of_texts = preflight.detected(texts, wm)
    preflight.check_marked(texts, of_texts, wm, request)
    if request.full_context and texts.prompts is None:
        raise AuditError("full_context is said of prompts, and watermarked_texts has none; give them, or leave it out")
    of_fresh = None if fresh is None else preflight.detected(fresh, wm)
    return Case(
        request, tokenizer, wm, texts, fresh, answers, of_texts, of_fresh, plain, commitment=commitment,
        copied=copied, tokenizers=tokenizers, quantised=quantised,
    )  # fmt: skip


def _plain(request: Request, fresh: Texts | None, tokenizer: Any, wm: Watermark) -> Texts | None:
    """The texts at hand that carry no mark. Raises :class:`AuditError` where those that should not do."""
    if not request.plain_texts:
        return fresh if fresh is not None and preflight.log10_p_of(fresh, wm) >= detection.MARKED else None
    plain = read_texts("plain_texts", request.plain_texts, tokenizer, wm.vocab_size, wm.window)
    preflight.check_plain(plain, wm)
    return plain


def _opened_commitment(request: Request, wm: Watermark) -> dict[str, str] | None:
    """What the commitment says beside the key, or None without one. Raises :class:`AuditError` where it does not open."""
    if not request.commitment:
        return None
    with blamed("commitment", ValueError):
        found = Commitment.read(request.commitment)
    if other := found.mismatch(request.secret(), wm):
        raise AuditError(
            f"commitment={request.commitment!r} is to {other}; give the commitment to this very watermark, or none"
        )
    path = Path(request.commitment).expanduser()
    return {"file": request.commitment, "sha256": sha256_of(path), "date": found.date, "package": found.package}


def _long(texts: Texts) -> list[bytes]:
    """The texts that are compared word for word; a short one may be written twice by chance."""
    return [one.tobytes() for one in texts.ids if one.size > OPENING]


def copied_among(answers: Sequence[Ids], *given: Texts | None) -> tuple[int, int]:
    """How many of the longer answers are Alice's own texts, most of their tokens at least; and how many longer ones are."""
    long = [one for one in answers if one.size >= copies.RUN]
    hers = [text for texts in given if texts is not None for text in texts.ids]
    return int(copies.standing_in(long, hers).sum()), len(long)


def _not_alices(answers: Texts, *given: Texts | None) -> tuple[int, int]:
    """How many of the longer answers are Alice's own texts, and of how many: a suspect that learned by heart repeats some.

    Raises :class:`AuditError` where most are: they would convict whoever is said to give them.
    """
    known = [texts for texts in given if texts is not None]
    for texts in known:
        if answers.sha256 == texts.sha256:
            raise AuditError(f"suspect is the file of the {texts.name}; give what the suspect wrote")
    same, long = copied_among(answers.ids, *known)
    if 2 * same > long:
        raise AuditError(
            f"suspect: {same:,} of its {long:,} longer answers are {' or '.join(texts.name for texts in known)}, word for "
            "word for the most part; give what the suspect wrote"
        )
    return same, long


def check_same_inputs(request: Request, inputs: dict[str, Any]) -> None:
    """Raise :class:`AuditError` where the folder's verdict is about other contents of the files that are named alike."""
    before = (verdict_before(request) or {}).get("inputs", {})
    other = sorted(name for name in inputs.keys() & before.keys() if inputs[name] != before[name])
    if other:
        raise _another_audit(request, f"in which {', '.join(other)} had another content")


def verdict_before(request: Request) -> dict[str, Any] | None:
    """The verdict that the folder holds, or None. Raises :class:`AuditError` for one that cannot be read."""
    path = request.folder / "verdict.json"
    if not path.exists():
        return None
    try:
        before: dict[str, Any] = read_json(path)
        dict(before["settings"]), before["fingerprint"]  # what no verdict of ours lacks
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError(f"{path} cannot be read ({error}); give another output_dir") from error
    return before


def _another_audit(request: Request, words: str) -> AuditError:
    return AuditError(
        f"output_dir={request.output_dir!r} holds the verdict of an audit {words}; give another folder, and share alpha "
        "among all audits of one suspect"
    )


def _check_folder(request: Request, wm: Watermark) -> None:
    """Raise :class:`AuditError` where the folder holds the verdict of another audit, which must not be lost or mixed up."""
    before = verdict_before(request)
    if before is None:
        return
    settings, now = before["settings"], request.public()
    names = (settings.keys() | now.keys()) - _HOW
    other = sorted(name for name in names if settings.get(name) != now.get(name))
    if other or before["fingerprint"] != wm.fingerprint:
        raise _another_audit(request, f"with another {', '.join(other) or 'key'}")


# parameters that change how an audit is carried out and not what it asks
_HOW = {
    "api_key_env", "batch_size", "concurrency", "device", "key_env", "key_file", "max_requests", "output_dir", "price_in",
    "price_out",
}  # fmt: skip


def _named(request: Request) -> dict[str, str]:
    """The models that are given, and Alice's tokenizer, by the parameter that names them."""
    names = ("tokenizer", "alice", "reference", *(["suspect"] if request.kind == "model" else []))
    return {name: value for name in names if (value := getattr(request, name))}


def _quantised(request: Request) -> dict[str, str]:
    """How the weights are stored of those that are GGUF files. Raises :class:`AuditError` for a file that is not whole."""
    found = {}
    for name, value in _named(request).items():
        with blamed(name, suspects.ModelFolderError):
            file = gguf_file(value)
            if file is not None:
                found[name] = quantisation(file)
    return found


def _tokenizers(request: Request) -> dict[str, Any]:
    """The tokenizer of each. Raises :class:`AuditError` for one that must be another's and is not."""
    found = {}
    for name, value in _named(request).items():
        with blamed(name, suspects.ModelFolderError):
            found[name] = suspects.load_tokenizer(value)
    if "reference" in found and found["reference"].get_vocab() != found["suspect"].get_vocab():
        raise AuditError("reference has another tokenizer than suspect; give the model that the suspect was made from")
    if {"alice", "tokenizer"} <= found.keys() and found["alice"].get_vocab() != found["tokenizer"].get_vocab():
        raise AuditError("alice has another tokenizer than the texts; give Alice's own unmarked model, or none")
    return found


def _load(name: str, folder: str, request: Request) -> Any:
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: a torch without this device
        raise AuditError(f"device={device!r} cannot be used here ({error}); leave it empty, or give 'cpu'") from error
    with blamed(name, suspects.ModelFolderError):
        return suspects.load_model(folder, device=device, dtype=getattr(torch, request.dtype))


def open_model(case: Case) -> OpenModel:
    """Load the suspect and its reference. Raises :class:`AuditError` for folders that cannot be used, or not together."""
    request = case.request
    with case.timed("model"):
        suspect = _opened("suspect", case)
        its_tokenizer = suspect.feeding.tokenizer
        vocabulary = preflight.compare_vocabularies(case.tokenizer, its_tokenizer, rows_of(suspect.model))
        with blamed("suspect", TemplateError):  # some templates raise at some prompts only
            _check_length(case, suspect)
        opened = OpenModel(suspect, its_tokenizer, vocabulary)
        if request.reference:
            opened.reference = _opened("reference", case)
            its_weights = weights_of(suspect.digest)
            if request.reference == request.suspect or (its_weights and its_weights == weights_of(opened.reference.digest)):
                raise AuditError(
                    "reference is the suspect itself, weight for weight; give the model that it was made from, or none"
                )
        if request.alice:
            opened.alice = _opened("alice", case)
    return opened


def _opened(name: str, case: Case) -> Weights:
    request, tokenizer = case.request, case.tokenizers[name]
    folder = getattr(request, name)
    digest, model = identity(folder), _load(name, folder, request)
    if digest.get("hub commit") == "unknown":  # it was not on this machine before
        digest = identity(folder)
    with blamed(name, TemplateError):
        feeding = Feeding.of(tokenizer, request.chat_template)
    return Weights(name, model, digest, feeding, getattr(model, "unused_weights", ()), case.quantised.get(name, ""))


def room(writer: Weights, prompts: Sequence[Ids], wanted: int) -> int:
    """How many tokens, of those wanted, it can write after each of the prompts. Raises :class:`AuditError` for none."""
    longest = max(writer.feeding.prompt(prompt).size for prompt in prompts)
    most = positions_of(writer.model) or longest + wanted
    if most <= longest:
        raise AuditError(f"{writer.name} can read {most:,} tokens at once, too few to go on from {longest:,}")
    return int(min(wanted, most - longest))


def _check_length(case: Case, suspect: Weights) -> None:
    """Raise :class:`AuditError` for texts longer than the model's positions, where a model fails or talks nonsense."""
    request, longest, fed = case.request, {"max_tokens": 0}, suspect.feeding.prompt
    for texts in (case.texts, case.fresh, case.plain):
        if texts is not None and "open" in request.modes:
            prompts = texts.prompts or [text[:0] for text in texts.ids]
            longest[texts.name] = max(fed(a).size + b.size for a, b in zip(prompts, texts.ids, strict=True))
    if "closed" in request.modes:
        longest["max_tokens"] = max(fed(prompt).size for prompt in case.asked.prompts) + request.max_tokens
    most = positions_of(suspect.model) or max(longest.values())
    for name, size in longest.items():
        if size > most:
            raise AuditError(
                f"{name}: {size:,} tokens with a prompt are more than the {most:,} that suspect can read at once; "
                f"{'lower it' if name == 'max_tokens' else 'split the longer texts'}"
            )


def open_endpoint(case: Case) -> Any:
    """The suspect behind a server; nothing is asked yet."""
    from radio_utils.suspects.endpoint import EndpointSuspect

    request = case.request
    with readable("suspect"):
        return EndpointSuspect(
            url=request.suspect,
            model=request.suspect_model,
            tokenizer=case.tokenizer,
            log=request.folder / "answers.jsonl",
            api_key_env=request.api_key_env,
            kind=request.api,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            concurrency=request.concurrency,
            budget=request.max_requests or 4 * request.max_queries,
            progress=case.bar("asking"),
        )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """What a model cannot read, as an :class:`AuditError` that names the parameter."""
    try:
        with blamed(f"{name} cannot be read or asked", ValueError, IndexError, ImportError, DeviceMemoryError):
            yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise AuditError(
            f"{name} cannot be read or asked: the device ran out of memory; lower batch_size, dtype or max_tokens, or take "
            "a device with more"
        ) from error
