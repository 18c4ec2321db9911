"""An audit from its request to its verdict.

The order is the point: parameters, files and watermark are checked before a model is loaded or a server is asked; which
tests are run, and at what level each, is written down before the first of them is run; and no choice looks at a result. If
m tests could apply, each is held to α/m, so that the chance of a false conviction is at most α however they depend on each
other. Whether fresh texts carry the mark decides between two tests, and the key has a say in that: both are counted, or a
key that is lucky with the texts would have a test more without paying for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils import contrast, decoding, detection, querying, reading, suspects
from radio_utils import evidence as ev
from radio_utils.artifacts import Store, write_json
from radio_utils.audit import preflight
from radio_utils.audit.errors import AuditError
from radio_utils.audit.request import Request
from radio_utils.audit.texts import Texts, read_texts, sha256_of, sha256_of_folder
from radio_utils.audit.verdict import TRACE, Outcome, TestResult, Verdict
from radio_utils.retokenising import Retokenised, read_across
from radio_utils.suspects import LocalSuspect, Suspect
from radio_utils.watermarks import Watermark
from radio_utils.world.world import code_version

logger = logging.getLogger(__name__)
Ids = NDArray[np.int64]

_OPENING = 16  # tokens of a text that serve as its prompt where it has none
_WATCH_LEVEL = 0.05  # share of decoys that may look convincing in a watched test
_BATCH = 16  # prompts after which the watched test looks again
_SPEED_TEXTS = 32  # texts of the batch that is timed for the estimate


@dataclass(frozen=True)
class Planned:
    """A test and, before anything is run, whether it applies and why.

    ``counts`` says whether α is shared with it: it applies, or would with another key.
    """

    name: str
    applies: bool
    why: str
    pairs: int = 0
    counts: bool = False


@dataclass
class _Audit:
    """What one audit knows so far."""

    request: Request
    tokenizer: Any
    wm: Watermark
    texts: Texts
    fresh: Texts | None
    answers: Texts | None
    of_texts: detection.Detection
    of_fresh: detection.Detection | None
    clock: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "statistics": 0.0})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.clock[what] += time.perf_counter() - started

    @property
    def fresh_marked(self) -> bool:
        return self.of_fresh is not None and self.of_fresh.log10_p <= preflight.MARKED


@dataclass
class _Model:
    """A suspect whose weights are at hand."""

    model: Any
    tokenizer: Any
    vocabulary: preflight.Vocabulary
    digest: dict[str, str]
    reference: Any = None
    reference_digest: dict[str, str] | None = None


def run(request: Request, *, progress: bool = False) -> Verdict:
    """Carry out an audit and write ``plan.json``, ``verdict.json`` and ``report.html`` into its folder.

    Raises :class:`AuditError`, or :class:`radio_utils.endpoint.EndpointError` where a server fails, for whatever stops it;
    what was gathered until then is kept and used again.
    """
    from radio_utils.audit import report  # draws figures, which nothing before the verdict needs

    audit = _prepared(request)
    opened: Any = None
    vocabulary = None
    if request.kind == "model":
        opened = _open_model(audit)
        vocabulary = opened.vocabulary
    elif request.kind == "endpoint":
        opened = _endpoint(audit, progress)
        opened.check()
    planned = _plan(audit, opened)
    tests = [one for one in planned if one.applies]
    if not tests:
        reasons = "; ".join(f"{one.name}: {one.why}" for one in planned)
        raise AuditError(f"no test applies ({reasons})")
    shared = sum(one.applies or one.counts for one in planned)
    level = math.log10(request.alpha / shared)
    needs = {one.name: preflight.power(audit.wm, one.pairs, audit.of_texts, level) for one in tests}
    preflight.check_enough({name: need for name, need in needs.items() if name != "contrastive reading"}, request.alpha)
    estimate = _estimate(audit, opened, tests)
    write_json(
        request.folder / "plan.json",
        {
            "alpha": request.alpha,
            "level_of_each_test": request.alpha / shared,
            "tests": [{"test": one.name, "applies": one.applies, "why": one.why} for one in planned],
            "estimate": estimate,
            "settings": request.public(),
            "fingerprint": audit.wm.fingerprint,
        },
    )
    for line in _spoken(planned, estimate):
        logger.info(line)
    results, control = _carried_out(audit, opened, planned, needs, shared, progress)
    verdict = Verdict(
        outcome=_outcome(results, control, math.log10(request.alpha)),
        alpha=request.alpha,
        tests=tuple(results),
        control=control,
        counted=shared,
        texts_log10_p=audit.of_texts.log10_p,
        vocabulary=None if vocabulary is None else vocabulary.words,
        estimate=estimate,
        inputs=_inputs(audit, opened),
        settings=request.public(),
        fingerprint=audit.wm.fingerprint,
        seconds={name: round(value, 2) for name, value in audit.clock.items()},
        folder=str(request.folder),
    )
    report.write(verdict, request.folder)
    return verdict


def check(request: Request) -> None:
    """Look for what is wrong before a model is loaded or a server is asked. Raises :class:`AuditError`."""
    _prepared(request)


def _prepared(request: Request) -> _Audit:
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(f"output_dir={request.output_dir!r} cannot be made a folder ({error.strerror})") from error
    request.secret()
    tokenizer = _tokenizer("tokenizer", request.tokenizer or request.suspect)
    size = max(tokenizer.get_vocab().values()) + 1
    wm = request.watermark(size)
    if wm.vocab_size < size:
        raise AuditError(f"vocab_size={wm.vocab_size} is smaller than the tokenizer's {size} tokens; leave it 0")
    texts = read_texts("watermarked_texts", request.watermarked_texts, tokenizer, wm.vocab_size, wm.window)
    fresh = None
    if request.fresh_texts:
        fresh = read_texts("fresh_texts", request.fresh_texts, tokenizer, wm.vocab_size, wm.window)
        # a short text may be written twice by chance
        both = {one.tobytes() for one in texts.ids if one.size > _OPENING} & {one.tobytes() for one in fresh.ids}
        if both or fresh.sha256 == texts.sha256:
            raise AuditError(
                f"fresh_texts holds {len(both):,} of the watermarked_texts; give texts that the suspect cannot have used"
            )
    answers = None
    if request.kind == "answers":
        answers = read_texts("suspect", request.suspect, tokenizer, wm.vocab_size, wm.window)
    of_texts = preflight.detected("watermarked_texts", texts, wm)
    preflight.check_marked(texts, of_texts, wm, request)
    of_fresh = None if fresh is None else preflight.detected("fresh_texts", fresh, wm)
    return _Audit(request, tokenizer, wm, texts, fresh, answers, of_texts, of_fresh)


def _tokenizer(name: str, folder: str) -> Any:
    try:
        return suspects.load_tokenizer(folder)
    except suspects.ModelFolderError as error:
        raise AuditError(f"{name}: {error}") from error


def _load(name: str, folder: str, device: str) -> Any:
    try:
        return suspects.load_model(folder, device=device)
    except (suspects.ModelFolderError, RuntimeError, AssertionError) as error:  # the last: a torch without this device
        raise AuditError(f"{name}: {error}") from error


def _digest(name: str, model: Any) -> dict[str, str]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return sha256_of_folder(folder)
    return {"hub commit": str(getattr(model.config, "_commit_hash", None) or "unknown")}


def _open_model(audit: _Audit) -> _Model:
    request = audit.request
    its_tokenizer = _tokenizer("suspect", request.suspect)
    with audit.timed("model"):
        model = _load("suspect", request.suspect, request.device)
        logits = int(model.get_output_embeddings().weight.shape[0])
        vocabulary = preflight.compare_vocabularies(audit.tokenizer, its_tokenizer, logits)
        _check_length(audit, model)
        opened = _Model(model, its_tokenizer, vocabulary, _digest(request.suspect, model))
        if request.reference:
            opened.reference = _load("reference", request.reference, request.device)
            opened.reference_digest = _digest(request.reference, opened.reference)
            theirs = _tokenizer("reference", request.reference)
            if theirs.get_vocab() != its_tokenizer.get_vocab():
                raise AuditError(
                    "reference has another tokenizer than suspect; give the model that the suspect was made from"
                )
    return opened


def _check_length(audit: _Audit, model: Any) -> None:
    """Raise :class:`AuditError` for texts longer than the model's positions, where a model fails or talks nonsense."""
    request, longest = audit.request, {"max_tokens": 0}
    for texts in (audit.texts, audit.fresh):
        if texts is not None and "open" in request.modes:
            prompts = texts.prompts or [text[:0] for text in texts.ids]
            longest[texts.name] = max(a.size + b.size for a, b in zip(prompts, texts.ids, strict=True))
    if "closed" in request.modes:
        longest["max_tokens"] = max(prompt.size for prompt in _prompts(audit)) + request.max_tokens
    most = getattr(model.config, "max_position_embeddings", None) or max(longest.values())
    for name, size in longest.items():
        if size > most:
            raise AuditError(
                f"{name}: {size:,} tokens with a prompt are more than the {most:,} that suspect can read at once; "
                f"{'lower it' if name == 'max_tokens' else 'split the longer texts'}"
            )


