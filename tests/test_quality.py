"""Quality: questions without cues, choices against a slow computation and against the harness itself, refusals."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from radio_utils import quality
from radio_utils.quality import CHOICES, DESCRIBE, METRICS, NAME, QualityResult, Question
from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.world import models
from radio_utils.world.instructions import Pair

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [
    "array", "index", "matrix", "é", "{{braces}}", "sort", "{%", "%}", "return", "value", "a\u2028b", "the", "graph", "3.5",
]  # fmt: skip


def described(count: int, seed: int = 0) -> list[Pair]:
    """Pairs with answers of all lengths."""
    generator = np.random.default_rng(seed)
    return [
        Pair(f"What is mod{i}.name{i}?", f"Text {i}: " + " ".join(generator.choice(WORDS, int(generator.integers(3, 16)))))
        for i in range(count)
    ]


def questions(count: int = 12, seed: int = 0) -> list[Question]:
    return quality.describe_questions(described(5 * count), count, generator=np.random.default_rng(seed))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    models.train_tokenizer((pair.text for pair in described(200)), 320, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def with_first(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same tokenizer, which now puts its first token before every text by itself, as those of many models do."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("with_first")
    tokenizer.save_pretrained(str(folder))
    changed = load_tokenizer(folder)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{models.END_OF_TEXT} $A", special_tokens=[(models.END_OF_TEXT, tokenizer.bos_token_id)]
    )
    assert changed("a")["input_ids"] == [tokenizer.bos_token_id, *tokenizer("a")["input_ids"]]
    return changed


def network(tokenizer: Any, architecture: str = "gpt_neox", seed: int = 0) -> Any:
    build = SimpleNamespace(architecture=architecture, width=16, layers=2, heads=2, key_value_heads=1)
    model = models.new_model(build, len(tokenizer), tokenizer.eos_token_id, seed)  # type: ignore[arg-type]
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)  # far from uniform, so that choices differ
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return network(tokenizer)


def slow_score(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Log-likelihood of an answer, one token at a time in double precision."""
    before = tokenizer(prompt)["input_ids"] if prompt else [tokenizer.bos_token_id]
    whole = before + tokenizer(f"\nAnswer: {answer}", add_special_tokens=False)["input_ids"]
    total = 0.0
    with torch.no_grad():
        for place in range(len(before), len(whole)):
            logits = model(torch.tensor([whole[:place]])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, 0)[whole[place]])
    return total


# --- questions --------------------------------------------------------------------------------------------------------


def test_questions_hold_the_right_description_and_three_others() -> None:
    pairs = described(60)
    answers = {f"Question: {pair.instruction}": pair.answer for pair in pairs}
    found = questions(12)
    assert len(found) == 12
    used: list[str] = []
    for question in found:
        assert tuple(answers[prompt] for prompt in question.prompts) == question.choices
        assert question.description == answers[question.prompt]
        used += question.choices
    assert len(set(used)) == len(used), "each description serves one question only, so that questions are independent"
    assert f"{found[0].prompt}{quality.DELIMITER}{found[0].description}" in {pair.text for pair in pairs}


def test_questions_depend_on_the_generator_alone() -> None:
    assert questions(seed=3) == questions(seed=3) != questions(seed=4)


