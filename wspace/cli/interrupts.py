"""Ctrl-C and SIGTERM: the work ends within a second, whatever it is in the middle of."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 0.7
"""For an orderly end. What is on the disk is whole at any time, so there is no need of one."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the work as Ctrl-C does."""


def status_of(error: KeyboardInterrupt) -> int:
    """The exit status that a shell expects."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def prompt_interrupts(said: str) -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated in the work; end the process, where that is not enough.

    A kernel or a write to a slow disk may keep Python from seeing a signal: a thread sees it at
    once, and after ``GRACE_SECONDS`` says ``said`` and ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have handlers
        return
    arrived, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, _terminate)
    over = threading.Event()

    def watch() -> None:
        while number := arrived.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not over.wait(GRACE_SECONDS):
                if said:
                    print(said, file=sys.stderr, flush=True)
                os._exit(128 + number[0])

    watcher = threading.Thread(target=watch, daemon=True, name="wspace-signals")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        told.close()  # the watcher reads the end
        watcher.join()
        arrived.close()


def _terminate(number: int, frame: object) -> None:
    raise Terminated
