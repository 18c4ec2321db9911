"""Quality: did Bob's training data, watermarked or not, make his model worse at anything?

Two roads to the same kind of number, always 0-shot and always with its standard error. The field's harness, lm-eval
(https://github.com/EleutherAI/lm-evaluation-harness, an optional extra), runs the tasks that the paper reports, where the
hub is reached. Without the hub there are two tasks made here, in the harness's own format and from the same questions:
pick the right description of a function among four, and pick the right function for a description, both by likelihood.
:func:`multiple_choice` answers them by the harness's rules (lm-eval 0.4.13) without the harness, so that a laptop needs no
extra. Explained in the chapter "Alice's data, Bob's model".
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional

from radio_utils.decoding.passes import positions_of
from radio_utils.files import atomic_write
from radio_utils.processes import environment
from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.suspects.forward import read
from radio_utils.world.instructions import OPENING, Pair

Bools = NDArray[np.bool_]
Task = Literal["radio_describe", "radio_name"]
Metric = Literal["acc", "acc_norm", "acc_mutual_info"]

# the tasks made here, by the names that the harness knows them by, and what each is judged by
DESCRIBE: Task = "radio_describe"
NAME: Task = "radio_name"
METRICS: Mapping[Task, tuple[Metric, ...]] = MappingProxyType(
    {DESCRIBE: ("acc", "acc_norm", "acc_mutual_info"), NAME: ("acc",)}
)
# the paper's tasks, by the names that the harness knows them by
TASKS: Mapping[str, str] = MappingProxyType(
    {"NQ": "nq_open", "TriviaQA": "triviaqa", "GSM8k": "gsm8k", "HumanEval": "humaneval", "MMLU": "mmlu"}
)
CHOICES = 4
DELIMITER = "\nAnswer: "  # between a question and an answer, as in Pair.text
_RUNS_CODE = ("HumanEval",)


@dataclass(frozen=True, slots=True)
class Question:
    """Four prompts, the answer that belongs to each, and the place (0 to 3) of the one that is asked about."""

    prompts: tuple[str, ...]
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for anything that is no question."""
        for name, texts in (("prompts", self.prompts), ("choices", self.choices)):
            if len(texts) != CHOICES or len(set(texts)) != CHOICES or not all(map(str.strip, texts)):
                raise ValueError(f"{name} must be {CHOICES} different texts, none of them empty, got {texts!r}")
        if self.answer not in range(CHOICES):
            raise ValueError(f"answer must be a place among the choices, 0 to {CHOICES - 1}, got {self.answer!r}")

    @property
    def prompt(self) -> str:
        """What is asked: the prompt that the right choice belongs to."""
        return self.prompts[self.answer]

    @property
    def description(self) -> str:
        """The right choice."""
        return self.choices[self.answer]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One number of one task: a mean over ``count`` questions and its standard error (NaN where none is known)."""

    task: str
    metric: str
    value: float
    stderr: float
    count: int


# --- the tasks made here ------------------------------------------------------------------------------------------------


def functions(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that ask what a function, class or module is, and not what its parameters are or what it returns."""
    return [pair for pair in pairs if pair.instruction.startswith("What is ") and pair.instruction.count(" ") == 2]


