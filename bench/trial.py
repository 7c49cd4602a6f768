"""Trials of what measures GPUs, without one: everything runs, and no figure means anything.

Kernels are interpreted, on tiny tensors, and the clock counts steps.
"""

from __future__ import annotations

import os
import sys

from bench import truth
from wkernels import arguments


def begin(module: str) -> None:
    """Makes this process one of trials; starts it anew where kernels would be compiled."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.stdout.flush()
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"TRITON_INTERPRET": "1"})
    arguments.on_gpu = lambda rows: True
    truth.PERIOD = 1000
