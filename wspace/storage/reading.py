"""Reading byte ranges of many files into buffers, in several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from wspace.errors import CheckpointError
from wspace.profiling import READ, stage
from wspace.storage.checkpoints import Derived, StoredTensor
from wspace.storage.headers import BITS
from wspace.storage.local import PastCache, exceeds_cache, read_exactly
from wspace.storage.pace import REQUESTS
from wspace.storage.remote import FAR_REQUEST, Location, RemotePath

REQUEST = 8 << 20
"""Bytes of one read call, and of one thread's task."""

DERIVED_REQUEST = 1 << 20
"""The same where they are computed: a thread holds some multiple of it meanwhile."""


class Range(NamedTuple):
    """Bytes to fetch: from a file, from a tensor's memory, or computed."""

    path: Location
    start: int
    nbytes: int
    target: int  # where in the buffer
    memory: np.ndarray | None = None
    derived: Derived | None = None


def append_range(
    ranges: list[Range], path: Location, tensor: StoredTensor, start: int, nbytes: int, target: int
) -> None:
    """Add bytes ``start ..`` of a tensor; one that continues the last range makes it longer."""
    if nbytes == 0:
        return
    if tensor.memory is not None:
        ranges.append(Range(path, start, nbytes, target, tensor.memory))
        return
    start += tensor.record.start
    if tensor.derived is not None:
        ranges.append(Range(path, start, nbytes, target, derived=tensor.derived))
        return
    if ranges:
        last = ranges[-1]
        follows = last.start + last.nbytes == start and last.target + last.nbytes == target
        if follows and last.path == path and last.memory is None and last.derived is None:
            ranges[-1] = last._replace(nbytes=last.nbytes + nbytes)
            return
    ranges.append(Range(path, start, nbytes, target))


def read_elements(path: Location, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    """The bytes of elements ``start .. stop``, read in the calling thread."""
    width = BITS[tensor.record.dtype] // 8
    buffer = np.empty((stop - start) * width, np.uint8)
    ranges: list[Range] = []
    append_range(ranges, path, tensor, start * width, len(buffer), 0)
    if ranges:
        _fill(ranges, buffer)
    return buffer


class Reader:
    """A pool of threads that fill buffers. ``preadv`` runs without Python's lock."""

    def __init__(self, threads: int, nbytes: int = 0, largest: int = REQUESTS[-1]) -> None:
        """``nbytes``: what will be read in all; if that exceeds the page cache, files are read past
        it. ``largest``: bytes that each thread may hold for that."""
        way = PastCache(threads, largest) if exceeds_cache(nbytes) else None
        self._pool = ThreadPoolExecutor(threads, "wspace-read", initializer=_begin, initargs=(way,))

    def submit(self, ranges: Sequence[Range], buffer: np.ndarray) -> list[Future[None]]:
        """Start reading; the buffer (uint8) is full when every future is done."""
        return [self._pool.submit(_read, task, buffer) for task in _tasks(ranges)]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _tasks(ranges: Sequence[Range]) -> list[list[Range]]:
    """Large ranges cut, small ones of local files together: about ``REQUEST`` bytes a task."""
    tasks: list[list[Range]] = []
    room = 0
    for whole in ranges:
        size = REQUEST if whole.derived is None else DERIVED_REQUEST
        far = isinstance(whole.path, RemotePath) and whole.derived is None
        if far:
            size, room = FAR_REQUEST, 0
        for offset in range(0, whole.nbytes, size):
            nbytes = min(size, whole.nbytes - offset)
            if nbytes > room:
                tasks.append([])
                room = REQUEST
            part = whole._replace(
                start=whole.start + offset, target=whole.target + offset, nbytes=nbytes
            )
            tasks[-1].append(part)
            room = 0 if far else room - nbytes  # far ones wait for the server, each in a thread
    return tasks


_own = threading.local()


def _begin(way: PastCache | None) -> None:
    """How the thread reads files, also those that a derived tensor is computed from."""
    _own.way = way


def _read(task: Sequence[Range], buffer: np.ndarray) -> None:
    with stage(READ, sum(part.nbytes for part in task)):
        _fill(task, buffer)


def _fill(task: Sequence[Range], buffer: np.ndarray) -> None:
    way: PastCache | None = getattr(_own, "way", None)
    read = way.read_exactly if way else read_exactly
    path, descriptor = None, -1
    part = task[0]
    try:
        for part in task:
            view = buffer[part.target : part.target + part.nbytes]
            if part.memory is not None:
                view[:] = part.memory[part.start : part.start + part.nbytes]
                continue
            if part.derived is not None:
                part.derived.fill(part.start, view)
                continue
            if isinstance(part.path, RemotePath):
                part.path.read_into(view, part.start)
                continue
            if part.path != path:
                if descriptor >= 0:
                    os.close(descriptor)
                    descriptor = -1
                descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                path = part.path
            read(descriptor, view, part.path, part.start)
    except OSError as error:
        raise CheckpointError(f"{part.path}: cannot be read: {error.strerror}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
