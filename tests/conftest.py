"""Shared by all tests. Triton reads TRITON_INTERPRET when a kernel's module is first imported."""

import os
import signal

os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would wait for those of others
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

from tests.paths import Cpu, Gpu
from wkernels import arguments

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# tests that were started in the background ignore SIGINT, and so would the programs that they start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_numbers():
    """What a test draws without a seed of its own is the same in every run, and in any order."""
    torch.manual_seed(0)


@pytest.fixture(params=[Cpu, Gpu], ids=["cpu", "gpu"])
def path(request, monkeypatch):
    """Every test that uses this runs on both paths; ``wkernels.ops`` takes the one it is."""
    monkeypatch.setattr(arguments, "on_gpu", lambda rows: request.param is Gpu)
    return request.param


@pytest.fixture
def counted(monkeypatch):
    """Bytes that were read from files, in ``counted[0]``."""
    total, preadv = [0], os.preadv

    def counting(*arguments):
        got = preadv(*arguments)
        total[0] += got
        return got

    monkeypatch.setattr(os, "preadv", counting)
    return total