def test_length_and_place_are_no_cue() -> None:
    found = quality.describe_questions(described(9000), 2000, generator=np.random.default_rng(5))
    answers = np.array([question.answer for question in found])
    lengths = np.array([[len(choice) for choice in question.choices] for question in found])
    spread = (lengths.max(axis=1) - lengths.min(axis=1)) / lengths.mean(axis=1)
    assert np.quantile(spread, 0.9) < 0.02
    noise = np.random.default_rng(6).random(lengths.shape)  # equal lengths in random order
    for guess in (np.argmax(lengths + noise, 1), np.argmin(lengths + noise, 1), *np.arange(CHOICES)):
        assert abs(np.mean(guess == answers) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_unusable_pairs_are_left_out() -> None:
    good = described(8)
    twice = [Pair(good[0].instruction, "Another text about the same thing."), Pair("What is other.name?", good[0].answer)]
    bad = [Pair("What is too.long?", "x" * 161), Pair("What is empty?", " "), Pair(" ", "No name.")]
    found = quality.describe_questions(good + twice + bad, 2, generator=np.random.default_rng(0))
    assert {choice for question in found for choice in question.choices} == {pair.answer for pair in good}
    with pytest.raises(
        ValueError, match=r"pairs holds 8 .* longest=160 characters, enough for 2 questions, not for count=3"
    ):
        quality.describe_questions(good + twice + bad, 3, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="count must be at least 1"):
        quality.describe_questions(good, 0, generator=np.random.default_rng(0))


def test_functions_are_told_from_their_parts() -> None:
    asked = ["What is numpy.sort?", "What is the parameter axis of numpy.sort?", "What does numpy.sort return?"]
    assert [pair.instruction for pair in quality.functions([Pair(one, "x") for one in asked])] == asked[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ("a", "b", "c", " ")}, "prompts must be 4 different texts"),
        ({"choices": ("a", "b", "c")}, "choices must be 4 different texts"),
        ({"choices": ("a", "b", "c", "a")}, "choices must be 4 different texts"),
        ({"answer": 4}, "answer must be a place among the choices, 0 to 3, got 4"),
    ],
)
def test_a_question_is_checked(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"prompts": ("a?", "b?", "c?", "d?"), "choices": ("a", "b", "c", "d"), "answer": 0}
    assert Question(**fields).description == "a"
    with pytest.raises(ValueError, match=message):
        Question(**(fields | change))


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_choices_agree_with_a_slow_computation(tokenizer: Any, architecture: str) -> None:
    asked, model = questions(5), network(tokenizer, architecture)
    right = np.array([question.answer for question in asked])

    def slow(pairs: list[tuple[str, str]]) -> Any:
        return np.array([slow_score(model, tokenizer, *pair) for pair in pairs]).reshape(-1, CHOICES)

    after = slow([(question.prompt, choice) for question in asked for choice in question.choices])
    alone = slow([("", choice) for question in asked for choice in question.choices])
    named = slow([(prompt, question.description) for question in asked for prompt in question.prompts])
    lengths = np.array([[len(choice) for choice in question.choices] for question in asked])
    expected = {
        (DESCRIBE, "acc"): after, (DESCRIBE, "acc_norm"): after / lengths, (DESCRIBE, "acc_mutual_info"): after - alone,
        (NAME, "acc"): named,
    }  # fmt: skip
    for task, metrics in METRICS.items():
        grades = quality.grade(model, tokenizer, asked, task=task, batch_size=7)
        results = quality.multiple_choice(model, tokenizer, asked, task=task, batch_size=7)
        assert list(grades) == list(metrics) == [result.metric for result in results]
        for metric, result in zip(metrics, results, strict=True):
            correct = np.argmax(expected[task, metric], 1) == right
            assert np.array_equal(grades[metric], correct)
            stderr = np.std(correct, ddof=1) / math.sqrt(5)
            assert (result.task, result.count) == (task, 5)
            assert (result.value, result.stderr) == (pytest.approx(correct.mean()), pytest.approx(stderr))


