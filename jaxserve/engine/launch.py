"""Start the engine in a process of its own, and stop it."""

import asyncio
import contextlib
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
        self._process: asyncio.subprocess.Process | None = None
        self.endpoint = f"ipc://{self._directory.name}/engine"

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        settings = ProcessSettings(self._config, self.endpoint)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(msgspec.json.encode(settings) + b"\n")
            await self._process.stdin.drain()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), STOP_GRACE_S + 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._directory.cleanup()

    async def wait(self) -> int:
        """The exit code, once the process has ended."""
        if self._process is None:
            raise RuntimeError("the engine process was not started; use `async with EngineProcess(config)`")
        return await self._process.wait()
