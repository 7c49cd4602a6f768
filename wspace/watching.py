"""Processes of one job that learn at once when one of them fails or dies.

Each has a connection to the first. A process that dies closes its end, whatever it died of; a
machine that is gone answers no probe. The first then says what happened and has all others end, in
the middle of whatever they do: what they have on the disk is whole at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

OWN_SECONDS = 1.0
"""What one process finds, mostly all do: so long the first waits for an error of its own."""

SAYING_SECONDS = 5.0
"""So long another waits for the first to say what it was told."""

PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Of a connection on which nothing is said; in seconds, and how many without an answer."""

LONGEST = 1 << 16
"""Bytes of a line."""


class Meeting(NamedTuple):
    """Where the first process listens, and what those say that belong to it."""

    port: int
    token: str


def say(text: str) -> None:
    print(f"error: {text}", file=sys.__stderr__, flush=True)  # whatever sys.stderr is now


def died(rank: int) -> str:
    return f"rank {rank} died; nothing was published: run the same command again"


@dataclass
class _Peer:
    rank: int = -1  # not known yet
    received: bytes = b""
    done: bool = False


class First:
    """The first process's side. ``end`` ends this process."""

    def __init__(
        self,
        n: int,
        host: str,
        say: Callable[[str], None] = say,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._say, self._end = say, end
        self._listener = socket.create_server((host, 0), backlog=n)
        self.meeting = Meeting(self._listener.getsockname()[1], secrets.token_hex(16))
        self._peers: dict[socket.socket, _Peer] = {}
        self._own, self._over = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="wspace-watch")
        self._thread.start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in selector.select(timeout=0.1):
                    if key.fileobj is self._listener:
                        with contextlib.suppress(OSError):
                            peer, _ = self._listener.accept()
                            _probe(peer)
                            self._peers[peer] = _Peer()
                            selector.register(peer, selectors.EVENT_READ)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    if not self._heard(key.fileobj):
                        selector.unregister(key.fileobj)
                        del self._peers[key.fileobj]
                        key.fileobj.close()

    def _heard(self, connection: socket.socket) -> bool:
        """Whether there may be more to hear."""
        peer = self._peers[connection]
        received = _received(connection)
        *lines, peer.received = (peer.received + received).split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
                if peer.rank >= 0 and "failed" in said:
                    self._failed(f"rank {peer.rank}: {said['failed']}")
                elif peer.rank >= 0:
                    peer.done = True
                elif said["token"] == self.meeting.token:
                    peer.rank = int(said["rank"])
                else:
                    return False  # one who does not belong here
            except (ValueError, KeyError, TypeError):
                return False
        if not received and peer.rank >= 0 and not peer.done:
            self._failed(died(peer.rank))
        return bool(received) and len(peer.received) < LONGEST

    def _failed(self, text: str) -> None:
        if not self._own.wait(OWN_SECONDS) and self._conclude(text):
            self._end(1)

    def _conclude(self, text: str | None, said: str = "end") -> bool:
        """Say it, then have the others end; the first time only."""
        with self._lock:
            if self._over.is_set():
                return False
            self._over.set()
            if text:
                self._say(text)
            for connection in list(self._peers):
                _tell(connection, {said: True})
            return True

    def failed(self, text: str | None) -> bool:
        """This process has failed: say so, and have the others end. Whether it was said."""
        self._own.set()
        self._conclude(text)
        return text is not None

    def close(self) -> None:
        """The work is done."""
        self._own.set()
        self._conclude(None, "done")
        self._thread.join()
        for connection in (*self._peers, self._listener):
            connection.close()


class Other:
    """The side of each of the others."""

    def __init__(
        self,
        rank: int,
        host: str,
        meeting: Meeting,
        say: Callable[[str], None] = say,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._rank, self._say, self._end = rank, say, end
        self._over = False
        self._first = socket.create_connection((host, meeting.port), timeout=60)
        self._first.settimeout(None)
        _probe(self._first)
        _tell(self._first, {"rank": rank, "token": meeting.token})
        self._thread = threading.Thread(target=self._watch, daemon=True, name="wspace-watch")
        self._thread.start()

    def _watch(self) -> None:
        told = b""
        while not told.endswith(b"\n") and (part := _received(self._first)):
            told += part
        if self._over or b"done" in told:
            return
        if not told and self._rank == 1:
            self._say(died(0))
        self._end(1)

    def failed(self, text: str | None) -> bool:
        """This process has failed: all are to end. Returns, when the first has said so, True."""
        self._over = True
        if not _tell(self._first, {"failed": text or "interrupted"}):
            return False
        self._thread.join(SAYING_SECONDS)
        return True

    def close(self) -> None:
        """The work is done."""
        self._over = True
        _tell(self._first, {"done": True})
        self._thread.join()  # until the first is done
        self._first.close()


def _tell(connection: socket.socket, said: dict) -> bool:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(said)[: LONGEST - 1].encode() + b"\n")
        return True
    return False


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(LONGEST)
    except OSError:
        return b""


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
