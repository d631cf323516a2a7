"""Connections between the processes of a run, over which each is informed of the death and the rank of another."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

GRACE = 20.0
"""Seconds from the message that another process has ended to the end of this one, whose collectives may not return."""
_CONNECT_TIMEOUT = 30.0
_MAX_REASON = 2000

Exchange = Callable[[Any], list[Any]]
"""Gathers a picklable value of every process, by rank, on every process."""


@dataclass(eq=False)
class _Peer:
    """Process at the other end of a connection."""

    rank: int
    who: str
    link: socket.socket
    received: bytes = b""
    left: bool = False


class Lifeline:
    """TCP connection from each process to the first one, which the operating system closes if a process dies.

    A process that leaves sends a message first. If a connection closes without one, or a process reports an error, then
    the first process informs all others. A process that has not ended by itself `GRACE` seconds later, because it waits
    in a collective for the process that has ended, ends with exit code 1.

    Args:
        rank: This process.
        processes: Number of processes.
        exchange: Function that gathers values of all processes; called in the constructor alone.
        address: Host name at which the other processes reach the first one; None for its own host name.

    Raises:
        ConnectionError: If a process cannot connect to the first one; on every process.
    """

    def __init__(self, rank: int, processes: int, exchange: Exchange, *, address: str | None = None) -> None:
        self.rank, self.processes = rank, processes
        self._who = f"host {socket.gethostname()}, pid {os.getpid()}"
        self._peers: dict[int, _Peer] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._all_left = threading.Event()
        self._leaving = threading.Event()
        self.ended: str | None = None
        """Description of the process that has ended early, with the cause; None if none has."""
        server = socket.create_server(("", 0), backlog=processes) if rank == 0 else None
        key = secrets.token_hex(16)
        place = exchange(None if server is None else (_hosts(address), server.getsockname()[1], key))[0]
        problem: str | None = None
        try:
            if server is None:
                self._peers[0] = _connect(*place, rank=rank, who=self._who)
            else:
                self._peers = _accept(server, place[2], processes)
        except OSError as error:
            problem = f"process {rank} of {processes} ({self._who}): {error}"
        finally:
            if server is not None:
                server.close()
        problems = [found for found in exchange(problem) if found is not None]
        if problems:
            self._close()
            raise ConnectionError(
                f"the processes cannot reach the first one, on {' or '.join(place[0])}: {'; '.join(problems)}"
            )
        names = exchange(self._who)
        for peer in self._peers.values():
            peer.who = names[peer.rank]
        self._thread = threading.Thread(target=self._watch, name="fastood-lifeline", daemon=True)
        self._thread.start()

    def wait_for_end_of_another(self, seconds: float) -> str | None:
        """Wait for the message that another process has ended, and return its description; None if none has."""
        self._news.wait(seconds)
        return self.ended

    def fail(self, reason: str) -> None:
        """Inform all processes that this one ends with an error, unless another one has ended before it."""
        with self._lock:
            known = self._news.is_set()
        self._leaving.set()
        if not known:
            shown = reason.strip()[:_MAX_REASON]
            text = f"process {self.rank} of {self.processes} ({self._who}) has failed: {shown}"
            if self.rank == 0:
                self._spread(text)
            else:
                self._send(self._peers[0], {"failed": text})
        self._close()

    def leave(self) -> None:
        """Wait until every process leaves, however long that takes, or one of them ends with an error."""
        if self.rank == 0:
            self._all_left_or_news()
            self._leaving.set()
            for peer in self._peers.values():
                self._send(peer, {"end": True})
        else:
            self._send(self._peers[0], {"left": True})
            self._all_left_or_news()
            self._leaving.set()
        self._close()

    def _all_left_or_news(self) -> None:
        if self.rank == 0 and all(peer.left for peer in self._peers.values()):
            return
        self._all_left.wait()

    def _watch(self) -> None:
        """Read the connections until they are closed; body of the thread."""
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                selector.register(peer.link, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select(timeout=1.0):
                    if not self._receive(key.data):
                        selector.unregister(key.fileobj)
                if self._leaving.is_set():
                    return
        self._all_left.set()

    def _receive(self, peer: _Peer) -> bool:
        """Read the messages of a process; return whether its connection is still needed."""
        try:
            data = peer.link.recv(4096)
        except OSError:
            data = b""
        peer.received += data
        *lines, peer.received = peer.received.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "left" in message:
                peer.left = True
                if all(other.left for other in self._peers.values()):
                    self._all_left.set()
            elif "end" in message:
                peer.left = True
                self._all_left.set()
            elif "failed" in message:
                peer.left = True
                self._spread(message["failed"])
        if data:
            return True
        if not peer.left and not self._leaving.is_set():
            name = f"process {peer.rank} of {self.processes} ({peer.who})"
            self._spread(f"{name} has ended without a message; it may have been killed")
        return False

    def _spread(self, text: str) -> None:
        """Store the first description of an end, send it to the other processes, and ensure that this process ends."""
        with self._lock:
            if self._news.is_set():
                return
            self.ended = text
            self._news.set()
        if self.rank == 0:
            for peer in self._peers.values():
                self._send(peer, {"failed": text})
        self._all_left.set()
        if not self._leaving.is_set():
            threading.Thread(target=self._end_soon, name="fastood-end", daemon=True).start()

    def _end_soon(self) -> None:
        if not self._leaving.wait(GRACE):
            print(f"error: {self.ended}; this process still waits for it, and ends now", file=sys.stderr, flush=True)
            os._exit(1)

    def _send(self, peer: _Peer, message: dict[str, Any]) -> None:
        # A process that has ended does not receive.
        with suppress(OSError):
            peer.link.sendall(json.dumps(message).encode() + b"\n")

    def _close(self) -> None:
        thread: threading.Thread | None = getattr(self, "_thread", None)
        for peer in self._peers.values():
            with suppress(OSError):
                peer.link.shutdown(socket.SHUT_WR)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)
        for peer in self._peers.values():
            peer.link.close()


def _hosts(address: str | None) -> list[str]:
    """Return names and addresses at which other processes may reach this host, without repetitions."""
    name = socket.gethostname()
    found = [name] if address is None else [address, name]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    return list(dict.fromkeys(found))


def _connect(hosts: list[str], port: int, key: str, *, rank: int, who: str) -> _Peer:
    """Connect to the first process.

    Raises:
        OSError: If none of its names leads to it.
    """
    failures = []
    for host in hosts:
        try:
            link = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT / len(hosts))
            try:
                link.sendall(f"{key} {rank}\n".encode())
                if link.recv(3) != b"ok\n":
                    raise ConnectionError("another program answers")
            except BaseException:
                link.close()
                raise
        except OSError as error:
            failures.append(f"{host}:{port}: {error}")
            continue
        _keep_alive(link)
        return _Peer(rank=0, who=who, link=link)
    raise ConnectionError("; ".join(failures))


def _accept(server: socket.socket, key: str, processes: int) -> dict[int, _Peer]:
    """Accept one connection of every other process; refuse connections without the key.

    Raises:
        OSError: If a process does not connect in time.
    """
    peers: dict[int, _Peer] = {}
    server.settimeout(_CONNECT_TIMEOUT + 5)
    try:
        while len(peers) < processes - 1:
            link, _ = server.accept()
            link.settimeout(5)
            greeting = b""
            with suppress(OSError):
                while not greeting.endswith(b"\n") and len(greeting) < 64 and (data := link.recv(64)):
                    greeting += data
            sent, _, number = greeting.decode(errors="replace").strip().partition(" ")
            if not secrets.compare_digest(sent.encode(), key.encode()) or not number.isdecimal():
                link.close()
                continue
            link.sendall(b"ok\n")
            _keep_alive(link)
            peers[int(number)] = _Peer(rank=int(number), who="", link=link)
    except TimeoutError:
        raise ConnectionError(f"{processes - 1 - len(peers)} processes have not connected") from None
    return peers


def _keep_alive(link: socket.socket) -> None:
    """Make the system close the connection within 45 s if the machine at the other end does not answer."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6), ("TCP_NODELAY", 1)):
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
