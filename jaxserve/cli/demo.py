"""`jaxserve demo`: the real server with the bundled model, and some answers streamed from it at once."""

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from jaxserve.bench.figures import RequestTimes, ServingFigures
from jaxserve.bench.server_process import serve_command, server_process
from jaxserve.client import AsyncClient
from jaxserve.errors import JaxserveError

PROMPTS = (
    "def fibonacci(n):",
    "class Stack:\n    def __init__(self):",
    "import os\nimport sys\n\n\ndef read_lines(path):",
    'def add(self, item):\n    """Add',
    "class TestParser(unittest.TestCase):\n    def test_",
    "for name in sorted(os.listdir(path)):",
)

ShowText = Callable[[int, str], None]


def run(args: argparse.Namespace) -> int:
    """Start, stream, print, stop."""
    if args.requests < 1 or args.max_tokens < 1:
        raise JaxserveError("--requests and --max-tokens must be at least 1")
    return asyncio.run(_demo(args.requests, args.max_tokens))


async def _demo(num_requests: int, max_tokens: int) -> int:
    console = Console()
    console.print("Starting the server with the bundled model (the first start compiles; later ones do not) …")
    prompts = list(itertools.islice(itertools.cycle(PROMPTS), num_requests))
    started = time.monotonic()
    async with server_process(serve_command("demo")) as server, AsyncClient(server.target) as client:
        info = await client.model_info()
        console.print(
            f"{server.target} serves {info.name} ({info.architecture}, {info.dtype}) after "
            f"{time.monotonic() - started:.1f} s. Sending {num_requests} requests at once.\n"
        )
        begun = time.monotonic()
        with _display(console, prompts) as show:
            times = await asyncio.gather(
                *(_stream(client, i, prompt, max_tokens, show) for i, prompt in enumerate(prompts))
            )
        console.print(ServingFigures.of(times, time.monotonic() - begun).table())
    return 0


async def _stream(client: AsyncClient, index: int, prompt: str, max_tokens: int, show: ShowText) -> RequestTimes:
    times = RequestTimes(num_prompt_tokens=0)
    stream = client.generate_stream(prompt, max_tokens=max_tokens, temperature=0.5, top_p=0.95, seed=index)
    async for delta in stream:
        times.add(len(delta.token_ids))
        show(index, delta.text)
    times.num_prompt_tokens = len(stream.output.prompt_token_ids)
    return times


@contextlib.contextmanager
def _display(console: Console, prompts: list[str]) -> Iterator[ShowText]:
    """Where the text goes as it comes: panels side by side on a terminal, whole lines with a number elsewhere."""
    texts = list(prompts)
    if console.is_terminal:

        def panels() -> Columns:
            boxes = [Panel(Text(text), title=f"request {i}", width=60) for i, text in enumerate(texts)]
            return Columns(boxes)

        with Live(panels(), console=console, refresh_per_second=12, vertical_overflow="visible") as live:

            def show_panel(index: int, text: str) -> None:
                texts[index] += text
                live.update(panels())

            yield show_panel
        return

    def show_lines(index: int, text: str) -> None:
        *whole, texts[index] = (texts[index] + text).split("\n")
        for line in whole:
            print(f"[{index}] {line}", flush=True)

    yield show_lines
    for index, text in enumerate(texts):
        print(f"[{index}] {text}", flush=True)