def test_log_likelihoods_do_not_depend_on_the_batches(model: Any, tokenizer: Any) -> None:
    asked = [(question.prompt, choice) for question in questions(6) for choice in question.choices] + [("", "Text")]
    expected = [slow_score(model, tokenizer, *pair) for pair in asked]
    for batch_size in (1, 5, 100):
        assert quality.log_likelihoods(model, tokenizer, asked, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_of_equals_the_first_is_chosen(tokenizer: Any) -> None:
    model = network(tokenizer)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()  # every token equally likely
    texts = ("bcd", "cdb", "dbc", "cbd")  # as many tokens each, and no merges
    asked = [Question(("p?", "q?", "r?", "s?"), texts, answer) for answer in (0, 1, 3, 0)]
    assert len({len(tokenizer(text)["input_ids"]) for text in texts}) == 1
    for task in METRICS:
        for right in quality.grade(model, tokenizer, asked, task=task).values():
            assert right.tolist() == [True, False, False, True]


def test_what_cannot_be_scored_is_refused(model: Any, tokenizer: Any) -> None:
    asked = questions(4)
    with pytest.raises(ValueError, match="questions is empty; make some with describe_questions"):
        quality.multiple_choice(model, tokenizer, [])
    with pytest.raises(ValueError, match="questions holds 1 question; a standard error needs at least 2"):
        quality.multiple_choice(model, tokenizer, asked[:1])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        quality.multiple_choice(model, tokenizer, asked, batch_size=0)
    with pytest.raises(ValueError, match="task must be one of radio_describe, radio_name, got 'describe'"):
        quality.multiple_choice(model, tokenizer, asked, task="describe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has 1\d{3} tokens with its prompt, and the model's context is 1024"):
        quality.log_likelihoods(model, tokenizer, [("Question: What?", "b" * 1020)])
    broken = network(tokenizer)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="model gives NaN"):
        quality.multiple_choice(broken, tokenizer, asked)
    nameless = SimpleNamespace(bos_token_id=None, eos_token_id=None, __call__=tokenizer)
    with pytest.raises(ValueError, match="tokenizer has neither a first nor a last token"):
        quality.log_likelihoods(model, nameless, [("", "Text")])


# --- the harness's format ---------------------------------------------------------------------------------------------


