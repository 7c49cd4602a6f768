"""The CPU and the GPU launchers under one signature, for tests that hold for both."""

from wkernels import cpu, ops
from wkernels.gpu import products, statistics


class Gpu:
    """The Triton kernels; in the tests they are interpreted, on CPU tensors."""

    products = staticmethod(products.launch)
    row_moments = staticmethod(statistics.launch)


class Cpu:
    """The numba kernels, as ``wkernels.ops`` calls them."""

    @staticmethod
    def products(op, rows, columns, base, segments, out):
        others = None if columns is None else ops._pointers(columns)
        origin = ops._pointers([] if base is None else [base])
        cpu.products(op, ops._pointers(rows), others, origin, segments, out.numpy(), threads=2)

    @staticmethod
    def row_moments(rows, base, segments, sums):
        origin = ops._pointers([] if base is None else [base])
        cpu.row_moments(ops._pointers(rows), origin, segments, sums.numpy(), threads=2)
