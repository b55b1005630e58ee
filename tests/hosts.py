"""Two hosts on one machine: a network namespace each, with a host name of its own, and a link between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.readme import ROOT

ADDRESSES = {"host-a": "10.77.0.1", "host-b": "10.77.0.2"}
_ENTER = ["unshare", "--net", "--uts", "--mount", "--propagation", "private"]


def missing() -> str | None:
    """What this machine lacks for hosts of its own; None: nothing."""
    programs = [name for name in ("ip", "unshare", "nsenter", "mount", "hostname") if shutil.which(name) is None]
    if programs:
        return f"no program {', '.join(programs)} (packages iproute2, util-linux, mount and hostname)"
    tried = subprocess.run(
        [*_ENTER, "ip", "link", "add", "name", "wire", "type", "veth"], capture_output=True, text=True
    )
    return f"network namespaces or veth are refused here ({tried.stderr.strip()})" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """A process that keeps the namespaces, which go when it does."""

    name: str
    keeper: subprocess.Popen

    @property
    def address(self) -> str:
        """In the network of the two."""
        return ADDRESSES[self.name]

    def enter(self, *command: str) -> list[str]:
        """The command, on this host."""
        return ["nsenter", "-t", str(self.keeper.pid), "-n", "-u", "-m", f"--wd={ROOT}", *command]

    def do(self, *command: str) -> None:
        """Runs it to its end."""
        subprocess.run(self.enter(*command), check=True, capture_output=True)

    def start(self, log: Path, *command: str) -> subprocess.Popen:
        """Starts it; what it writes goes to a file."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(log, "w") as file:
            return subprocess.Popen(self.enter(*command), stdout=file, stderr=file, env=environment, cwd=ROOT)

    def torchrun(self, log: Path, processes: int, *arguments: str) -> subprocess.Popen:
        """torchrun with a rendezvous at host-a; arguments are torchrun's own, the script, and the script's."""
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "2", "--rdzv-backend", "c10d"]
        where = ["--rdzv-endpoint", f"{ADDRESSES['host-a']}:29400", "--nproc-per-node", str(processes)]
        return self.start(log, *launcher, *where, *arguments)

    def cut_link(self) -> None:
        """What the other one sends does not come any more."""
        self.do("ip", "link", "set", "wire", "down")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """host-a and host-b; their processes must have ended when it ends."""
    names = folder / "hosts"
    names.write_text("".join(f"{address} {name}\n" for name, address in ADDRESSES.items()) + "127.0.0.1 localhost\n")
    begin = f'hostname "$0" && mount --bind {names} /etc/hosts && ip link set lo up && echo ready && exec cat'
    hosts = []
    try:
        for name in ADDRESSES:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            keeper = subprocess.Popen([*_ENTER, "sh", "-c", begin, name], **pipes)
            hosts.append(Host(name, keeper))
            assert keeper.stdout.readline() == b"ready\n"
        first, second = hosts
        first.do(
            "ip", "link", "add", "name", "wire", "type", "veth", "peer", "name", "wire", "netns", str(second.keeper.pid)
        )
        for host in hosts:
            host.do("ip", "address", "add", f"{host.address}/24", "dev", "wire")
            host.do("ip", "link", "set", "wire", "up")
        yield first, second
    finally:
        for host in hosts:
            host.keeper.kill()
            host.keeper.communicate()
