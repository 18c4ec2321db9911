"""The tests of a suspect, a class each. A new test is a module here and an entry in ``TESTS``, and nothing else.

Plan, testing, verdict and report know a test by what :class:`radio_utils.audit.tests.base.SuspectTest` says of it.
"""

from __future__ import annotations

from radio_utils.audit.tests.answers import AllAnswers, WatchedAnswers
from radio_utils.audit.tests.base import SuspectTest
from radio_utils.audit.tests.contrastive import ContrastiveReading
from radio_utils.audit.tests.reading import SupervisedReading, UnsupervisedReading
from radio_utils.audit.tests.soft import SoftReading

__all__ = ["TESTS", "SuspectTest", "named"]

# In the order in which they are run and reported. Contrastive reading of plain text comes first: no text can whisper into
# it. Soft reading comes last, as it applies where nothing better does. What the watched test is answered goes on to the
# test of all answers.
TESTS: tuple[SuspectTest, ...] = (
    ContrastiveReading(), SupervisedReading(), UnsupervisedReading(), WatchedAnswers(), AllAnswers(), SoftReading(),
)  # fmt: skip


def named(name: str) -> SuspectTest:
    """The test of that name. Raises ``KeyError`` for none."""
    return {test.name: test for test in TESTS}[name]
