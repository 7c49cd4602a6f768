"""Everything that a change must pass: ``python -m tests``. Lint, format, types, tests."""

import subprocess
import sys

# a file's tests share what they make, so they stay together, and in order: the last are short
SIDE_BY_SIDE = "-n=logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder"

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright", "--pythonpath", sys.executable),
    ("pytest", "-q", "--benchmark-disable", *SIDE_BY_SIDE.split()),
)

for check in CHECKS:
    print("$", *check, flush=True)
    status = subprocess.run([sys.executable, "-m", *check], check=False).returncode
    if status:
        sys.exit(status)