def describe_questions(
    pairs: Sequence[Pair], count: int, *, generator: np.random.Generator, longest: int = 160
) -> list[Question]:
    """Questions made of these pairs, each with the right description and those of three others.

    Pairs with more than ``longest`` characters to the answer are left out, as are an instruction and an answer met before.
    What is left is sorted by length and cut into fours; each question takes a four of its own and asks about a random one
    of them. So the four are of nearly the same length, and only what ties a prompt to its answer tells the right one:
    whoever looks at the descriptions alone, or at the prompts alone, is right in one of four cases.

    Raises ``ValueError`` where the pairs do not suffice for ``count`` questions.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 question, got {count}")
    usable: list[Pair] = []
    met: set[str] = set()
    for pair in pairs:
        if pair.instruction.strip() and pair.answer.strip() and len(pair.answer) <= longest:
            if not met & {pair.instruction, pair.answer}:
                usable.append(pair)
            met |= {pair.instruction, pair.answer}
    fours = len(usable) // CHOICES
    if fours < count:
        raise ValueError(
            f"pairs holds {len(usable)} different answers of at most longest={longest} characters, enough for {fours} "
            f"questions, not for count={count}; ask fewer, allow longer ones or give more pairs"
        )
    mixed = [usable[i] for i in generator.permutation(len(usable))]
    by_length = sorted(mixed, key=lambda pair: len(pair.answer))
    questions = []
    for four in generator.permutation(fours)[:count]:
        group = [by_length[CHOICES * four + i] for i in generator.permutation(CHOICES)]
        prompts, choices = (
            tuple(texts) for texts in zip(*((f"{OPENING} {p.instruction}", p.answer) for p in group), strict=True)
        )
        questions.append(Question(prompts, choices, int(generator.integers(CHOICES))))
    return questions


def write_task(questions: Sequence[Question], folder: Path | str) -> list[Path]:
    """Write the questions as the tasks :data:`DESCRIBE` and :data:`NAME`, in the harness's own format.

    Then ``lm_eval --include_path FOLDER --tasks radio_describe --model hf --model_args pretrained=MODEL`` runs the first,
    without a network. The YAML files name the file of questions by its whole path, because the harness resolves a relative
    one from where it is run: write the tasks where they shall stay. Returns the paths of the YAML files.

    Raises ``ValueError`` for no questions, or for a folder whose path the harness would read as a pattern.
    """
    _check_questions(questions)
    root = Path(folder).resolve()
    if set("*?[]{}") & set(str(root)):
        raise ValueError(
            f"folder must not hold any of * ? [ ] {{ }}, which the harness reads as a pattern, got {str(root)!r}"
        )
    rows = root / "radio_questions.jsonl"
    fields = ("prompt", "prompts", "choices", "description", "answer")
    written = ({name: getattr(question, name) for name in fields} for question in questions)
    atomic_write(rows, "".join(json.dumps(row) + "\n" for row in written))
    paths = []
    for task, metrics in METRICS.items():
        settings = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            # names of fields, not templates: a description may hold braces. A text that is a number tells the harness that
            # the prompts are what is chosen from.
            "doc_to_text": "prompt" if task == DESCRIBE else "answer",
            "doc_to_choice": "choices" if task == DESCRIBE else "prompts",
            "doc_to_target": "answer" if task == DESCRIBE else "description",
            "target_delimiter": DELIMITER,
            "num_fewshot": 0,
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
            "metadata": {"version": 1.0},
        }
        paths.append(root / f"{task}.yaml")
        atomic_write(paths[-1], yaml.safe_dump(settings, sort_keys=False))
    return paths


# --- choosing by likelihood ---------------------------------------------------------------------------------------------


def multiple_choice(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, task: Task = DESCRIBE, batch_size: int = 64
) -> list[QualityResult]:
    """How often the likeliest choice is the right one: the harness's metrics of this task, in the order of :data:`METRICS`.

    See :func:`grade` for the rules and the errors. The standard error is that of the mean of independent questions, with
    n − 1 in the variance. Raises ``ValueError`` for fewer than 2 questions.
    """
    if len(questions) == 1:
        raise ValueError("questions holds 1 question; a standard error needs at least 2")
    grades = grade(model, tokenizer, questions, task=task, batch_size=batch_size)
    return [_mean(task, metric, right) for metric, right in grades.items()]


def grade(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, task: Task = DESCRIBE, batch_size: int = 64
) -> dict[Metric, Bools]:
    """Which questions the model gets right, by each metric of the task: boolean arrays [n].

    :data:`DESCRIBE` compares the four descriptions after the one prompt: by log-likelihood ("acc"), by log-likelihood over
    the description's length in characters ("acc_norm"), and by log-likelihood less that of the description after no prompt
    ("acc_mutual_info"). Whichever text is likely by itself wins the first two; the third asks what the prompt adds, after
    Holtzman et al. 2021 (arXiv 2104.08315). :data:`NAME` compares the likelihood of the one description after the four
    prompts, where nothing has to be taken off. Of equals the first counts as chosen.

    Raises ``ValueError`` for an unknown task, no questions, one longer than the model's context, a choice without a token
    of its own, and a model that gives NaN.
    """
    if task not in METRICS:
        raise ValueError(f"task must be one of {', '.join(METRICS)}, got {task!r}")
    _check_questions(questions)
    if task == NAME:
        asked = [(prompt, question.description) for question in questions for prompt in question.prompts]
    else:
        asked = [(question.prompt, choice) for question in questions for choice in question.choices]
        asked += [("", choice) for _, choice in asked]
    # [1, n, 4], and for DESCRIBE [2, n, 4]: with the prompt, without
    scores = log_likelihoods(model, tokenizer, asked, batch_size=batch_size).reshape(-1, len(questions), CHOICES)
    compared: dict[Metric, NDArray[np.float64]] = {"acc": scores[0]}
    if task == DESCRIBE:
        lengths = np.array([[float(len(choice)) for choice in question.choices] for question in questions])
        compared |= {"acc_norm": scores[0] / lengths, "acc_mutual_info": scores[0] - scores[1]}
    right = np.array([question.answer for question in questions])
    return {metric: np.argmax(values, axis=1) == right for metric, values in compared.items()}


def log_likelihoods(
    model: Any, tokenizer: Any, asked: Sequence[tuple[str, str]], *, batch_size: int = 64
) -> NDArray[np.float64]:
    """Log-likelihood (nats) of each answer after its prompt and :data:`DELIMITER`: float array [n].

    The tokens of an answer are what follows the prompt's when both are encoded as one text, with the special tokens that
    the tokenizer adds by itself. After an empty prompt the tokenizer's first token (or its last, if it has no first) stands
    before the answer. Raises ``ValueError`` as :func:`grade` does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    longest = positions_of(model)
    rows, lengths = _tokens(tokenizer, asked)  # lengths: tokens of each answer
    for (prompt, answer), row, length in zip(asked, rows, lengths, strict=True):
        if not 0 < length < len(row):
            raise ValueError(f"answer {answer!r} has no token of its own after the prompt {prompt!r}; reword one of them")
        if longest is not None and len(row) > longest + 1:
            raise ValueError(
                f"answer {answer!r} has {len(row)} tokens with its prompt, and the model's context is {longest}; "
                "leave such questions out"
            )
    # longest first, as the harness orders them: batches hold texts of like length, and too large a batch fails at once
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i]))
    result = np.zeros(len(rows))
    fed = [np.array(rows[i][:-1], np.int64) for i in order]
    with torch.inference_mode():
        for batch, (logits,) in read(
            [model], fed, batch_size=batch_size, longest_first=True, finite=False, what="questions"
        ):
            for number, of_text in zip(batch, logits, strict=True):
                i = order[number]
                result[i] = _score(of_text, rows[i], lengths[i])
    if np.isnan(result).any():
        raise ValueError("model gives NaN as a log-likelihood; its weights or its precision are at fault")
    return result


