"""A server as a process of its own, started and watched by what demonstrates or measures it."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from jaxserve.errors import JaxserveError
from jaxserve.progress import ProgressCallback, no_progress

# A server is idle that uses no more CPU time than this in each of so many seconds.
QUIET_CPU_SECONDS, QUIET_S = 0.05, 3
READY_MARK = "jaxserve ready on "
# What the command lines of a server's children hold.
ENGINE_MARK, FRONT_END_MARK = "engine", "jaxserve.server.front_end"


class ServerProcess:
    """A running server.

    Attributes:
        target: its address, for clients.
        pid: of its first process.
    """

    def __init__(self, target: str, pid: int) -> None:
        self.target = target
        self.pid = pid

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that each of its processes has used so far: `engine`, `front end 0`, `front end 1`, …"""
        used = {"front end 0": _cpu_seconds(self.pid)}
        children = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        for pid in children:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if FRONT_END_MARK in command:
                used[f"front end {len([name for name in used if name.startswith('front end')])}"] = _cpu_seconds(pid)
            elif ENGINE_MARK in command:
                used["engine"] = _cpu_seconds(pid)
        return used

    async def settled(self, timeout: float, report: ProgressCallback = no_progress) -> None:
        """Wait until the server has stopped working by itself, as at further step shapes; at most `timeout` seconds.

        It has when it uses less than a twentieth of a core for three seconds in a row.
        """
        quiet, used, deadline = 0, sum(self.cpu_seconds().values()), time.monotonic() + timeout
        while quiet < QUIET_S and time.monotonic() < deadline:
            report("Waiting until the server is idle (s)", quiet, QUIET_S)
            await asyncio.sleep(1.0)
            before, used = used, sum(self.cpu_seconds().values())
            quiet = quiet + 1 if used - before < QUIET_CPU_SECONDS else 0
        report("Waiting until the server is idle (s)", QUIET_S, QUIET_S)


@contextlib.asynccontextmanager
async def server_process(command: Sequence[str], timeout: float | None = None) -> AsyncIterator[ServerProcess]:
    """Run a command that ends in `jaxserve.server.serve.run`, until the context is left.

    Args:
        command: such as `serve_command("demo")`.
        timeout: seconds until it must be ready; None waits as long as it runs.

    Raises:
        JaxserveError: it ended, or the time passed, before it was ready.
    """
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                target = await _target(process.stdout)
        except TimeoutError:
            raise JaxserveError(f"the server was not ready after {timeout:g} s") from None
        yield ServerProcess(target, process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def serve_command(model: str, *flags: str) -> list[str]:
    """`jaxserve serve` on a free port."""
    return [sys.executable, "-m", "jaxserve", "serve", model, "--port", "0", *flags]


async def _target(output: asyncio.StreamReader) -> str:
    async for line in output:
        if line.decode().startswith(READY_MARK):
            return line.decode().removeprefix(READY_MARK).strip()
    raise JaxserveError("the server ended before it was ready; its message is above")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
