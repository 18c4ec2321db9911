"""What is asked of an audit: every parameter, checked before anything is read, loaded or paid for."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from radio_utils import engines, keys
from radio_utils.audit.errors import AuditError
from radio_utils.evidence.files import ENDINGS, is_path
from radio_utils.keys import ENGINE, SCHEMES, make_watermark
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import Key

ACCESS = ("open", "closed", "both")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """The parameters of an audit. Empty strings and zeros stand for "not given", so that papermill can set each of them.

    What is tested
        ``suspect``: a folder, GGUF file or hub name of a causal model, the ``http(s)://…`` address of an OpenAI-compatible
        server (with ``suspect_model``), or a JSONL or Parquet file of the suspect's answers (``prompt``, ``text``).
        ``suspect_model``: the name of the model that the server should answer with.
        ``reference``: folder, GGUF file or hub name of B₀, the model that the suspect was made from. Each test is then one
        of what the suspect added to it.
        ``access``: "open" (read the weights' predictions), "closed" (score answers) or "both"; empty, as open as can be.

    With what
        ``watermarked_texts``: what Alice's marked model wrote and the suspect may have used: JSONL or Parquet rows with
        ``text`` (or ``ids``) and perhaps ``prompt`` (or ``prompt_ids``), or the columns of Alpaca, ShareGPT, OpenAI's chats
        or TRL, or plain text with blank lines between texts. Give a chat as its turns: in one string their joins are lost.
        ``full_context``: the prompts hold all that Alice's model had before it wrote; else a template may have stood there.
        ``fresh_texts``: texts of the same kind that the suspect cannot have used. If they carry the watermark they make the
        unsupervised test.
        ``plain_texts``: texts written without the key, for contrastive reading; empty, the ``fresh_texts`` if they are
        such, else texts that Alice's own model writes.
        ``alice``: folder, GGUF file or hub name of Alice's own *unmarked* model. It is the reference of contrastive reading
        where there is no ``reference``, and writes the texts of the re-marking control.
        ``chat_template``: how prompts are fed to a model at hand: "auto" (as the user's turn, where its tokenizer has a
        chat template), "none" (bare), or a file of Jinja source. Rows without a prompt are no chats and are fed bare.
        ``tokenizer``: folder, GGUF file or hub name of Alice's tokenizer; empty, that of ``alice``, else the suspect's own.

    The watermark
        ``scheme``: the name of the watermark's scheme.
        ``engine_config``: in place of scheme, window, gamma and delta, the JSON file with which an inference engine was
        started (:func:`radio_utils.engines.from_config`); it may hold the key, too.
        ``key_env``: the environment variable that holds the key, as text, or as ``hex:…`` for bytes, or ``int:…`` for a
        number.
        ``key_file``: the file that holds the key, in the same forms.
        ``window``: k, the number of preceding tokens that seed each draw.
        ``gamma``: γ, the share of green tokens.
        ``delta``: δ, the bias of Alice's green lists, for the re-marking control (0: not known).
        ``vocab_size``: tokens that the watermark was made over (0: those of the tokenizer).
        ``commitment``: the file of :mod:`radio_utils.commit` that fixed key and parameters, published before there was a
        suspect.
        ``rehearsal``: lets a key pass that others know, such as this book's; the verdict then accuses nobody.

    How hard
        ``alpha``: the level of the whole verdict, the chance that an innocent is convicted.
        ``max_queries``: prompts that a closed suspect is asked at most.
        ``max_tokens``: tokens of each of its answers, at most.
        ``max_requests``: requests that are sent at most, with repeats after failures (0: four times ``max_queries``).
        ``temperature``: that at which it answers.
        ``decoys``: keys that nobody used, which check the arithmetic of each test.
        ``decoy_entropy``: what the decoys come from; empty for keys that nobody knew before, or the 32 hexadecimal digits
        of the audit to repeat.
        ``worlds``: other keys under which Alice's model writes for the re-marking control (0: no control).
        ``control_texts``: texts that it writes under each of them.
        ``alice_temperature``: that at which Alice's model writes; 1 draws from the model as it is.
        ``batch_size``: texts that a model reads at a time.
        ``device``: where models run, such as "cpu" or "cuda"; empty, a GPU if there is one.
        ``dtype``: the numbers that models compute with, "float32", "bfloat16" or "float16".
        ``seed``: what the answers and Alice's own texts are drawn with.

    The endpoint
        ``api``: the route that is asked, "completions", which continues a prompt, or "chat", as chat models want.
        ``api_key_env``: the environment variable with the server's credentials.
        ``concurrency``: requests at a time.
        ``price_in``: the price of a million tokens of prompts, for the estimate.
        ``price_out``: the price of a million tokens of answers, for the estimate.

    What is made
        ``output_dir``: the folder under which everything is written; an audit that was cut goes on there.
        ``key``: the key itself, in Python only.
        ``mark``: the watermark itself, in Python only and in place of scheme, parameters and key: any
        :class:`radio_utils.Watermark`, one of your own too.
    """

    suspect: str
    watermarked_texts: str
    suspect_model: str = ""
    reference: str = ""
    alice: str = ""
    fresh_texts: str = ""
    plain_texts: str = ""
    full_context: bool = False
    chat_template: str = "auto"
    access: str = ""
    tokenizer: str = ""
    scheme: str = "green list"
    engine_config: str = ""
    key_env: str = ""
    key_file: str = ""
    window: int = 2
    gamma: float = 0.25
    delta: float = 0.0
    vocab_size: int = 0
    commitment: str = ""
    rehearsal: bool = False
    alpha: float = 1e-3
    max_queries: int = 500
    max_tokens: int = 128
    max_requests: int = 0
    temperature: float = 0.8
    api: str = "completions"
    api_key_env: str = ""
    concurrency: int = 8
    price_in: float = 0.0
    price_out: float = 0.0
    decoys: int = 1000
    decoy_entropy: str = ""
    worlds: int = 99
    control_texts: int = 100
    alice_temperature: float = 1.0
    batch_size: int = 64
    device: str = ""
    dtype: str = "float32"
    seed: int = 0
    output_dir: str = "audit"
    key: Key | None = field(default=None, repr=False)
    mark: Watermark | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            if one.type == "str":
                object.__setattr__(self, one.name, _text(one.name, getattr(self, one.name)))
            elif one.type == "bool":
                object.__setattr__(self, one.name, _flag(one.name, getattr(self, one.name)))
        for name in ("suspect", "watermarked_texts", "output_dir"):
            if not getattr(self, name):
                raise AuditError(f"{name} is empty; {_WANTED[name]}")
        _one_of("scheme", self.scheme, tuple(SCHEMES))
        _one_of("api", self.api, ("completions", "chat"))
        _one_of("access", self.access or "open", ACCESS)
        _one_of("dtype", self.dtype, DTYPES)
        for name in ("window", "max_queries", "max_tokens", "concurrency", "batch_size", "control_texts"):
            _whole(name, getattr(self, name), least=1)
        _whole("decoys", self.decoys, least=99)
        for name in ("vocab_size", "seed", "max_requests", "worlds"):
            _whole(name, getattr(self, name), least=0)
        if self.decoy_entropy and not re.fullmatch(r"[0-9a-f]{32,128}", self.decoy_entropy):
            raise AuditError(
                f"decoy_entropy must be 32 to 128 digits of 0-9 and a-f, got {self.decoy_entropy!r}; leave it empty for "
                "fresh decoy keys"
            )
        _between("gamma", self.gamma, 0.0, 1.0)
        _between("alpha", self.alpha, 0.0, 0.5)
        for name in ("temperature", "price_in", "price_out", "delta", "alice_temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise AuditError(f"{name} must be a number that is not negative, got {value!r}")
        if self.is_endpoint:
            try:
                urlsplit(self.suspect)
            except ValueError:  # not shown: who mistypes an address may have typed a password too
                raise AuditError("suspect is no address of a server; give one such as https://host/v1") from None
        if re.match(r"[\w.-]+:\d+(/|$)", self.suspect):
            raise AuditError(f"suspect={self.suspect!r} looks like a server's address; begin it with http:// or https://")
        weights = self.suspect.lower().endswith(".gguf")
        if self.kind == "model" and not weights and (is_path(self.suspect) or _is_file(self.suspect)):
            raise AuditError(
                f"suspect={self.suspect!r} is a file; answers are read from {', '.join(_ANSWERS)}, write them so"
            )
        if self.is_endpoint and not self.suspect_model:
            raise AuditError("suspect_model is empty; name the model that the endpoint should answer with")
        if self.kind != "model" and self.access in ("open", "both"):
            raise AuditError(
                f"access={self.access!r} needs the suspect's weights, and suspect={self.shown_suspect!r} has none"
            )
        for name in ("reference", "alice"):
            if self.kind != "model" and getattr(self, name):
                raise AuditError(
                    f"{name} is compared by its weights, and suspect={self.shown_suspect!r} has none; leave it out"
                )
        if SCHEMES[self.scheme].one_token and self.window != 1:
            raise AuditError(f"scheme={self.scheme!r} looks at one token only, so window must be 1, got {self.window}")
        if self.kind != "model" and not self.tokenizer:
            raise AuditError(
                "tokenizer is empty, and this suspect brings none; give the folder or hub name of Alice's tokenizer"
            )
        mark: Any = self.mark
        if mark is not None and not isinstance(mark, Watermark):
            raise AuditError(
                f"mark must be a radio_utils.Watermark, got {type(mark).__name__}; leave it None and name a scheme"
            )
        if self.mark is not None and (self.engine_config or self.commitment or self.vocab_size):
            raise AuditError("mark is a whole watermark; leave out engine_config, commitment and vocab_size")
        keyless = self.mark is None and not self.engine_config and self.key is None
        if (self.key_env and self.key_file) or (keyless and not (self.key_env or self.key_file)):
            raise AuditError("give either key_env, the environment variable that holds the key, or key_file, its file")
        if self.key is not None and (self.key_env or self.key_file):
            raise AuditError("key is given twice; leave out key_env and key_file")

    @classmethod
    def explained(cls) -> dict[str, str]:
        """What each parameter is, from the text above."""
        text = inspect.cleandoc(cls.__doc__ or "")
        found = re.findall(r"^    ``(\w+)``: (.*(?:\n    (?!``\w+``: ).*)*)", text, re.MULTILINE)
        plain = {name: re.sub(r":mod:|[`*]", "", " ".join(words.split())) for name, words in found}
        return {one.name: plain[one.name] for one in dataclasses.fields(cls)}

    @property
    def is_endpoint(self) -> bool:
        """Whether the suspect is a server."""
        return self.suspect.lower().startswith(("http://", "https://"))

    @property
    def kind(self) -> str:
        """What the suspect is: an "endpoint", a file of its "answers", or a "model" whose weights are at hand."""
        if self.is_endpoint:
            return "endpoint"
        return "answers" if self.suspect.lower().endswith(_ANSWERS) else "model"

    @property
    def shown_suspect(self) -> str:
        """The suspect's name without credentials, should the address hold any."""
        if not self.is_endpoint:
            return self.suspect
        parts = urlsplit(self.suspect)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    @property
    def modes(self) -> tuple[str, ...]:
        """What kinds of test are asked for: "open", "closed" or both."""
        if self.kind != "model":
            return ("closed",)
        return ("open", "closed") if self.access == "both" else (self.access or "open",)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.output_dir).expanduser()

    def secret(self) -> Any:
        """The key, None where only a ``mark`` knows it. Raises :class:`AuditError`, which does not quote it."""
        if self.mark is not None:
            return None
        given = self.key
        if given is None and (self.key_env or self.key_file):
            given = read_key(self.key_env, self.key_file, self.named)
        if not self.engine_config:
            return given
        try:
            return engines.key_of(self.engine_config, given)
        except ValueError as error:
            raise AuditError(f"engine_config: {error}") from None

    def watermark(self, vocab_size: int) -> Watermark:
        """The watermark to look for, over ``vocab_size`` tokens unless the request says another number."""
        return self.variant(vocab_size=self.vocab_size or vocab_size)

    @property
    def named(self) -> str:
        """What kind of key it has: the scheme's name, or that it is an engine's."""
        return ENGINE if self.engine_config else self.scheme

    def variant(self, **changes: Any) -> Watermark:
        """The watermark with other parameters. Raises :class:`AuditError` where there is none such."""
        if self.mark is not None:
            if changes.keys() - {"vocab_size"}:
                raise AuditError("mark is a whole watermark, of which there are no variants")
            return self.mark
        if self.engine_config and changes.keys() - {"vocab_size", "window"}:
            raise AuditError("engine_config says all parameters")
        key = self.secret()
        try:
            if self.engine_config:
                return engines.from_config(self.engine_config, key=key, **changes)
            given: dict[str, Any] = {"scheme": self.scheme, "window": self.window, "gamma": self.gamma}
            return make_watermark(key=key, **(given | {"delta": self.delta or None} | changes))
        except (ValueError, TypeError) as error:
            raise AuditError(f"engine_config: {error}" if self.engine_config else str(error)) from None

    def public(self) -> dict[str, Any]:
        """All parameters that may be published: everything but the key itself, and of a ``mark`` its fingerprint."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("key", "mark")}
        if self.mark is not None:
            shown["mark"] = self.mark.fingerprint
        return shown | {"suspect": self.shown_suspect}


_ANSWERS = tuple(ending for ending in ENDINGS if ending != ".txt")  # in which an answer has its prompt beside it


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError):  # a name too long for one, or a home that is nobody's
        return False


_WANTED = {
    "suspect": "give a folder, a hub name, an http(s) address or a file of answers",
    "watermarked_texts": "give the file of marked texts that the suspect may have used (.jsonl, .parquet or .txt)",
    "output_dir": "give a folder for the verdict",
}


def read_key(key_env: str = "", key_file: str = "", scheme: str = "green list") -> Key:
    """The key in an environment variable or a file: text, ``hex:…`` or ``int:…``, without the end of its line.

    Raises :class:`AuditError`, which does not quote it.
    """
    try:
        return keys.read_key(key_env, key_file, scheme)
    except ValueError as error:
        raise AuditError(str(error)) from error


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise AuditError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _text(name: str, value: Any) -> str:
    """A text or a path as text that a file can hold: a path of other bytes than UTF-8 cannot be written into a report."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise AuditError(f"{name} must be text or a path, got {value!r}")
    if "\0" in text or text.encode("utf-8", "ignore").decode("utf-8") != text:
        raise AuditError(f"{name} holds signs that are no text: {text!r}; rename the file or folder")
    return text


_FLAGS = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False, "": False}


def _flag(name: str, value: Any) -> bool:
    """Yes or no, as a program, a shell or a notebook's parameter says it."""
    found = _FLAGS.get(str(value).lower())
    if found is None:
        raise AuditError(f"{name} must be True or False, 1 or 0, 'yes' or 'no', got {value!r}")
    return found


# more than these fill a machine's memory, or its time, before anything is found wrong
_MOST = {"window": 1_000, "decoys": 1_000_000, "max_queries": 1_000_000, "vocab_size": 2**31 - 1, "seed": 2**63 - 1}


def _whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AuditError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value > (most := _MOST.get(name, 1_000_000_000)):
        raise AuditError(f"{name} must be at most {most:,}, got {value:,}")


def _between(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise AuditError(f"{name} must be a number between {low:g} and {high:g}, both excluded, got {value!r}")
