"""A front end beside the first: `python -m jaxserve.server.front_end`, started by `jaxserve.server.front_end_process`.

Standard input brings one line of JSON (FrontEndSettings) and then perhaps DRAIN; when it ends, the first front end is
gone or wants this one to stop. Standard output tells how far this one is, a word a line.
"""

import asyncio
import logging
import signal
import sys

import msgspec
import uvloop

from jaxserve.config import ServerConfig
from jaxserve.engine.client import EngineClient, EngineState
from jaxserve.errors import EngineDeadError, JaxserveError
from jaxserve.server.app import InferenceServer, settle_memory

logger = logging.getLogger(__name__)

# What the first front end says, and what this one answers.
DRAIN = "drain"
READY, DRAINED = "ready", "drained"


class FrontEndSettings(msgspec.Struct):
    """What a front end is told.

    Attributes:
        config: with the port that the first front end has bound.
        endpoint: the engine's.
        number: which one this is, from 1; the first has 0.
    """

    config: ServerConfig
    endpoint: str
    number: int


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(word: str) -> None:
    print(word, flush=True)


async def _obey(commands: asyncio.StreamReader, server: InferenceServer, drain_timeout: float) -> None:
    """Drain when told to, and return when standard input ends."""
    async with asyncio.TaskGroup() as group:
        draining: asyncio.Task[None] | None = None
        async for line in commands:
            if line.decode().strip() == DRAIN and draining is None:
                draining = group.create_task(_drain(server, drain_timeout))
        if draining is not None:
            draining.cancel()


async def _drain(server: InferenceServer, timeout: float) -> None:
    await server.drain(timeout)
    _say(DRAINED)


async def _open(server: InferenceServer) -> None:
    await server.open()
    settle_memory()
    _say(READY)


async def _serve() -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A service manager may signal every process. The first front end alone says when to stop.
        loop.add_signal_handler(number, lambda: None)
    commands = await _standard_input()
    settings = msgspec.json.decode(await commands.readline(), type=FrontEndSettings)
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s front end {settings.number}: %(message)s"
    )
    engine = EngineClient(settings.endpoint)
    server = InferenceServer(engine, settings.config)
    dead = asyncio.Event()
    engine.on_state_change(lambda state: dead.set() if state is EngineState.DEAD else None)
    await server.start()
    engine.connect()
    obeying = asyncio.create_task(_obey(commands, server, settings.config.drain_timeout))
    died = asyncio.create_task(dead.wait())
    opened = asyncio.create_task(_open(server))
    try:
        await asyncio.wait({obeying, died, opened}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done() and not died.done():
            opened.result()
            await asyncio.wait({obeying, died}, return_when=asyncio.FIRST_COMPLETED)
        return 0 if obeying.done() else 1
    finally:
        for task in (obeying, died, opened):
            task.cancel()
        await asyncio.gather(obeying, died, opened, return_exceptions=True)
        await server.stop()
        await engine.close()


def main() -> int:
    """Serve until standard input ends (exit code 0) or the engine does (1)."""
    try:
        return uvloop.run(_serve())
    except EngineDeadError:
        return 1
    except JaxserveError as error:
        print(f"jaxserve: error: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
