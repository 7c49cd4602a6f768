"""Launches that compile for a GPU which is not there, and start nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class _AbsentGPU:
    """Answers what a launch asks of Triton's driver before it has compiled the kernel."""

    def __init__(self, name: str):
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> str:
        return self.name  # what compiled kernels are kept under: each target its own

    def get_current_stream(self, _device: str) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling(target: str) -> Iterator[list]:
    """Inside, a launch on CPU tensors takes its whole way but the start; yields what is compiled.

    So the specialisation that is inspected is the one that runs: nothing here repeats a signature.
    """
    jit_function = triton.runtime.jit.JITFunction
    plain_run, compiled = jit_function.run, []

    def run(self, *args, **kwargs):
        kernel = plain_run(self, *args, **(kwargs | {"warmup": True}))
        compiled.append(kernel)
        return kernel

    driver = triton.runtime.driver
    jit_function.run = run
    driver.set_active(_AbsentGPU(target))
    try:
        yield compiled
    finally:
        jit_function.run = plain_run
        driver.set_active(None)  # the machine's own, if it has one