def _endpoint(audit: _Audit, progress: bool) -> Any:
    from radio_utils.endpoint import EndpointSuspect

    request = audit.request
    with _readable("suspect"):
        return EndpointSuspect(
            url=request.suspect,
            model=request.suspect_model,
            tokenizer=audit.tokenizer,
            log=request.folder / "answers.jsonl",
            api_key_env=request.api_key_env,
            kind=request.api,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            concurrency=request.concurrency,
            budget=request.max_requests or 4 * request.max_queries,
            progress="asking" if progress else None,
        )


# ----------------------------------------------------------------------------------------------------------------------
# The plan


def _plan(audit: _Audit, opened: Any) -> list[Planned]:
    """All tests, and for each whether it applies and why. Only inputs are looked at."""
    return [_reading_planned(audit), _fresh_planned(audit), _contrastive_planned(audit, opened), *_answers_planned(audit)]


def _reading_planned(audit: _Audit) -> Planned:
    name = "reading, supervised"
    if audit.request.kind != "model":
        return Planned(name, False, "needs the suspect's weights")
    if "open" not in audit.request.modes:
        return Planned(name, False, "only closed tests were asked for")
    return Planned(name, True, "weights and texts that it may have used are at hand", audit.of_texts.scored)


def _fresh_planned(audit: _Audit) -> Planned:
    name = "reading, unsupervised"
    if audit.request.kind != "model" or "open" not in audit.request.modes:
        return Planned(name, False, _reading_planned(audit).why)
    if audit.fresh is None or audit.of_fresh is None:
        return Planned(name, False, "no fresh texts were given")
    if not audit.fresh_marked:
        why = "the fresh texts do not carry the watermark, so their windows say nothing of its lists"
        return Planned(name, False, why, counts=True)
    return Planned(name, True, "weights and fresh marked texts are at hand", audit.of_fresh.scored)


