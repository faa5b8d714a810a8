"""The front ends beside the first, as its child processes: start, watch, drain, stop."""

import asyncio
import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec

from jaxserve.config import ServerConfig
from jaxserve.server.front_end import DRAIN, DRAINED, READY, FrontEndSettings

FRONT_END_COMMAND = (sys.executable, "-m", "jaxserve.server.front_end")
# How long one may take to end its calls with a status and exit.
STOP_GRACE_S = 10.0


class FrontEndProcess:
    """One front end as a child process. Like the engine it has a session of its own, out of Ctrl-C's reach.

    Attributes:
        number: which one it is, from 1.
        ready: set once it serves, or has ended.
        drained: set once it has no call left after `drain`, or has ended.
        ended: its exit code, once it has one.
    """

    def __init__(self, settings: FrontEndSettings) -> None:
        self.number = settings.number
        self.ready, self.drained = asyncio.Event(), asyncio.Event()
        # subprocess uses vfork, which a process with gRPC's threads survives; the event loop's own way is a fork.
        self._process = subprocess.Popen(
            FRONT_END_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        # A thread of its own: the event loop's are few, and tokenizing wants them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"front-end-{self.number}")
        self.ended = asyncio.get_running_loop().run_in_executor(self._thread, self._process.wait)
        for event in (self.ready, self.drained):
            self.ended.add_done_callback(lambda _, event=event: event.set())  # type: ignore[misc]
        self._listening = asyncio.create_task(self._listen())
        self._write(msgspec.json.encode(settings))

    def drain(self) -> None:
        """Have it refuse new calls and finish those in flight."""
        self._write(DRAIN.encode())

    async def stop(self) -> None:
        """Have it end what is still in flight, and wait for its end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(self.ended), STOP_GRACE_S)
        except TimeoutError:
            self._process.kill()
            await self.ended
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._thread.shutdown()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    async def _listen(self) -> None:
        words = {READY: self.ready, DRAINED: self.drained}
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        with contextlib.closing(transport):
            async for line in reader:
                if (event := words.get(line.decode().strip())) is not None:
                    event.set()


class FrontEndProcesses:
    """All front ends but the first.

    Args:
        config: with the port that is bound; `num_front_ends` counts the first one too.
        endpoint: the engine's.
    """

    def __init__(self, config: ServerConfig, endpoint: str) -> None:
        self._settings = [FrontEndSettings(config, endpoint, number) for number in range(1, config.num_front_ends)]
        self._processes: list[FrontEndProcess] = []

    def start(self) -> None:
        """Start them."""
        for settings in self._settings:
            self._processes.append(FrontEndProcess(settings))

    async def ready(self) -> None:
        """Wait until each serves or has ended."""
        for process in self._processes:
            await process.ready.wait()

    async def first_end(self) -> str:
        """Wait until one ends, and say which and how; for ever if there are none."""
        by_end = {process.ended: process for process in self._processes}
        if not by_end:
            await asyncio.Event().wait()
        done, _ = await asyncio.wait(by_end, return_when=asyncio.FIRST_COMPLETED)
        ended = done.pop()
        return f"front end {by_end[ended].number} ended with exit code {ended.result()}"

    async def all_end(self, timeout: float) -> None:
        """Give them so many seconds to end of their own accord, as they do when the engine has."""
        if self._processes:
            await asyncio.wait([process.ended for process in self._processes], timeout=timeout)

    async def drain(self) -> None:
        """Have each finish its calls in flight, and wait until they have."""
        for process in self._processes:
            process.drain()
        for process in self._processes:
            await process.drained.wait()

    async def stop(self) -> None:
        """End them."""
        await asyncio.gather(*(process.stop() for process in self._processes))
