"""ChatTemplate: renders a model's own Jinja template in a process of its own, under limits."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from jaxserve.errors import InvalidRequestError

TIME_LIMIT = 5.0
START_LIMIT = 60.0
# All that a Python needs to find its modules and the time; what else the server's environment holds stays there.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
_WORKER = Path(__file__).with_name("template_worker.py")


class ChatTemplate:
    """A chat template, which is code that came with the model's weights.

    Jinja's sandbox keeps it from the interpreter, but not from a loop without end, a huge power or a string that
    doubles itself; only a process that can be ended bounds those. The process starts with the first conversation,
    renders one at a time in well under a millisecond, and ends with this object or its owner's process.

    Args:
        source: the Jinja template.
        special_tokens: variables such as `bos_token`.
        time_limit: seconds one conversation may take.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], time_limit: float = TIME_LIMIT) -> None:
        self._setup: dict[str, object] = {
            "source": source,
            "variables": dict(special_tokens),
            "time_limit": time_limit,
        }
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The conversation as text.

        Raises:
            InvalidRequestError: the template refuses the messages, fails, or exceeds a limit.
        """
        request = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        with self._lock:
            reply = self._ask(request)
        if "error" in reply:
            raise InvalidRequestError("messages", f"the model's chat template failed: {reply['error']}")
        return reply["text"]

    def _ask(self, request: dict[str, object]) -> dict[str, str]:
        if self._worker is None:
            worker = _Worker()
            try:
                worker.ask(self._setup, START_LIMIT)
            except (OSError, EOFError) as error:
                worker.close()
                raise RuntimeError("the process that renders chat templates did not start") from error
            self._worker = worker
        try:
            return self._worker.ask(request, self._time_limit)
        except TimeoutError:
            return {"error": f"it took longer than {self._time_limit:g} s"}
        except (OSError, EOFError):
            return {"error": "its process ended; it may have needed too much memory"}
        finally:
            if not self._worker.is_usable:
                self._worker.close()
                self._worker = None


class _Worker:
    """The process, and one JSON line each way for every request.

    Attributes:
        is_usable: False once a request got no whole reply.
    """

    def __init__(self) -> None:
        # -P keeps this folder's modules from standing in for others.
        command = [sys.executable, "-P", str(_WORKER)]
        # Its own session, so that Ctrl-C in a terminal reaches the server alone.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        self.is_usable = True
        self.close = weakref.finalize(self, _end, self._process)

    def ask(self, request: dict[str, object], time_limit: float) -> dict[str, str]:
        """Send a request and wait for its reply.

        Raises:
            TimeoutError: no reply in time.
            EOFError, OSError: the process ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError
        self.is_usable = False
        deadline = time.monotonic() + time_limit
        view = memoryview(json.dumps(request).encode() + b"\n")
        while view:
            view = view[stdin.write(view) or 0 :]
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = stdout.read(1 << 16)
                if not chunk:
                    raise EOFError
                received += chunk
        self.is_usable = True
        reply: dict[str, str] = json.loads(received)
        return reply


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