def _contrastive_planned(audit: _Audit, opened: Any) -> Planned:
    name = "contrastive reading"
    if audit.request.kind != "model" or "open" not in audit.request.modes:
        return Planned(name, False, _reading_planned(audit).why)
    if not audit.request.reference:
        return Planned(name, False, "no reference model was given")
    if audit.fresh is None or audit.of_fresh is None:
        return Planned(name, False, "no fresh texts without the watermark were given")
    if not opened.vocabulary.same:
        return Planned(name, False, "the suspect's tokenizer is not Alice's")
    if audit.wm.scheme not in ("green list", "released green list", "transformers green list"):
        return Planned(name, False, f"it is made for green lists, not for the scheme {audit.wm.scheme!r}")
    if audit.of_fresh.log10_p < reading.MARKED:
        return Planned(name, False, "the fresh texts carry the watermark; this test needs text without it", counts=True)
    return Planned(
        name, True, "weights, the model it was made from, and fresh texts without the mark", audit.of_fresh.scored
    )


def _answers_planned(audit: _Audit) -> list[Planned]:
    fixed, watched = "answers, all", "answers, watched"
    request = audit.request
    if "closed" not in request.modes:
        why = "the suspect's weights are read, which tells more than its answers"
        return [Planned(watched, False, why), Planned(fixed, False, why)]
    if request.kind == "answers":
        return [
            Planned(watched, False, "the answers are given, so watching them come saves nothing"),
            Planned(fixed, True, "the suspect's answers are given", _answer_pairs(audit)),
        ]
    source = f"its answers to {_prompt_source(audit)}"
    if request.kind == "model":
        return [
            Planned(watched, False, "answers of a model at hand cost nothing, so there is no need to stop early"),
            Planned(fixed, True, source, _answer_pairs(audit)),
        ]
    return [
        Planned(watched, True, f"{source}, stopped as soon as they suffice", _answer_pairs(audit)),
        Planned(fixed, True, f"{source}, if all are needed", _answer_pairs(audit)),
    ]