def test_the_task_is_written_whole(tmp_path: Path) -> None:
    asked = questions(5)
    paths = quality.write_task(asked, tmp_path / "tasks")
    assert [path.name for path in paths] == ["radio_describe.yaml", "radio_name.yaml"]
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == [
        "radio_describe.yaml", "radio_name.yaml", "radio_questions.jsonl",
    ]  # fmt: skip
    for path in paths:
        settings = yaml.safe_load(path.read_text())
        assert settings["task"] == path.stem and settings["target_delimiter"] == "\nAnswer: "
        assert [one["metric"] for one in settings["metric_list"]] == list(METRICS[settings["task"]])
    rows = [json.loads(line) for line in Path(settings["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    assert [Question(tuple(row["prompts"]), tuple(row["choices"]), row["answer"]) for row in rows] == asked
    assert all(
        row["prompt"] == q.prompt and row["description"] == q.description for row, q in zip(rows, asked, strict=True)
    )


def test_a_task_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="questions is empty"):
        quality.write_task([], tmp_path)
    with pytest.raises(ValueError, match=r"folder must not hold any of \* \? \[ \] \{ \}, which"):
        quality.write_task(questions(2), tmp_path / "a[b]")
    assert not list(tmp_path.iterdir())


# --- the harness ------------------------------------------------------------------------------------------------------


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """lm-eval where it is installed, without a network and with a cache of its own."""
    module = pytest.importorskip("lm_eval")
    config = importlib.import_module("datasets.config")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    return module


@pytest.mark.parametrize("first", [False, True])
def test_the_harness_gives_the_same_to_the_last_digit(
    harness: Any, tokenizer: Any, with_first: Any, tmp_path: Path, first: bool
) -> None:
    used, asked = with_first if first else tokenizer, questions(40)
    model = network(tokenizer, "llama" if first else "gpt_neox")
    quality.write_task(asked, tmp_path / "tasks")
    tasks = list(METRICS)
    theirs = quality.evaluate(model, tasks, tokenizer=used, batch_size=16, include=tmp_path / "tasks")
    ours = [one for task in METRICS for one in quality.multiple_choice(model, used, asked, task=task, batch_size=16)]
    assert sorted(theirs, key=repr) == sorted(ours, key=repr)

    # and question by question
    found = harness.simple_evaluate(
        importlib.import_module("lm_eval.models.huggingface").HFLM(pretrained=model, tokenizer=used, batch_size=16),
        tasks=tasks,
        task_manager=importlib.import_module("lm_eval.tasks").TaskManager(
            include_path=str(tmp_path / "tasks"), include_defaults=False
        ),
        random_seed=None, numpy_random_seed=None, torch_random_seed=None,
    )  # fmt: skip
    for task in METRICS:
        samples = sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"]))
        pairs = [(prompt, answer) for sample in samples for prompt, answer in sample["arguments"]]
        assert all(answer.startswith(quality.DELIMITER) for _, answer in pairs)
        bare = [(prompt, answer.removeprefix(quality.DELIMITER)) for prompt, answer in pairs]
        scores = [score for sample in samples for ((score, _greedy),) in sample["resps"]]
        assert quality.log_likelihoods(model, used, bare, batch_size=16) == pytest.approx(scores, rel=1e-6)
        for metric, right in quality.grade(model, used, asked, task=task, batch_size=16).items():
            assert [bool(sample[metric]) for sample in samples] == right.tolist()


def test_a_folder_is_evaluated_like_its_model(harness: Any, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    asked = questions(8)
    model.save_pretrained(str(tmp_path / "bob"))
    tokenizer.save_pretrained(str(tmp_path / "bob"))
    quality.write_task(asked, tmp_path / "tasks")
    state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
    found = quality.evaluate(tmp_path / "bob", [NAME], limit=5, batch_size=64, include=tmp_path / "tasks")
    assert state == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]  # noqa: NPY002
    again = load_model(tmp_path / "bob")
    assert found == quality.multiple_choice(again, tokenizer, asked[:5], task=NAME)
    with pytest.raises(
        ValueError, match=r"unknown task 'radio_nam' in tasks; choose from NQ, .*radio_describe, radio_name"
    ):
        quality.evaluate(model, ["radio_nam"], tokenizer=tokenizer, include=tmp_path / "tasks")


def test_tasks_that_generate_are_read_with_their_filters(harness: Any, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"Question: {i}?", "answer": str(i)}) + "\n" for i in range(4)))
    settings = {
        "task": "counted", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
            for name, pattern in (("strict", "#### ([0-9]+)"), ("flexible", "([0-9]+)"))
        ],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "counted.yaml").write_text(yaml.safe_dump(settings))
    found = quality.evaluate(model, ["counted"], tokenizer=tokenizer, include=tmp_path / "tasks")
    assert [result.metric for result in found] == ["exact_match,strict", "exact_match,flexible"]
    assert all(result.count == 4 and 0 <= result.value <= 1 and result.stderr >= 0 for result in found)


