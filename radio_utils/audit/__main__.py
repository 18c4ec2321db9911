"""The command line: ``python -m radio_utils.audit --suspect bob --watermarked-texts marked.jsonl --key-env ALICE_KEY``.

The exit status is 0 when there is a verdict, whatever it says, and 2 when the audit was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys

from radio_utils.audit import AuditError, Request, run
from radio_utils.audit.report import one_digit
from radio_utils.suspects.endpoint import EndpointError


def main(arguments: list[str] | None = None) -> int:
    """Run one audit."""
    parser = argparse.ArgumentParser(prog="radio_utils.audit", description="Was this model trained on text under this key?")
    for one in dataclasses.fields(Request):
        if one.name == "key":  # never on a command line, where other users see it
            continue
        name = f"--{one.name.replace('_', '-')}"
        if one.type == "bool":
            parser.add_argument(name, nargs="?", const=True, default=False, metavar="yes|no")
            continue
        kind = {"int": int, "float": float}.get(str(one.type), str)
        required = one.default is dataclasses.MISSING
        default = None if required else one.default
        shown = "" if default in (None, "", 0) else f"default {default}"
        parser.add_argument(name, type=kind, required=required, default=default, help=shown)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("radio_utils").setLevel(logging.INFO)  # not the root: clients log addresses, credentials and all
    try:
        verdict = run(Request(**vars(options)), progress=True)
    except (AuditError, EndpointError, OSError) as error:  # the last: a disk that is full, a folder that is not ours
        print(f"error: {error}", file=sys.stderr)
        return 2
    p = "" if verdict.outcome == "void" else f": log10 p = {one_digit(verdict.log10_p)}"
    print(f"{verdict.outcome}{p} at alpha = {verdict.alpha:g}; {verdict.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
