"""Shared by all tests. Triton reads TRITON_INTERPRET when a kernel's module is first imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
