"""Kernels for arithmetic on the weights of neural networks: tensors in, tensors out."""

import lazy_loader

# names are imported on first use: the CPU path below the public operations works without torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
