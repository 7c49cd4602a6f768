"""The command ``wspace``, and ``python -m wspace``."""

import gc

FEW = 50_000
"""Objects that a command makes before garbage is looked for: some 40,000 come with the imports,
and stay."""


def main() -> int:
    """See :func:`wspace.cli.main.main`."""
    gc.set_threshold(FEW)
    from wspace.cli.main import main as run

    try:
        return run()
    finally:
        gc.freeze()  # else the interpreter searches all that is left for garbage, and then ends


if __name__ == "__main__":
    raise SystemExit(main())
