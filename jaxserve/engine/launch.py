"""Start the engine in a process of its own, and stop it."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from jaxserve.config import EngineConfig
from jaxserve.engine.process import STOP_GRACE_S, ProcessSettings

ENGINE_COMMAND = (sys.executable, "-m", "jaxserve.engine.process")


class EngineProcess:
    """The engine as a child process; `async with` starts it and stops it.

    Its output goes where this process's goes, so progress bars and errors are seen. It runs in its own session: Ctrl-C
    reaches this process alone, which can then let requests finish. Should this process die, the engine ends too.

    Args:
        config: what to serve.
        command: runs `jaxserve.engine.process.main`, perhaps on another runner.

    Attributes:
        endpoint: where `EngineClient` connects; in a directory that only this user can enter.
    """

    def __init__(self, config: EngineConfig, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self._config = config
        self._command = tuple(command)
        self._directory = tempfile.TemporaryDirectory(prefix="jaxserve-")
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: asyncio.Future[int] | None = None
        self.endpoint = f"ipc://{self._directory.name}/engine"

    async def __aenter__(self) -> Self:
        # subprocess uses vfork, which a process with gRPC's threads survives; the event loop's own way is a fork.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        self._process = process
        self._exit_code = asyncio.get_running_loop().run_in_executor(None, process.wait)
        assert process.stdin is not None
        settings = ProcessSettings(self._config, self.endpoint)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(settings) + b"\n")
            process.stdin.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                await asyncio.wait_for(self.wait(), STOP_GRACE_S + 5)
            except TimeoutError:
                self._process.kill()
                await self.wait()
        self._directory.cleanup()

    async def wait(self) -> int:
        """The exit code, once the process has ended."""
        if self._exit_code is None:
            raise RuntimeError("the engine process was not started; use `async with EngineProcess(config)`")
        return await asyncio.shield(self._exit_code)
