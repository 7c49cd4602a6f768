"""Works divided among devices: by whole tensors, as thresholds and factors are of whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from threading import Event, Lock
from typing import NamedTuple, TypeVar

from wspace import profiling
from wspace.devices import Cpu, Device
from wspace.elementwise.work import Cost, Work, cost_of, layout_of
from wspace.errors import BudgetError
from wspace.shares import dealt

T = TypeVar("T")

Count = Callable[[int], None]
"""Called with the bytes of each chunk that was read."""


class Lane(NamedTuple):
    """What one device does."""

    worker: Device
    works: Sequence[Work]
    budget: int  # bytes


LANES = 4
"""On a CPU: more would need as many times the buffers."""

UNEVEN = 1.15
"""Of the mean, bytes of a lane on a CPU at most: the processors of the others would be idle."""


def lanes_of(works: Sequence[Work], device: Device, budget: int) -> list[Lane]:
    """Of several GPUs as many as the budget has buffers for; each has about as many bytes.

    A CPU's processors are divided too, if none has much more to do, and nothing is read more often
    for want of memory: what a lane does in one thread, or in Python, keeps no other waiting.
    """
    if isinstance(device, Cpu):
        return _of_processors(works, device, budget)
    devices = getattr(device, "devices", [device])
    for n in range(len(devices), 1, -1):
        with suppress(BudgetError):
            lanes = _divided(works, devices[:n], budget)
            for lane in lanes:
                for work in lane.works:
                    layout_of(work, lane.worker, lane.budget)
            return lanes
    return [Lane(devices[0], works, budget)]


def _divided(works: Sequence[Work], devices: Sequence[Device], budget: int) -> list[Lane]:
    owners = iter(dealt(_sizes(works), len(devices)))
    shares: list[list[Work]] = [[] for _ in devices]
    for work in works:
        own = [next(owners) for _ in work.zoo.tensors]
        for number in sorted(set(own)):
            shares[number].append(_some_of(work, [k for k, o in enumerate(own) if o == number]))
    n = sum(map(bool, shares))
    pairs = zip(devices, shares, strict=True)
    return [Lane(device, share, budget // n) for device, share in pairs if share]


def _of_processors(works: Sequence[Work], device: Cpu, budget: int) -> list[Lane]:
    alone, n = [Lane(device, works, budget)], min(device.threads, LANES)
    if n == 1:
        return alone
    with suppress(BudgetError):
        lanes = _divided(works, [Cpu(device.threads // n) for _ in range(n)], budget)
        sizes = [sum(_sizes(lane.works)) for lane in lanes]
        even = len(lanes) == n and max(sizes) * n <= UNEVEN * sum(sizes)
        if even and cost_of_lanes(lanes).read_bytes <= cost_of_lanes(alone).read_bytes:
            return lanes
    return alone


def _sizes(works: Sequence[Work]) -> list[int]:
    """Bytes of each tensor that are read."""
    tensors = chain(*(work.zoo.tensors for work in works))
    return [sum([stored.read_bytes for stored in tensor.stored]) for tensor in tensors]


def _some_of(work: Work, which: Sequence[int]) -> Work:
    """Some of its tensors."""
    tensors = tuple([work.zoo.tensors[k] for k in which])
    uses = [
        replace(
            use,
            choices=tuple([use.choices[k] for k in which]),
            names=tuple([use.names[k] for k in which]),
        )
        for use in work.uses
    ]
    return replace(work, zoo=replace(work.zoo, tensors=tensors), uses=tuple(uses))


def cost_of_lanes(lanes: Iterable[Lane]) -> Cost:
    """All of them work at the same time. Raises BudgetError."""
    costs = [[cost_of(work, lane.worker, lane.budget) for work in lane.works] for lane in lanes]
    return Cost(
        sum(cost.read_bytes for cost in chain(*costs)),
        sum(max((cost.held_bytes for cost in lane), default=0) for lane in costs),
    )


@profiling.stage(profiling.PASS)
def at_once(jobs: Sequence[Callable[[Count], T]], progress: Count) -> list[T]:
    """What each job returns; with several, each is in a thread of its own.

    The first error of one is raised. It ends the others when they next tell their progress, and so
    does an interruption.
    """
    if len(jobs) == 1:
        return [jobs[0](progress)]
    stop, lock = Event(), Lock()

    def follow(nbytes: int) -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            progress(nbytes)

    def timed(job: Callable[[Count], T]) -> T:
        with profiling.part(1 / len(jobs)):
            return job(follow)

    with ThreadPoolExecutor(len(jobs), thread_name_prefix="wspace-lane") as pool:
        futures = [pool.submit(timed, job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
        return [future.result() for future in futures]
