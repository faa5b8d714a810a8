"""Renders one model's chat template: the program that `jaxserve.tokenizer.chat_template` starts.

Reads JSON lines: first the template and its fixed variables, then one conversation a line. Writes one line for each.
Stands alone, with only Jinja beside the standard library, so that it starts quickly and holds nothing worth taking.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT = 1 << 30
MAX_TEXT_CHARS = 16 * 1024 * 1024


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training; to render it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    parts: list[str] = []
    length = 0
    for part in template.generate(variables):
        length += len(part)
        if length > MAX_TEXT_CHARS:
            raise jinja2.TemplateError(f"it wrote more than {MAX_TEXT_CHARS} characters")
        parts.append(part)
    return "".join(parts)


def _attempt(work: Callable[[], str]) -> dict[str, str]:
    try:
        return {"text": work()}
    except MemoryError:
        return {"error": "it needed too much memory"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # a template can raise anything
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    """Serve until standard input ends."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    setup = json.loads(sys.stdin.readline())
    print("{}", flush=True)
    template: jinja2.Template | None = None

    def render(request: str) -> str:
        nonlocal template
        if template is None:
            template = _compile(setup["source"])
        return _render(template, {**setup["variables"], "tools": None, "documents": None, **json.loads(request)})

    for line in sys.stdin:
        # The parent ends a render that takes too long; should the parent be gone by then, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, 2 * setup["time_limit"] + 1)
        reply = _attempt(partial(render, line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
