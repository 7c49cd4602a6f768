"""``python -m wkernels.gpu.compiled``: what the compiler makes of every kernel, on stdout."""

from __future__ import annotations

import argparse
import json
import sys

from wkernels.gpu.compiled.cases import CASES
from wkernels.gpu.compiled.table import as_text, compile_all
from wkernels.gpu.compiled.targets import TARGETS
from wkernels.gpu.elements import INTERPRETED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m wkernels.gpu.compiled", description=__doc__)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument(
        "--case", action="append", choices=CASES, metavar="NAME", help="default: all"
    )
    arguments = parser.parse_args()
    if INTERPRETED.value:
        print("error: TRITON_INTERPRET is set: kernels are not compiled", file=sys.stderr)
        return 1
    rows = compile_all(arguments.target or list(TARGETS), arguments.case or list(CASES))
    print(json.dumps(rows, indent=1) if arguments.format == "json" else as_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
