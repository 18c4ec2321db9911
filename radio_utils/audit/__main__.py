"""The command line: ``python -m radio_utils.audit --suspect bob --watermarked-texts marked.jsonl --key-env ALICE_KEY``.

The exit status is 0 when there is a verdict, whatever it says, and 2 when the audit was stopped, by one sentence. That of a
failure that nobody foresaw says where its traceback was written.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import traceback
from pathlib import Path

from radio_utils.audit import AuditError, Request, run
from radio_utils.audit.report import one_digit
from radio_utils.files import atomic_write
from radio_utils.suspects.endpoint import EndpointError


def main(arguments: list[str] | None = None) -> int:
    """Run one audit."""
    explained = Request.explained()
    parser = argparse.ArgumentParser(prog="radio_utils.audit", description="Was this model trained on text under this key?")
    for one in dataclasses.fields(Request):
        if one.name == "key":  # never on a command line, where other users see it
            continue
        name = f"--{one.name.replace('_', '-')}"
        if one.type == "bool":
            parser.add_argument(name, nargs="?", const=True, default=False, metavar="yes|no", help=explained[one.name])
            continue
        kind = {"int": int, "float": float}.get(str(one.type), str)
        required = one.default is dataclasses.MISSING
        default = None if required else one.default
        shown = explained[one.name] + ("" if default in (None, "") else f" Default: {default}.")
        parser.add_argument(name, type=kind, required=required, default=default, help=shown.replace("%", "%%"))
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("radio_utils").setLevel(logging.INFO)  # not the root: clients log addresses, credentials and all
    try:
        verdict = run(Request(**vars(options)), progress=True)
    except (AuditError, EndpointError, OSError) as error:  # the last: a disk that is full, a folder that is not ours
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: stopped by you; what was gathered is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:  # the last line of defence: whatever was not foreseen is a fault of ours, and says so
        print(f"error: {_unforeseen(error, options.output_dir)}", file=sys.stderr)
        return 2
    p = "" if verdict.outcome == "void" else f": log10 p = {one_digit(verdict.log10_p)}"
    print(f"{verdict.outcome}{p} at alpha = {verdict.alpha:g}; {verdict.report}")
    return 0


def _unforeseen(error: Exception, folder: str) -> str:
    """One sentence about a failure that has none of its own; the traceback goes to a file, and holds no values."""
    said = " ".join(str(error).split())
    what = f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
    try:
        path = Path(folder).expanduser() / "failure.txt"
        atomic_write(path, "".join(traceback.format_exception(error)))
        where = f"its traceback is in {path}"
    except (OSError, RuntimeError, ValueError):
        where = "its traceback could not be written"
    return f"the audit failed in a way that it does not know ({what}); {where}, please report it"


if __name__ == "__main__":
    sys.exit(main())
