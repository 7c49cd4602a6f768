"""Arguments, errors and exit statuses; each command is in a module of its own."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from wspace.cli import check, cluster, demo, distances, experiment, index, inspect, merge, verify
from wspace.cli.interrupts import prompt_interrupts, status_of
from wspace.cli.options import MISTAKES
from wspace.cli.tables import printable
from wspace.errors import WspaceError
from wspace.team import torchrun_rank
from wspace.version import VERSION

COMMANDS = {
    "inspect": inspect,
    "index": index,
    "distances": distances,
    "cluster": cluster,
    "merge": merge,
    "verify": verify,
    "check": check,
    "demo": demo,
    "experiment": experiment,
}


SAYING_SECONDS = 1.0
"""What all of torchrun's processes find, the first says: it is ended when another one has ended."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and the exit status of every mistake that a user can make."""
        if torchrun_rank():
            time.sleep(SAYING_SECONDS)
            self.exit(1)
        self.exit(1, f"error: {message} (try '{self.prog} --help')\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="wspace",
        description="Arithmetic on the weights of neural networks, at the speed of the hardware.",
        epilog="example: wspace merge runs/* --uniform -o soup",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"wspace {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is one line on stderr, and 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a file name that is not UTF-8 is printed as it is
        sys.stdout.reconfigure(errors="surrogateescape")
    options = parser().parse_args(arguments)
    command = COMMANDS[options.command]
    interrupted = getattr(command, "INTERRUPTED", "interrupted; nothing was written")
    rank = torchrun_rank()
    if rank:
        interrupted = ""
    try:
        if rank is not None and not hasattr(options, "range"):
            raise WspaceError(
                f"wspace {options.command} is done by one process: run it without torchrun"
            )
        with prompt_interrupts(interrupted):
            command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return status_of(error)
    except MISTAKES as error:
        if rank and not hasattr(options, "range"):
            time.sleep(SAYING_SECONDS)
        else:
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {printable(text)}", file=sys.stderr)
        return 1
    return 0