def _answer_pairs(audit: _Audit) -> int:
    """About how many distinct pairs the answers can give: as dense in them as in Alice's texts."""
    request = audit.request
    tokens = len(_prompts(audit)) * request.max_tokens if audit.answers is None else audit.answers.tokens
    return int(min(tokens, audit.of_texts.scored * max(1.0, tokens / max(1, audit.texts.tokens)) ** 0.5))


def _prompt_source(audit: _Audit) -> str:
    if audit.texts.prompts is not None:
        return "the prompts of the watermarked texts"
    if audit.fresh is not None and audit.fresh.prompts is not None:
        return "the prompts of the fresh texts"
    return f"the first {_OPENING} tokens of the watermarked texts"


def _prompts(audit: _Audit) -> list[Ids]:
    """What a closed suspect is asked, ``max_queries`` in number: each prompt once, then each again.

    At temperature 0 it would answer as before, so there each is asked once.
    """
    source = audit.texts.prompts
    if source is None and audit.fresh is not None:
        source = audit.fresh.prompts
    if source is None:
        source = [text[:_OPENING] for text in audit.texts.ids]
    distinct = list({prompt.tobytes(): prompt for prompt in source if prompt.size}.values())
    if audit.request.temperature == 0:
        return distinct[: audit.request.max_queries]
    return [distinct[i % len(distinct)] for i in range(audit.request.max_queries)]


# ----------------------------------------------------------------------------------------------------------------------
# The estimate


def _estimate(audit: _Audit, opened: Any, tests: Sequence[Planned]) -> dict[str, Any]:
    """Tokens, and where it can be told seconds or money, before anything is spent."""
    request, names = audit.request, {one.name for one in tests}
    if request.kind == "answers":
        return {}
    if request.kind == "endpoint":
        prompts = _prompts(audit)
        tokens_in = sum(prompt.size for prompt in prompts)
        tokens_out = len(prompts) * request.max_tokens
        cost = (tokens_in * request.price_in + tokens_out * request.price_out) / 1e6
        priced = request.price_in > 0 or request.price_out > 0
        return {
            "answers_at_most": len(prompts),
            "requests_at_most": request.max_requests or 4 * request.max_queries,
            "tokens_in_at_most": tokens_in,
            "tokens_out_at_most": tokens_out,
            "cost_at_most": round(cost, 4) if priced else None,
        }
    tokens = 0
    readings = [
        ("reading, supervised", audit.texts),
        ("reading, unsupervised", audit.fresh),
        ("contrastive reading", audit.fresh),
    ]
    for name, texts in readings:
        if name in names and texts is not None:
            models = 1 if name == "reading, unsupervised" or opened.reference is None else 2
            tokens += models * (texts.tokens + sum(p.size for p in texts.prompts or []))
    seconds = None
    if tokens:
        with audit.timed("model"), _readable("suspect"):
            seconds = round(tokens * _seconds_per_token(opened.model, audit), 1)
    asked = len(_prompts(audit)) * request.max_tokens if "answers, all" in names else 0
    return {"tokens_read": tokens, "seconds_of_reading": seconds, "tokens_written_at_most": asked}


def _seconds_per_token(model: Any, audit: _Audit) -> float:
    """Measured on one batch, after one that warms up."""
    some = audit.texts.ids[: min(_SPEED_TEXTS, audit.request.batch_size)]
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    fed = [np.minimum(text, vocabulary - 1) for text in some]
    for _ in range(2):
        started = time.perf_counter()
        reading.read_evidence(model, fed, audit.wm.window, vocabulary, batch_size=len(fed))
        taken = time.perf_counter() - started
    return taken / sum(text.size for text in fed)


