"""Processes of one run tell each other that they are alive, so that none waits for one that is gone.

A thread in each process speaks over a connection of its own: the first process with all others, these with the first
one. It goes on while the process loads, compiles or saves, and falls silent where the process is killed or frozen, its
machine is gone, or the link to it is cut. Whoever misses somebody says who it is and on which host, and ends its
process hard, with a code of its own: a checkpoint that is being written then never gets its name.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scorers.printable import printable

if TYPE_CHECKING:
    from torch.distributed import Store

PEER_LOST = 76
"""Exit code of a process that ends because another one of its run is gone."""
ARRIVAL = 600.0
"""Seconds that a process may come later than the first one: all of them do the same until they meet."""
_UNREACHABLE = 120.0  # seconds of trying to reach the first process: after a restart its predecessor may still be there
_BEATS = 8  # messages in the time after which silence counts
_LONGEST_LINE = 2**16
_DEAF = 30.0  # seconds in which torchrun has to notice the end of this process
_HUNG_LAUNCHER = str(Path(__file__).with_name("hung_launcher.py"))
_LAST_WORD = 1.0  # seconds for the others to hear it


@dataclass
class _Peer:
    """Another process, and what is known of it.

    Attributes:
        heard: when it last said something, by the monotonic clock.
        left: it said that it ends before the run does.
    """

    name: str
    heard: float
    connection: socket.socket | None = None
    left: bool = False
    received: bytearray = field(default_factory=bytearray)


class Heartbeat:
    """The thread of one process; made by all of them, it starts at once and ends with `stop` or with the process.

    Args:
        store: through which the others learn where the first process listens.
        seconds: of silence after which a process counts as gone.
        arrival: seconds that the others may take to come.

    Raises:
        OSError: this process cannot reach the first one.
    """

    def __init__(self, store: Store, rank: int, count: int, seconds: float, arrival: float = ARRIVAL):
        self._rank, self._count, self._seconds, self._arrival = rank, count, seconds, arrival
        self._peers: dict[int, _Peer] = {}  # those that are not at the end of the run
        self._came: set[int] = set()
        self._strangers: dict[socket.socket, bytearray] = {}
        self._farewell: str | None = None
        self._hurry = False
        self._selector = selectors.DefaultSelector()
        self._waker, waked = socket.socketpair()
        self._selector.register(waked, selectors.EVENT_READ, "woken")
        self._server: socket.socket | None = None
        self._began = time.monotonic()
        if rank == 0:
            self.token = self._listen(store)
        else:
            self.token = self._reach(store)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        atexit.register(self._leave)

    def stop(self, farewell: str = "bye") -> None:
        """Takes leave of the others and ends the thread; `left` says that the run is not at its end."""
        if not self._thread.is_alive() or os.getpid() != self._process:
            return
        self._farewell = farewell
        self._waker.send(b".")
        self._thread.join(timeout=5)
        atexit.unregister(self._leave)

    def wait_for_verdict(self, seconds: float = 3.0) -> None:
        """Called when exchanging anything failed: the thread, which may know why, gets time to end the process."""
        self._hurry = True
        self._waker.send(b".")
        self._thread.join(timeout=seconds)

    def _leave(self) -> None:
        self.stop("left")

    # Meeting -------------------------------------------------------------------------------------------------------

    def _listen(self, store: Store) -> str:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=self._count)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, "arrival")
        token = secrets.token_hex(8)
        where = {"addresses": _own_addresses(), "port": self._server.getsockname()[1], "token": token, **_self()}
        store.set("heartbeat", json.dumps(where))
        return token

    def _reach(self, store: Store) -> str:
        """Connects with the first process; what the store says may be of a predecessor that is gone or soon will be."""
        store.set_timeout(timedelta(seconds=self._arrival))
        until = None
        while True:
            try:
                where = json.loads(store.get("heartbeat"))
            except RuntimeError as error:  # torch's DistError is one
                raise OSError(f"rank 0 did not come within {self._arrival:g} s ({error})") from error
            until = until or time.monotonic() + min(_UNREACHABLE, self._arrival)
            for address in where["addresses"]:
                connection = self._greet(address, where)
                if connection is not None:
                    self._add(0, _name(0, where), connection)
                    return where["token"]
            if time.monotonic() > until:
                raise OSError(
                    f"rank {self._rank} on {socket.gethostname()} does not reach {_name(0, where)} at port "
                    f"{where['port']} of {', '.join(where['addresses'])}: let hosts connect to each other at any port, "
                    "or do without the heartbeat, distributed.heartbeat_seconds=null."
                )
            time.sleep(0.2)

    def _greet(self, address: str, where: dict[str, Any]) -> socket.socket | None:
        hello = {"kind": "hello", "token": where["token"], "rank": self._rank, **_self()}
        try:
            connection = socket.create_connection((address, where["port"]), timeout=5)
            connection.sendall(_line(hello))
            if connection.recv(1) == b"\n":
                return connection
            connection.close()
        except OSError:
            return None
        return None

    def _add(self, rank: int, name: str, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._came.add(rank)
        self._peers[rank] = _Peer(name, time.monotonic(), connection)
        self._selector.register(connection, selectors.EVENT_READ, self._peers[rank])

    def _arrived(self, connection: socket.socket) -> None:
        """Somebody new says who it is, or is sent away."""
        hello = _read(connection, self._strangers[connection])
        if hello is not None and not hello:
            return  # not a whole line yet
        self._selector.unregister(connection)
        del self._strangers[connection]
        message = hello[0] if hello else {}
        rank = message.get("rank")
        if message.get("token") != self.token or rank in self._came or rank not in range(1, self._count):
            connection.close()
            return
        with suppress(OSError):
            connection.send(b"\n")
        self._add(rank, _name(rank, message), connection)

    # The thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        every = self._seconds / _BEATS
        last = spoke = time.monotonic()
        while self._farewell is None:
            for key, _ in self._selector.select(max(0.0, spoke + every - time.monotonic())):
                self._attend(key)
            now = time.monotonic()
            if now - last > self._seconds / 2:  # this process stood still itself: what it did not hear proves nothing
                for peer in self._peers.values():
                    peer.heard = now
            last = now
            if now >= spoke + every:
                spoke = now
                self._tell({"kind": "beat"})
            self._judge(now)
        self._part({"kind": self._farewell})

    def _attend(self, key: selectors.SelectorKey) -> None:
        if key.data == "arrival":
            with suppress(OSError):
                connection, _ = self._server.accept()
                connection.setblocking(False)
                self._strangers[connection] = bytearray()
                self._selector.register(connection, selectors.EVENT_READ, "stranger")
        elif key.data == "stranger":
            self._arrived(key.fileobj)
        elif key.data == "woken":
            key.fileobj.recv(64)
        else:
            self._hear(key.data)

    def _hear(self, peer: _Peer) -> None:
        messages = _read(peer.connection, peer.received)
        for message in messages or ():
            peer.heard = time.monotonic()
            if message.get("kind") == "lost":
                self._end(message["line"])
            if message.get("kind") in ("bye", "left"):
                peer.left = message["kind"] == "left"
                self._hang_up(peer)
                if not peer.left:
                    self._peers = {rank: one for rank, one in self._peers.items() if one is not peer}
                return
        if messages is None:
            self._hang_up(peer)
            self._lose([peer], "ended without a word (killed, or out of memory?)")

    def _hang_up(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        peer.connection = None

    def _judge(self, now: float) -> None:
        left = [
            peer for peer in self._peers.values() if peer.left and (self._hurry or now - peer.heard > self._seconds)
        ]
        if left:
            self._lose(left, "ended before the run did; what it wrote says why")
        silent = [peer for peer in self._peers.values() if not peer.left and now - peer.heard > self._seconds]
        if silent:
            self._lose(silent, f"silent for {self._seconds:g} s (host or link down, or the process frozen)")
        if self._rank == 0 and len(self._came) < self._count - 1 and now - self._began > self._arrival:
            missing = [_Peer(f"rank {rank}", now) for rank in range(1, self._count) if rank not in self._came]
            self._lose(missing, f"did not come within {self._arrival:g} s")

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            if peer.connection is not None:
                with suppress(OSError):  # whoever does not read will be missed
                    peer.connection.send(_line(message))

    def _part(self, message: dict[str, Any]) -> None:
        """Says a last word, and leaves the others a moment to read it: a connection that is just closed may lose it."""
        self._tell(message)
        until = time.monotonic() + _LAST_WORD
        for peer in self._peers.values():
            if peer.connection is not None:
                with suppress(OSError):
                    peer.connection.shutdown(socket.SHUT_WR)
                    while (left := until - time.monotonic()) > 0:
                        peer.connection.settimeout(left)
                        if not peer.connection.recv(4096):
                            break
                peer.connection.close()
        if self._server is not None:
            self._server.close()

    def _lose(self, peers: list[_Peer], why: str) -> NoReturn:
        line = f"lost {' and '.join(peer.name for peer in peers)}: {why}"
        self._peers = {rank: one for rank, one in self._peers.items() if one not in peers}
        self._end(line, {"kind": "lost", "line": line})

    def _end(self, line: str, message: dict[str, Any] | None = None) -> NoReturn:
        where = f"rank {self._rank} on {socket.gethostname()}"
        advice = f"this process ends with code {PEER_LOST}, and the same command goes on from the last checkpoint"
        os.write(2, f"\n{where} {line}; {advice}\n".encode())
        if message is not None:
            self._part(message)
        for child in multiprocessing.active_children():
            child.kill()
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":
            seconds = min(_DEAF, max(5.0, self._seconds))
            watch = [sys.executable, _HUNG_LAUNCHER, str(os.getpid()), str(os.getppid()), str(seconds)]
            subprocess.Popen(watch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        os._exit(PEER_LOST)


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _name(rank: int, says: dict[str, Any]) -> str:
    return f"rank {rank} (process {says['process']} on {printable(str(says['host']))})"


def _own_addresses() -> list[str]:
    """Where others may reach this process: by what it reaches the store from, the store's host, and its own name."""
    host = os.environ.get("MASTER_ADDR", "localhost")
    found = []
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*found, host, socket.gethostname()]))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _read(connection: socket.socket, received: bytearray) -> list[dict[str, Any]] | None:
    """The whole messages that have come; None where the connection is closed, or says what is no message."""
    try:
        some = connection.recv(65536)
    except BlockingIOError:
        return []
    except OSError:
        return None
    received += some
    *lines, rest = bytes(received).split(b"\n")
    received[:] = rest
    if (not some and not lines) or len(rest) > _LONGEST_LINE:
        return None
    try:
        messages = [json.loads(line) for line in lines]
    except ValueError:
        return None
    return messages if all(isinstance(message, dict) for message in messages) else None
