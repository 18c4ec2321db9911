"""The openings: five languages, the same subjects, texts of a like length that are not one another's copies."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from radio_utils.presets import load_preset
from radio_utils.world import openings

# frequent words; a few stand in two languages, but no text has more of another's than of its own
TELLING = {
    "en": "the of and to in is that it was with by from which as are has its",
    "de": "der die das und ist in den von mit ein eine einer auf als zu im des sich es wird",
    "es": "el la los las de y en que es un una por se con del su como más",
    "fr": "le la les des et de un une du en est que qui par dans sur pour au aux son",
    "it": "il la i gli le di e che un una in è per del della dei delle con da si",
}


def rows(language: str) -> list[dict[str, Any]]:
    file = resources.files("radio_utils.world.openings").joinpath(f"{language}.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_languages_are_those_of_the_presets() -> None:
    assert set(openings.LANGUAGES) == {"en", "de", "es", "fr", "it"} == set(load_preset("laptop").ablations.languages)


def test_the_same_subjects_in_the_same_order() -> None:
    subjects = {language: [row["subject"] for row in rows(language)] for language in openings.LANGUAGES}
    assert len(subjects["en"]) >= 60 and len(set(subjects["en"])) == len(subjects["en"])
    assert all(found == subjects["en"] for found in subjects.values())


@pytest.mark.parametrize("language", openings.LANGUAGES)
def test_each_is_an_opening(language: str) -> None:
    found = openings.load(language)
    assert found == [row["text"] for row in rows(language)] and len(set(found)) == len(found)
    for row in rows(language):
        assert set(row) == {"subject", "title", "text"} and row["title"].strip() == row["title"] != ""
        text = row["text"]
        assert 40 <= len(text.split()) <= 75, row["subject"]
        assert text == text.strip() and "\n" not in text and text[-1] in '.!?»")', row["subject"]


@pytest.mark.parametrize("language", openings.LANGUAGES)
def test_each_is_in_its_language(language: str) -> None:
    for row in rows(language):
        words = [word.strip(".,;:()«»\"'").lower() for word in row["text"].split()]
        telling = {other: sum(word in known.split() for word in words) for other, known in TELLING.items()}
        assert max(telling, key=telling.__getitem__) == language, row["subject"]


def test_no_two_languages_share_a_text() -> None:
    texts = [text for language in openings.LANGUAGES for text in openings.load(language)]
    assert len(set(texts)) == len(texts)


def test_the_digest_is_that_of_the_file() -> None:
    found = {openings.digest(language) for language in openings.LANGUAGES}
    assert len(found) == 5 and all(len(one) == 16 and int(one, 16) for one in found)
    assert openings.digest("it") == openings.digest("it")


@pytest.mark.parametrize("language", ["pt", "EN", "", "../en", "English"])
def test_unknown_languages_are_named(language: str) -> None:
    for ask in (openings.load, openings.digest):
        with pytest.raises(ValueError, match=rf"unknown language '{language}'; choose one of en, de, es, fr, it"):
            ask(language)


def test_the_licence_lies_beside_them() -> None:
    text = resources.files("radio_utils.world.openings").joinpath("LICENSE.md").read_text(encoding="utf-8")
    assert "MIT" in text and "original" in text


@pytest.fixture
def wikipedia(tmp_path: Path) -> str:
    """A data set in the hub's format: one configuration a language."""
    pytest.importorskip("datasets")
    folder = tmp_path / "wikipedia"
    (folder / "20231101.en").mkdir(parents=True)
    long = "A lighthouse is a tower that carries a light. " * 6
    rows = [{"text": f"{number}. {long}\n\nHistory follows."} for number in range(4)] + [{"text": "Too short."}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "20231101.en" / "train.jsonl").write_text(lines)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: 20231101.en\n  data_files:\n"
        "  - split: train\n    path: 20231101.en/train.jsonl\n---\n"
    )
    return str(folder)


def test_openings_of_a_data_set_are_first_sentences(wikipedia: str) -> None:
    found = openings.from_wikipedia("en", 3, dataset=wikipedia)
    assert len(found) == 3
    for text in found:
        assert 40 <= len(text.split()) < 60 and text.endswith(".") and "History" not in text


def test_too_few_articles_and_a_missing_data_set_are_named(wikipedia: str) -> None:
    with pytest.raises(openings.OpeningsError, match="4 usable articles in 'en', fewer than the 9"):
        openings.from_wikipedia("en", 9, dataset=wikipedia)
    with pytest.raises(openings.OpeningsError, match="cannot be read"):
        openings.from_wikipedia("de", 1, dataset=wikipedia)
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        openings.from_wikipedia("xx", 1, dataset=wikipedia)
