"""The Triton path: one file an operation, its kernels and then the launcher that starts them.

Launchers take what the public operations have checked, write into ``out`` and allocate nothing but
small tables (addresses, blocks) and the stated workspace. Imported on first use of a GPU.
"""
