"""What many machines would take, worked out from rates measured on one: ``python -m bench.nodes``.

A job on N nodes takes what its slowest stage takes, as all stages run at once: a node's share of
the bytes at the rate at which it reads, or its share of the operations at the rate of its
processors; and then, once, the n x n sums of each rank, sent to the first one after the other. The
rates of a processor and of the disk are those of ``bench.ranks`` on this machine; how many
processors a node has and how fast it reads are assumed, and said beside the figures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import limits

MODELS, PARAMETERS, NODES, WIDTH = 1000, 70.6e9, 64, 2
PROCESSORS = 64
"""Of a node, whose one rank has all of them."""

READS = (("this machine's disk", 0.0), ("a network of 25 Gbit/s", 3e9), ("four NVMe drives", 20e9))
"""Bytes a second that a node reads; 0: as measured."""

LINK = 1e9
"""Bytes a second between two nodes."""

TEXT = """\
## {models:,} models of {parameters} parameters in bfloat16 on {nodes} nodes

Measured here: products at {gram:.1f} Gflop/s a processor (n (n + 1) operations a column), a mean
at {mean:.2f} GB/s a processor from the page cache, the disk at {cold:.2f} GB/s past it. Assumed:
{nodes} nodes of {processors} such processors with one rank each, read rates below from all nodes
at once, {link:.0f} GB/s between two nodes.

Read, each byte once: {read:.0f} TB, {read_each:.2f} TB a node. Gram matrix: {flops:.1f}e15
operations, and {sums:.0f} MB of sums from each rank at its end, {sending:.1f} s in all. Written by
a mean: {written:.0f} GB, {written_each:.1f} GB a node.
"""

AFTER = """\
The processors of a node keep up with {balance:.1f} GB/s of a Gram matrix of {models:,}; where it
reads more slowly, nodes are added for their disks. Memory of a rank: chunks of {chunk:.0f} MB, and
some ten matrices of {matrix:.0f} MB. A rank that dies costs a merge what was not journaled, about a
second; a Gram matrix all its sums, so take `--range I/640 --sums` in a job array: ten ranges a
node, of which only those at work are lost.
"""


def in_words(rates: dict[str, float]) -> list[str]:
    """The plan, line by line, in Markdown."""
    read = (MODELS + 1) * PARAMETERS * WIDTH
    written = PARAMETERS * WIDTH
    flops = MODELS * (MODELS + 1) * PARAMETERS
    gram, mean = rates["gram_flops"] * PROCESSORS, rates["mean_bytes"] * PROCESSORS
    sums = 2 * 8 * MODELS**2
    sending = sums * (NODES - 1) / LINK
    text = TEXT.format(
        models=MODELS, parameters=f"{PARAMETERS / 1e9:.1f}e9", nodes=NODES, processors=PROCESSORS,
        gram=rates["gram_flops"] / 1e9, mean=rates["mean_bytes"] / 1e9,
        cold=rates["cold_bytes"] / 1e9, link=LINK / 1e9, read=read / 1e12,
        read_each=read / NODES / 1e12, flops=flops / 1e15, sums=sums / 1e6, sending=sending,
        written=written / 1e9, written_each=written / NODES / 1e9,
    )  # fmt: skip
    lines = [
        "| a node reads from | GB/s | Gram matrix | held up by | mean | held up by |",
        "|---|---|---|---|---|---|",
    ]
    for name, rate in READS:
        rate = rate or rates["cold_bytes"]
        reading = read / NODES / rate
        cells = [name, f"{rate / 1e9:.1f}"]
        stages = ((flops / NODES / gram, sending), (read / NODES / mean, written / NODES / rate))
        for computing, afterwards in stages:
            cells.append(_time(max(reading, computing) + afterwards))
            cells.append("reading" if reading > computing else "processors")
        lines.append(f"| {' | '.join(cells)} |")
    after = AFTER.format(
        balance=gram / MODELS * WIDTH / 1e9, models=MODELS, matrix=8 * MODELS**2 / 1e6,
        chunk=3 * 16384 * (MODELS + 1) * WIDTH / 1e6,
    )  # fmt: skip
    return [*text.splitlines(), "", *lines, "", *after.splitlines(), ""]


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 300 else f"{seconds:.0f} s"


def main() -> int:
    path = Path(__file__).parent / "results" / limits.machine_name() / "ranks.json"
    print("\n".join(in_words(json.loads(path.read_text())["rates"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