def _score(logits: torch.Tensor, row: list[int], length: int) -> float:
    """Summed log-probability of the last ``length`` tokens of a row of which all but the last were fed.

    The sum is in the model's precision, as the harness's is, so that choices it takes for equal are equal here.
    """
    log_probabilities = functional.log_softmax(logits[-length:], dim=-1)
    wanted = torch.tensor(row[-length:], device=logits.device)
    return float(log_probabilities.gather(1, wanted[:, None]).sum())


def _tokens(tokenizer: Any, asked: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[int]]:
    """Token ids of every prompt with its answer, and how many of them are the answer's."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    opening = None if first is None else tokenizer.decode(first)
    known: dict[str, list[int]] = {}  # a prompt comes several times

    def encode(text: str) -> list[int]:
        if text not in known:
            bare = opening is not None and text.startswith(opening)  # it brings the first token along
            known[text] = list(tokenizer(text, **({"add_special_tokens": False} if bare else {}))["input_ids"])
        return known[text]

    rows, lengths = [], []
    for prompt, answer in asked:
        if prompt:
            row = encode(f"{prompt}{DELIMITER}{answer}")
            rows.append(row)
            lengths.append(len(row) - len(encode(prompt.rstrip())))
        else:
            if first is None:
                raise ValueError(
                    "tokenizer has neither a first nor a last token to stand before an answer without a prompt"
                )
            row = list(tokenizer(f"{DELIMITER}{answer}", add_special_tokens=False)["input_ids"])
            rows.append(row if row[:1] == [first] else [first, *row])
            lengths.append(len(rows[-1]) - 1)
    return rows, lengths


def _mean(task: str, metric: str, right: Bools) -> QualityResult:
    """Mean and standard error, in the harness's order of operations so that not even the last digit differs."""
    values = [float(one) for one in right]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum([(value - mean) ** 2 for value in values]) / (len(values) - 1))
    return QualityResult(task, metric, mean, deviation / math.sqrt(len(values)), len(values))


def _check_questions(questions: Sequence[Question]) -> None:
    if not questions:
        raise ValueError("questions is empty; make some with describe_questions")


