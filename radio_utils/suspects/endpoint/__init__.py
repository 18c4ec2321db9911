"""Suspects behind an API: any server that speaks OpenAI's protocol.

Every answer costs money, so it is written to a log, line by line, and is on the disk before it counts: what was answered is
never asked again, after an error, a crash or a change of one's mind. A request is known by a hash of the server, the model,
the sampling, the prompt's text and the number of times that this prompt was asked before. Each attempt to send one is noted
in the log *before* it is made, so a budget of requests holds whatever happens. No key and no password is written there.

What a server says of one prompt is not taken for the whole server. Settings are the same for all prompts, so where another
was answered, a refusal is about the prompt: its answer is empty, and the log says why. A setting that is refused by name
before anything was answered is left out, and the log says that too.
"""

from radio_utils.suspects.endpoint.errors import BudgetError, EndpointError, ListingError
from radio_utils.suspects.endpoint.log import Usage
from radio_utils.suspects.endpoint.pacing import Clock
from radio_utils.suspects.endpoint.suspect import KINDS, EndpointSuspect

__all__ = ["KINDS", "BudgetError", "Clock", "EndpointError", "EndpointSuspect", "ListingError", "Usage"]