def test_data_out_of_reach_are_named(harness: Any, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (path, _) = quality.write_task(questions(2), tmp_path)
    settings = yaml.safe_load(path.read_text()) | {"task": "far", "dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ConnectionError, match=r"the data of far could not be read: .*nothing.* connect to it, or use multip"
    ):
        quality.evaluate(model, ["far"], tokenizer=tokenizer, include=tmp_path)


def test_the_harness_knows_the_papers_tasks(harness: Any) -> None:
    known = importlib.import_module("lm_eval.tasks").TaskManager().all_tasks
    assert set(quality.TASKS.values()) <= set(known)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A harness that records how it is called and returns results in lm-eval's layout."""
    seen: dict[str, Any] = {}
    results = {
        "gsm8k": {
            "name": "gsm8k", "alias": "gsm8k", "sample_len": 50, "exact_match,strict-match": 0.1,
            "exact_match_stderr,strict-match": 0.04, "exact_match,flexible-extract": 0.2,
            "exact_match_stderr,flexible-extract": 0.05,
        },
        "mmlu": {"name": "mmlu", "alias": "mmlu", "sample_len": 57, "acc,none": 0.25, "acc_stderr,none": 0.01},
        "mmlu_stem": {"name": "mmlu_stem", "sample_len": 20, "acc,none": 0.3, "acc_stderr,none": 0.02},
        "humaneval": {"name": "humaneval", "sample_len": 9, "pass@1,create_test": 0.5, "pass@1_stderr,create_test": "N/A"},
    }  # fmt: skip

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        seen.update(arguments, allowed=os.environ.get("HF_ALLOW_CODE_EVAL"))
        return {"results": results}

    def fake(name: str, **members: Any) -> None:
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    fake("lm_eval", simple_evaluate=simple_evaluate)
    fake("lm_eval.models", __path__=[])
    fake("lm_eval.models.huggingface", HFLM=lambda **arguments: seen.setdefault("model_arguments", arguments))
    fake("lm_eval.tasks", TaskManager=lambda **arguments: SimpleNamespace(all_tasks=[], **arguments))
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    return seen


def test_results_are_read_from_the_harness(stand_in: dict[str, Any], model: Any, tokenizer: Any) -> None:
    found = quality.evaluate(model, ["MMLU", "GSM8k"], tokenizer=tokenizer, limit=50)
    assert found == [
        QualityResult("MMLU", "acc", 0.25, 0.01, 57),
        QualityResult("GSM8k", "exact_match,strict-match", 0.1, 0.04, 50),
        QualityResult("GSM8k", "exact_match,flexible-extract", 0.2, 0.05, 50),
    ]
    assert (stand_in["tasks"], stand_in["num_fewshot"], stand_in["limit"]) == (["mmlu", "gsm8k"], 0, 50)
    assert stand_in["model_arguments"]["trust_remote_code"] is False
    assert stand_in["confirm_run_unsafe_code"] is False and stand_in["allowed"] is None
    with pytest.raises(ValueError, match="task 'NQ' in tasks is a group without a number of its own"):
        quality.evaluate(model, ["NQ"], tokenizer=tokenizer)


def test_programs_are_run_only_when_asked_by_name(stand_in: dict[str, Any], model: Any, tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match=r"'HumanEval', which runs programs that the model writes .* confirm_run_unsafe_code"
    ):
        quality.evaluate(model, ["MMLU", "HumanEval"], tokenizer=tokenizer)
    assert not stand_in
    (found,) = quality.evaluate(model, ["HumanEval"], tokenizer=tokenizer, confirm_run_unsafe_code=True)
    assert (found.metric, found.value, found.count) == ("pass@1", 0.5, 9) and math.isnan(found.stderr)
    assert stand_in["confirm_run_unsafe_code"] is True and stand_in["allowed"] == "1"
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_wrong_arguments_are_named(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    def refused(message: str, tasks: Any = ("MMLU",), **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            quality.evaluate(model, tasks, **({"tokenizer": tokenizer} | changes))

    refused("unknown task 'mmlu' in tasks; choose from NQ, TriviaQA, GSM8k, HumanEval, MMLU", ["mmlu"])
    refused("tasks must be a list of names, got 'MMLU'", "MMLU")
    refused(r"tasks must be a list of names, got \[\]", [])
    refused("limit must be a whole number of questions from 2 on, or None, got 0.5", limit=0.5)
    refused("limit must be a whole number of questions from 2 on, or None, got 1", limit=1)
    refused("limit must be a whole number of questions from 2 on, or None, got nan", limit=math.nan)
    refused("batch_size must be at least 1, got 0", batch_size=0)
    refused("include must be a folder of task files", include=tmp_path / "absent")
    refused("tokenizer is missing", tokenizer=None)


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"lm-eval .*: pip install 'radio-utils\[quality\]'"):
        quality.evaluate(model, ["NQ"], tokenizer=tokenizer)