# --- the harness --------------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    include: Path | str | None = None,
    confirm_run_unsafe_code: bool = False,
) -> list[QualityResult]:
    """Run tasks of the harness, 0-shot: every metric of every task, in the order asked for.

    ``model`` is a folder or hub name, read in single precision from safetensors and moved to ``device``; or a loaded
    causal model, with its ``tokenizer``. ``tasks`` are names of :data:`TASKS`, or names of tasks in the folder ``include``
    (such as :func:`write_task` makes; a task folder may hold code, so include none that you would not run). ``limit`` asks
    only the first questions of each task. A metric is named as the harness names it, with its filter where a task has
    several ("exact_match,strict-match"). HumanEval runs the programs that the model writes, and is refused without
    ``confirm_run_unsafe_code``: give it only in a sandbox.

    Raises ``ValueError`` for an unknown task or another wrong argument, ``ImportError`` without lm-eval, and
    ``ConnectionError`` where a task's data cannot be read.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks must be a list of names, got {tasks!r}; choose from {', '.join(TASKS)}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 2):
        raise ValueError(f"limit must be a whole number of questions from 2 on, or None, got {limit!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if include is not None and not Path(include).is_dir():
        raise ValueError(f"include must be a folder of task files, got {str(include)!r}; write_task makes one")
    if include is None:
        _check_tasks(tasks, list(TASKS))
    running = [task for task in tasks if task in _RUNS_CODE]
    if running and not confirm_run_unsafe_code:
        raise ValueError(
            f"tasks names {running[0]!r}, which runs programs that the model writes on this machine; "
            "in a sandbox pass confirm_run_unsafe_code=True, elsewhere leave the task out"
        )
    if tokenizer is None and not isinstance(model, str | Path):
        raise ValueError("tokenizer is missing; a loaded model needs its tokenizer beside it")
    harness = _harness()
    own = {} if include is None else {name: name for name in _manager(include, defaults=False).all_tasks}
    names = {**TASKS, **own}
    _check_tasks(tasks, list(names))
    loaded, its_tokenizer = _loaded(model, tokenizer, device)
    language_model = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=loaded, tokenizer=its_tokenizer, batch_size=batch_size, trust_remote_code=False
    )
    try:
        # by this variable the metric of HumanEval asks once more
        with environment(**({"HF_ALLOW_CODE_EVAL": "1"} if running else {})):
            found = harness.simple_evaluate(
                model=language_model,
                tasks=[names[task] for task in tasks],
                num_fewshot=0,
                limit=limit,
                log_samples=False,
                task_manager=_manager(include, defaults=not set(tasks) <= set(own)),
                # the caller's streams of chance are left alone: no examples are drawn, and decoding is greedy
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=None,
                confirm_run_unsafe_code=confirm_run_unsafe_code,
            )
    except OSError as error:
        raise ConnectionError(
            f"the data of {', '.join(tasks)} could not be read: {error}. The paper's tasks come from the Hugging Face hub; "
            "connect to it, or use multiple_choice, which needs no network"
        ) from error
    return [result for task in tasks for result in _results(task, found["results"].get(names[task], {}))]


def _results(task: str, row: Mapping[str, Any]) -> list[QualityResult]:
    """The harness's dictionary of one task or group: keys "metric,filter" and "metric_stderr,filter"."""
    found = {}
    for key, value in row.items():
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            found[metric, name] = (float(value), row.get(f"{metric}_stderr,{name}"))
    if not found:
        raise ValueError(f"task {task!r} in tasks is a group without a number of its own; name the tasks in it instead")
    filters = [metric for metric, _ in found]
    return [
        QualityResult(
            task,
            metric if filters.count(metric) == 1 else f"{metric},{name}",
            value,
            float(stderr) if isinstance(stderr, int | float) else math.nan,  # the harness writes "N/A"
            int(row["sample_len"]),
        )
        for (metric, name), (value, stderr) in found.items()
    ]


def _harness() -> Any:
    try:
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise ImportError(
            f"the tasks of the harness need lm-eval ({error}): pip install 'radio-utils[quality]', "
            "or use multiple_choice, which needs nothing"
        ) from error


def _manager(include: Path | str | None, *, defaults: bool) -> Any:
    folder = None if include is None else str(include)
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=folder, include_defaults=defaults)


def _loaded(model: Any, tokenizer: Any, device: str) -> tuple[Any, Any]:
    if not isinstance(model, str | Path):
        return model, tokenizer
    return load_model(model, device=device), tokenizer if tokenizer is not None else load_tokenizer(model)


def _check_tasks(tasks: Sequence[str], names: list[str]) -> None:
    for task in tasks:
        if task not in names:
            raise ValueError(f"unknown task {task!r} in tasks; choose from {', '.join(names)}")
