"""The CPU and the GPU launchers under one signature, for tests that hold for both."""

from wkernels import cpu
from wkernels.arguments import pointers_to
from wkernels.gpu import products, statistics


class Gpu:
    """The Triton kernels; in the tests they are interpreted, on CPU tensors."""

    products = staticmethod(products.launch)
    row_moments = staticmethod(statistics.launch)


class Cpu:
    """The numba kernels, as ``wkernels.ops`` calls them."""

    @staticmethod
    def products(op, rows, columns, base, segments, out):
        others = None if columns is None else pointers_to(columns)
        origin = pointers_to([] if base is None else [base])
        cpu.products(op, pointers_to(rows), others, origin, segments, out.numpy(), threads=2)

    @staticmethod
    def row_moments(rows, base, segments, sums):
        origin = pointers_to([] if base is None else [base])
        cpu.row_moments(pointers_to(rows), origin, segments, sums.numpy(), threads=2)
