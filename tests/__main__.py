"""Everything that a change must pass: ``python -m tests``. Lint, format, types, tests."""

import subprocess
import sys

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright", "--pythonpath", sys.executable),
    # a file's tests share what they make, so they stay together; benchmarks are timed elsewhere
    ("pytest", "-q", "-n=logical", "--maxprocesses=8", "--dist=loadfile", "--benchmark-disable"),
)

for check in CHECKS:
    print("$", *check, flush=True)
    status = subprocess.run([sys.executable, "-m", *check], check=False).returncode
    if status:
        sys.exit(status)
