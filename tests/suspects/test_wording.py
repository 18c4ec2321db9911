"""Prompts on their way to a server: what opens a text stays behind, a chat template does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import words

from radio_utils.suspects.endpoint.wording import Wording

ASKED = "<|turn|>user\n a b<|end|>\n<|turn|>assistant\n"
SYSTEM = "<|turn|>system\n s<|end|>\n"
EARLIER = "<|turn|>user\n x<|end|>\n<|turn|>assistant\n y<|end|>\n"


@pytest.mark.parametrize(
    ("text", "completions", "chat"),
    [
        (" a b", " a b", " a b"),
        ("<|turn|> a b", " a b", " a b"),  # an opening, which the server sets itself
        ("<|end|><|end|> a b<|end|>", " a b", " a b"),
        (ASKED, ASKED, " a b"),
        (EARLIER + ASKED, EARLIER + ASKED, " x<|end|>\n<|turn|>assistant\n y<|end|>\n<|turn|>user\n a b"),
        (
            "<|turn|>system\n s<|end|>\n" + ASKED,
            "<|turn|>system\n s<|end|>\n" + ASKED,
            "system\n s\nuser\n a b\nassistant\n",
        ),
        ("<|turn|><|end|>", "", ""),
    ],
)
@pytest.mark.parametrize("begins", [False, True])
def test_what_is_sent(text: str, completions: str, chat: str, begins: bool, tmp_path: Path) -> None:
    tokenizer = words.save_tokenizer(tmp_path, begins=begins)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    sent = [Wording(tokenizer, kind).text(ids) for kind in ("completions", "chat")]
    if begins and completions.startswith("<|turn|>"):
        completions = completions.removeprefix("<|turn|>")  # and the server's tokenizer sets it again
    assert sent == [completions, chat]


def test_without_a_template_of_its_own(tmp_path: Path) -> None:
    for template in (None, "{{ raise_exception('no') }}", "always the same"):
        tokenizer = words.save_tokenizer(tmp_path, template=template)
        ids = np.array(tokenizer(ASKED, add_special_tokens=False)["input_ids"])
        assert Wording(tokenizer, "completions").text(ids) == ASKED
        assert Wording(tokenizer, "chat").text(ids) == "user\n a b\nassistant\n"
