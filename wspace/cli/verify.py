"""``wspace verify``: whether outputs still are what was written."""

from __future__ import annotations

import argparse
import json

from wspace.cli.tables import show
from wspace.errors import CheckpointError
from wspace.sizes import format_bytes

SUMMARY = "read outputs again, and compare them with their checksums"
DESCRIPTION = """\
Reads every tensor and file of outputs of wspace merge again and compares them with the
checksums in wspace.json. Prints each one that differs; the exit status is then 1."""
EXAMPLE = "wspace verify merged --format json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", nargs="+", metavar="OUT", help="a folder that wspace wrote")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(options: argparse.Namespace) -> None:
    from wspace.storage.verifying import verify

    found = [verify(out) for out in options.outputs]
    if options.format == "json":
        content = [
            {
                "path": str(one.path), "ok": one.ok, "tensors": one.tensors, "files": one.files,
                "bytes": one.nbytes, "damages": [damage._asdict() for damage in one.damages],
            }
            for one in found
        ]  # fmt: skip
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        for one in found:
            if one.ok:
                counted = (
                    f"{one.tensors} tensors and {one.files} files ({format_bytes(one.nbytes)})"
                )
                print(f"{one.path}: {counted} are as they were written")
        rows = [[str(one.path), *damage] for one in found for damage in one.damages]
        if rows:
            show(["output", "kind", "name", "file", "problem"], rows, "table")
    damaged = [one for one in found if not one.ok]
    if damaged:
        one = damaged[0]
        names = ", ".join(damage.name for damage in one.damages[:3])
        more = f" and {len(one.damages) - 3} more" if len(one.damages) > 3 else ""
        others = f"; and {len(damaged) - 1} more outputs" if len(damaged) > 1 else ""
        raise CheckpointError(f"{one.path}: differs from what was written: {names}{more}{others}")
