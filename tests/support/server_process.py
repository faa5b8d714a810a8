"""The server on the simulated engine, as a process, and what a test can see of its processes from outside."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jaxserve.client import Client, RetryPolicy

ONCE = RetryPolicy(max_attempts=1)
ESTABLISHED = "01"


@contextmanager
def server_process(
    tokenizer_dir: Path, fault: str, num_front_ends: int = 1
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its target, read from its ready line; the target is empty if it ended first."""
    command = [sys.executable, "-m", "tests.support.simulated_serve", str(tokenizer_dir), fault, str(num_front_ends)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        yield process, line.removeprefix("jaxserve ready on ")
    finally:
        process.kill()
        process.communicate()


def engine_pid(server: subprocess.Popen[str]) -> int:
    """The engine's process."""
    (pid,) = _children(server, "simulated_engine")
    return pid


def front_end_pids(server: subprocess.Popen[str]) -> list[int]:
    """The processes that answer calls, the server itself first."""
    return [server.pid, *_children(server, "jaxserve.server.front_end")]


def _children(server: subprocess.Popen[str], mark: str) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(pid) for pid in children if mark in Path(f"/proc/{pid}/cmdline").read_text()]


@contextmanager
def client_of_each(server: subprocess.Popen[str], target: str) -> Iterator[list[Client]]:
    """A client connected to each front end, in the order of `front_end_pids`. The kernel chooses, so it takes tries."""
    pids = front_end_pids(server)
    found: dict[int, Client] = {}
    with ExitStack() as stack:
        for _ in range(200):
            before = {pid: _connections(pid, target) for pid in pids}
            client = Client(target, retry=ONCE, options=[("grpc.use_local_subchannel_pool", 1)])
            stack.callback(client.close)
            client.health()
            (reached,) = (pid for pid in pids if _connections(pid, target) - before[pid])
            found.setdefault(reached, client)
            if len(found) == len(pids):
                break
        yield [found[pid] for pid in pids]


def _connections(pid: int, target: str) -> set[str]:
    """The connections to the target that a process has accepted, by their other end."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except FileNotFoundError:  # closed since
            continue
    port = f"{int(target.rsplit(':', 1)[1]):04X}"
    # gRPC's sockets are IPv6 ones, whatever they carry.
    tables = (Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return {
        row[2]
        for row in rows
        if row[3] == ESTABLISHED and row[1].endswith(f":{port}") and f"socket:[{row[9]}]" in sockets
    }


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come about within 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