def _spoken(planned: Sequence[Planned], estimate: dict[str, Any]) -> Iterator[str]:
    for one in planned:
        yield f"{one.name}: {'yes' if one.applies else 'no'}, {one.why}"
    for name, value in estimate.items():
        if value is not None:
            yield f"{name.replace('_', ' ')}: {value:,}"


# ----------------------------------------------------------------------------------------------------------------------
# The tests


def _carried_out(
    audit: _Audit, opened: Any, planned: Sequence[Planned], needs: dict[str, preflight.Need], count: int, progress: bool
) -> tuple[list[TestResult], TestResult | None]:
    makers: dict[str, Callable[[], TestResult]] = {
        "reading, supervised": lambda: _read(audit, opened, "reading, supervised", audit.texts, progress),
        "reading, unsupervised": lambda: _read(audit, opened, "reading, unsupervised", audit.fresh, progress),
        "contrastive reading": lambda: _read_contrast(audit, opened, progress),
    }
    applied = {one.name for one in planned if one.applies}
    found = {name: make() for name, make in makers.items() if name in applied}
    if "answers, all" in applied:
        found |= _ask(audit, opened, math.log10(audit.request.alpha / count), "answers, watched" in applied, progress)
    results = []
    for one in planned:
        result = found.get(one.name) or TestResult(name=one.name, applied=False, why=one.why)
        if result.applied:
            smallest = None if one.name == "contrastive reading" else needs[one.name].smallest
            level = math.log10(audit.request.alpha / count)
            result = result.corrected(count).planned(audit.wm, one.why, level, smallest)
        results.append(result)
    return results, _control(audit, opened, applied, progress)


def _control(audit: _Audit, opened: Any, applied: set[str], progress: bool) -> TestResult | None:
    """The first test, on the model that the suspect was made from."""
    if not isinstance(opened, _Model) or opened.reference is None:
        return None
    if "reading, supervised" in applied:
        return _read(audit, opened, "control", audit.texts, progress, of_reference=True)
    prompts = _prompts(audit)
    with audit.timed("model"), _readable("reference"):
        answers = _local(audit, replace(opened, model=opened.reference), progress).answer(prompts)
    return _scored_answers(audit, prompts, answers, _filter(audit), name="control")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What a model cannot read, as an :class:`AuditError` that names the parameter."""
    try:
        yield
    except AuditError:
        raise
    except (ValueError, IndexError, ImportError) as error:
        raise AuditError(f"{name} cannot be read or asked: {error}") from error


def _store(audit: _Audit) -> Store:
    return Store(audit.request.folder / "evidence")


def _read(
    audit: _Audit, opened: _Model, name: str, texts: Texts | None, progress: bool, *, of_reference: bool = False
) -> TestResult:
    """Reading mode along the texts. Its evidence depends on no key and is kept."""
    assert texts is not None
    wm, request = audit.wm, audit.request
    model = opened.reference if of_reference else opened.model
    bar = name if progress else None

    def build(folder: Path) -> None:
        if opened.vocabulary.same:
            found = reading.read_evidence(
                model,
                texts.ids,
                wm.window,
                wm.vocab_size,
                prompts=texts.prompts,
                batch_size=request.batch_size,
                progress=bar,
            )
            places = found.seen
        else:
            across = read_across(
                model, opened.tokenizer, audit.tokenizer, texts.ids, wm.window,
                prompts=texts.prompts, batch_size=request.batch_size, progress=bar,
            )  # fmt: skip
            # packed anew: the watermark's vocabulary may be padded beyond Alice's tokenizer
            pairs = across.evidence
            found = ev.from_pairs(pairs.windows, pairs.tokens, wm.vocab_size, seen=pairs.seen)
            places = across.places
        found.save(folder / "evidence.npz")
        write_json(folder / "places.json", {"places": places})

    config = {
        "texts": texts.digest,
        "window": wm.window,
        "vocab_size": wm.vocab_size,
        "model": _names(opened, of_reference),
        "tokenizers": None if opened.vocabulary.same else [_content(audit.tokenizer), _content(opened.tokenizer)],
    }
    with audit.timed("model"), _readable("reference" if of_reference else "suspect"):
        made = _store(audit).get(
            "reading", config, build, version=code_version("reading.py", "retokenising.py", "evidence.py")
        )
    found = ev.Evidence.load(made / "evidence.npz")
    with audit.timed("statistics"):
        note = "" if opened.vocabulary.same else "Places that the suspect's tokenizer leaves undecided are not scored."
        return _judged(audit, name, found, note)


def _names(opened: _Model, of_reference: bool) -> dict[str, str]:
    digest = opened.reference_digest if of_reference else opened.digest
    return dict(digest or {})


def _content(tokenizer: Any) -> str:
    """SHA-256 of all that a fast tokenizer does."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8")).hexdigest()


