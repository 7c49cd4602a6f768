"""The element types that the kernels read and write. Imports nothing: merges do without torch."""

FLOATS = {  # name, as torch spells it -> bytes per element
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Types that can be read. A type's place in this table is its code inside the kernels."""

OUTPUTS = ("float64", "float32", "float16", "bfloat16")
"""Types that can be written."""

CODES = {name: code for code, name in enumerate(FLOATS)}


def compute_type(*names: str) -> str:
    """``float64`` if any of the types is float64, else ``float32``: products and sums use this."""
    return "float64" if "float64" in names else "float32"
