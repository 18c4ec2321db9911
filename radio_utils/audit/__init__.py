"""The audit: was this suspect trained on text under this key?

>>> verdict = radio_utils.audit_suspect("bob", watermarked_texts="marked.jsonl", key_env="ALICE_KEY", window=1)
>>> print(verdict.outcome, verdict.log10_p, verdict.report)

:class:`Request` holds and checks the parameters, ``case`` reads and opens what they name, ``preflight`` looks for what is
wrong with it before anything costs, ``tests`` are a class each, ``plan`` settles which of them are run, ``report``
writes the verdict for people, and ``auditing`` is the whole way. Chapter "The audit" goes it in a notebook, ``python -m
radio_utils.audit`` in a shell.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from radio_utils.audit.auditing import check, run
from radio_utils.audit.errors import AuditError
from radio_utils.audit.request import Request, read_key
from radio_utils.audit.verdict import TestResult, Verdict

__all__ = ["AuditError", "Request", "TestResult", "Verdict", "audit_suspect", "check", "read_key", "run"]


def audit_suspect(suspect: str, *, watermarked_texts: str, progress: bool = False, **parameters: Any) -> Verdict:
    """Audit a suspect and write plan, verdict and report into ``output_dir``; the parameters are those of :class:`Request`.

    Raises :class:`AuditError`, one sentence that says what stopped it.
    """
    try:
        request = Request(suspect=suspect, watermarked_texts=watermarked_texts, **parameters)
    except TypeError as error:
        unknown = ", ".join(sorted(parameters.keys() - {one.name for one in dataclasses.fields(Request)})) or str(error)
        raise AuditError(f"unknown parameter {unknown}; an audit takes those of radio_utils.audit.Request") from error
    return run(request, progress=progress)