def _judged(audit: _Audit, name: str, found: ev.Evidence, note: str = "") -> TestResult:
    """The verdict on evidence and its null audit."""
    verdict = detection.judge(found, audit.wm)
    if len(found) == 0:
        return TestResult.of(name, verdict, audit.wm, None, f"{note} No place could be scored, so p = 1.".strip())
    decoys = detection.audit_evidence(found, audit.wm, keys=audit.request.decoys, seed=audit.request.seed)
    return TestResult.of(name, verdict, audit.wm, decoys, note)


def _read_contrast(audit: _Audit, opened: _Model, progress: bool) -> TestResult:
    wm, request, texts = audit.wm, audit.request, audit.fresh
    assert texts is not None and audit.of_fresh is not None

    def build(folder: Path) -> None:
        reading.read_contrast(
            opened.model, opened.reference, texts.ids, wm.window, wm.vocab_size, prompts=texts.prompts,
            batch_size=request.batch_size, progress="contrastive reading" if progress else None,
        ).save(folder)  # fmt: skip

    config = {"texts": texts.digest, "window": wm.window, "vocab_size": wm.vocab_size}
    config |= {"model": _names(opened, False), "reference": _names(opened, True)}
    with audit.timed("model"), _readable("suspect or reference"):
        version = code_version("reading.py", "contrast.py", "evidence.py")
        made = _store(audit).get("contrast", config, build, version=version)
    found = contrast.Contrast.load(made.path)
    with audit.timed("statistics"):
        verdict = contrast.judge_contrast(found, wm, text_log10_p=audit.of_fresh.log10_p)
        decoys = None
        if len(found.pairs):
            decoys = contrast.audit_contrast(found, wm, keys=request.decoys, seed=request.seed)
        return TestResult.of("contrastive reading", verdict, wm, decoys)


def _ask(audit: _Audit, opened: Any, level: float, watched: bool, progress: bool) -> dict[str, TestResult]:
    """The closed tests. A watched one stops asking when its wealth reaches 10^−level."""
    keep = _filter(audit)
    if audit.answers is not None:
        prompts = audit.answers.prompts or [np.zeros(0, np.int64)] * len(audit.answers.ids)
        note = "" if audit.answers.prompts is not None else _NO_PROMPTS
        return {"answers, all": _scored_answers(audit, prompts, audit.answers.ids, keep, note)}
    prompts = _prompts(audit)
    if not watched:
        with audit.timed("model"), _readable("suspect"):
            answers = _local(audit, opened, progress).answer(prompts)
        return {"answers, all": _scored_answers(audit, prompts, answers, keep)}
    dedup: ev.Dedup = "window" if isinstance(audit.wm, ev.SharesLists) else "window+token"
    watch = querying.Watch(audit.wm, keep=keep, dedup=dedup)
    answers = []
    while len(answers) < len(prompts) and watch.highest < -level:
        start = len(answers)
        some = prompts[start : start + _BATCH]
        with audit.timed("model"), _readable("suspect"):
            given_now = opened.answer(some)
        answers += given_now
        with audit.timed("statistics"):
            watch.add(some, given_now, first=start)
    asked = prompts[: len(answers)]
    if not any(answer.size > audit.wm.window for answer in answers):
        raise AuditError(
            f"none of the {len(answers)} answers is longer than window={audit.wm.window} tokens; raise max_tokens, or use "
            "prompts that the suspect answers"
        )
    with audit.timed("statistics"):
        seen = watch.verdict(10**level, len(answers))
        highest = querying.audit_watch(
            asked,
            answers,
            audit.wm,
            keep=keep,
            batch=_BATCH,
            keys=audit.request.decoys,
            seed=audit.request.seed,
            dedup=dedup,
        )
    alarms = float(np.mean(highest >= -math.log10(_WATCH_LEVEL)))
    allowed = _WATCH_LEVEL + 4 * math.sqrt(_WATCH_LEVEL * (1 - _WATCH_LEVEL) / highest.size)
    found = {"answers, watched": TestResult.of_watched(seen, audit.wm, highest, alarms, sound=alarms <= allowed)}
    if seen.convicted:
        why = f"not needed: the watched test was decided after {seen.asked} of {len(prompts)} prompts"
        found["answers, all"] = TestResult(name="answers, all", applied=False, why=why)
    else:
        found["answers, all"] = _scored_answers(audit, asked, answers, keep)
    return found


