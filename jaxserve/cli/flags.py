"""Command-line flags made from a settings dataclass, so that a setting is named and explained in one place."""

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal


def add_config_flags(parser: argparse.ArgumentParser, config: type, *, skip: Iterable[str] = ()) -> None:
    """Add one `--flag` for each field of a frozen settings dataclass, explained by its docstring.

    Booleans become `--flag` and `--no-flag`. Flags that are not given stay unset, so that the dataclass's own defaults
    hold (`config_from_flags`).
    """
    explanations = attribute_docs(config)
    hints = typing.get_type_hints(config)
    group = parser.add_argument_group(f"{config.__name__.removesuffix('Config').lower()} settings")
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        flag = "--" + field.name.replace("_", "-")
        kind = _without_none(hints[field.name])
        can_be_unset = kind is not hints[field.name] and field.default is not None
        text = for_the_command_line(explanations[field.name])
        if field.default is not None and field.default is not dataclasses.MISSING:
            text += f" (default: {field.default})"
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(kind) is Literal:
            group.add_argument(flag, choices=typing.get_args(kind), **options)
        else:
            convert = _or_none(kind) if can_be_unset else kind
            group.add_argument(flag, type=convert, metavar=kind.__name__.upper(), **options)


def config_from_flags[Config](config: type[Config], args: argparse.Namespace, **fixed: object) -> Config:
    """The dataclass from the flags that were given; `fixed` fields come from elsewhere.

    Raises:
        ConfigError: a value is out of range.
    """
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(args).items() if name in names}
    return config(**{**given, **fixed})


def given_flags(config: type, args: argparse.Namespace, *, skip: Iterable[str] = ()) -> list[str]:
    """The flags of a settings dataclass that were given, as words for another command that has them."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        if field.name not in vars(args) or field.name in skip:
            continue
        flag, value = field.name.replace("_", "-"), getattr(args, field.name)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", "none" if value is None else str(value)]
    return words


def for_the_command_line(explanation: str) -> str:
    """An explanation of a Python value, in words for a flag."""
    return explanation.replace(" if None", " if not given").replace("None is", "`none` is")


def attribute_docs(config: type) -> dict[str, str]:
    """The explanations under `Attributes:` in a class docstring, by name, each on one line."""
    doc = inspect.cleandoc(config.__doc__ or "")
    section = doc.split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).rstrip(".") for name, text in entries}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _or_none[T](kind: Callable[[str], T]) -> Callable[[str], T | None]:
    """Reads `none` as None, for settings whose None is not what they are when not given."""

    def convert(text: str) -> T | None:
        return None if text == "none" else kind(text)

    convert.__name__ = getattr(kind, "__name__", "value")  # argparse names it in its errors
    return convert
