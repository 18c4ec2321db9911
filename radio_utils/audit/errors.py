"""What stops an audit: one sentence that names the input at fault and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class AuditError(ValueError):
    """An audit that cannot go on. Its message is one sentence for a person, who needs no traceback to act on it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def blamed(name: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds as an :class:`AuditError` that names the parameter."""
    try:
        yield
    except AuditError:
        raise
    except kinds as error:
        raise AuditError(f"{name}: {error}") from error
