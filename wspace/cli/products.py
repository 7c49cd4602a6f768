"""The Gram matrix that a command needs: from the models, or from sums that are there already."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wspace.cli.options import device_of, note, progress_bar
from wspace.errors import WspaceError

if TYPE_CHECKING:
    from wspace.grams import Gram
    from wspace.team import Team
    from wspace.zoo import Zoo


def add_sums(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sums", metavar="FOLDER",
        help="where --range leaves its sums; without --range they are joined, and no model is read",
    )  # fmt: skip
    parser.add_argument(
        "--range", metavar="I/N",
        help="only sum over one of N ranges of the parameters, 0/N to N-1/N, into --sums FOLDER",
    )  # fmt: skip


def gram_of(options: argparse.Namespace, zoo: Zoo, team: Team, what: str) -> Gram | None:
    """None where only a range was to be summed."""
    from wspace.grams import gram
    from wspace.placement import products_job
    from wspace.sums import joined, save_share

    if options.sums and team.share.n > 1 and team.meets:
        raise WspaceError("--sums is for --range; torchrun's processes send theirs to the first")
    if options.range and not options.sums:
        raise WspaceError("--range needs --sums FOLDER, where its sums are kept to be joined")
    if options.sums and not options.range:
        return joined(zoo, options.sums)
    device = device_of(options, products_job(zoo, len(zoo)), team)
    work = {
        "device": device, "memory": options.memory, "allow_non_finite": options.allow_non_finite,
    }  # fmt: skip
    with progress_bar(options, what) as progress:
        if not options.range:
            return gram(zoo, per_tensor=False, progress=progress, team=team, **work)
        made = save_share(zoo, team.share, options.sums, progress=progress, **work)
    done = "is summed" if made else "is there already"
    note(options, f"range {team.share} {done}; --sums {options.sums} without --range joins them")
    return None