def _filter(audit: _Audit) -> Ids:
    """The filter φ: the windows of the texts that the suspect may have used."""
    return ev.frequent_windows(audit.texts.ids, audit.wm.window, audit.wm.vocab_size)


_NO_PROMPTS = (
    "The answers came without their prompts: the p-value holds only if no prompt held watermarked text, which an answer "
    "could have copied."
)


def _scored_answers(
    audit: _Audit,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    keep: Ids,
    note: str = "",
    name: str = "answers, all",
) -> TestResult:
    with audit.timed("statistics"):
        try:
            found = querying.score_answers(prompts, answers, audit.wm, keep=keep)
        except ValueError as error:
            raise AuditError(f"the suspect's answers cannot be scored: {error}") from error
        return _judged(audit, name, found.evidence, note)


def _local(audit: _Audit, opened: _Model, progress: bool) -> Suspect:
    """A model at hand, behind a closed door."""
    request = audit.request
    bare = querying.as_suspect(opened.model)
    assert isinstance(bare, LocalSuspect)
    options: dict[str, Any] = {
        "stop_tokens": bare.stop_tokens,
        "sampling": decoding.Sampling(temperature=request.temperature),
        "max_new_tokens": request.max_tokens,
        "batch_size": 4 * request.batch_size,
        "seed": request.seed,
        "progress": "answers" if progress else None,
    }
    if opened.vocabulary.same:
        return LocalSuspect(opened.model, **options)
    return Retokenised(opened.model, its_tokenizer=opened.tokenizer, tokenizer=audit.tokenizer, **options)


# ----------------------------------------------------------------------------------------------------------------------
# The verdict


def _outcome(tests: Sequence[TestResult], control: TestResult | None, log10_alpha: float) -> Outcome:
    """Convicted by any sound test, unless the control shows the same trace in the model before."""
    applied = [test for test in tests if test.applied]
    guilty = [test for test in applied if test.log10_corrected is not None and test.log10_corrected <= log10_alpha]
    if control is not None and control.log10_p is not None and control.log10_p <= TRACE:
        return "void"
    if any(test.sound for test in guilty):
        return "convicted"
    return "void" if guilty else "not convicted"


def _inputs(audit: _Audit, opened: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"watermarked_texts": audit.texts.described()}
    if audit.fresh is not None:
        found["fresh_texts"] = audit.fresh.described()
    if isinstance(opened, _Model):
        found["suspect"] = {"name": audit.request.suspect, "sha256": opened.digest}
        if opened.reference_digest is not None:
            found["reference"] = {"name": audit.request.reference, "sha256": opened.reference_digest}
    elif audit.answers is not None:
        found["suspect"] = audit.answers.described()
    else:
        log = audit.request.folder / "answers.jsonl"
        found["suspect"] = {"name": audit.request.shown_suspect, "model": audit.request.suspect_model}
        found["answers"] = {"file": str(log), "sha256": sha256_of(log)}
    return found
