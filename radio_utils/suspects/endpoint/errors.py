"""What ends the asking of an endpoint."""

from __future__ import annotations


class EndpointError(RuntimeError):
    """A server that could not be asked on. Its message is one sentence: what happened, what is safe, what to do."""


class BudgetError(EndpointError):
    """The budget of requests is spent."""


class ListingError(EndpointError):
    """A server that was reached and does not list its models; it may answer all the same."""
