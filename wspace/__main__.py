"""The command ``wspace``, and ``python -m wspace``."""

from wspace.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
