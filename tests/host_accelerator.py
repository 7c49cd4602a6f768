"""An accelerator on host memory: streams are threads, which take their time; nothing is pretended.

What a GPU's streams may do to each other these do too: work of different streams overlaps in any
way that events allow, so a missing event shows as a wrong result.
"""

import queue
import random
import threading
import time

import numpy as np
import torch

INTERPRETER = threading.Lock()
"""Triton's runs one kernel at a time: it keeps the place in the grid for all threads."""


class Stream:
    """A thread that does what it is given, in order, and pauses at random before it."""

    def __init__(self, name, pauses):
        self.name = name
        self._todo, self._pauses = queue.SimpleQueue(), pauses
        self.error = None
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, step):
        self._todo.put(step)

    def pause(self):
        time.sleep(self._pauses.random() * 0.004)

    def _work(self):
        while True:
            step = self._todo.get()
            try:
                step()
            except Exception as error:  # told where someone waits for the stream
                self.error = error


class Event:
    def __init__(self, stream):
        self.stream, self.happened = stream, threading.Event()


class HostAccelerator:
    """``steps`` counts what streams were given."""

    def __init__(self, seed=0):
        self._pauses = random.Random(seed)
        self._streams = []
        self.steps = 0

    def host_memory(self, nbytes):
        return np.full(nbytes, 0x5A, np.uint8)

    def memory(self, nbytes):
        return torch.full((nbytes,), 0xA5, dtype=torch.uint8)

    def stream(self):
        self._streams.append(Stream(len(self._streams), self._pauses))
        return self._streams[-1]

    def copy(self, stream, target, source):
        self.step(stream, lambda: torch.as_tensor(target).copy_(torch.as_tensor(source)))

    def run(self, stream, work):
        def alone():
            with INTERPRETER:
                work()

        self.step(stream, alone)

    def step(self, stream, work):
        def paused():
            stream.pause()
            work()

        self.steps += 1
        stream.put(paused)

    def record(self, stream):
        event = Event(stream)
        stream.put(event.happened.set)
        return event

    def wait(self, stream, event):
        stream.put(event.happened.wait)

    def synchronize(self, event):
        assert event.happened.wait(600), "a stream hangs"
        if event.stream.error is not None:
            raise event.stream.error
