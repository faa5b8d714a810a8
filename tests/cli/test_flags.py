"""Flags are made from the settings, so every setting has one and is explained."""

import argparse
import contextlib
import io
from dataclasses import dataclass, fields

import pytest

from jaxserve.cli import main
from jaxserve.cli.flags import add_config_flags, attribute_docs, config_from_flags, for_the_command_line, given_flags
from jaxserve.cli.main import build_parser
from jaxserve.config import EngineConfig, SchedulerConfig, ServerConfig
from jaxserve.errors import ConfigError

ENGINE_COMMANDS = (["serve"], ["generate"], ["bench", "throughput"])


def help_of(command: list[str]) -> str:
    """The help of a command, each run of white space as one space."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return " ".join(out.getvalue().split())


def parse(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(words)


@pytest.mark.parametrize("config", [EngineConfig, ServerConfig, SchedulerConfig])
def test_every_setting_is_explained(config: type) -> None:
    docs = attribute_docs(config)
    assert list(docs) == [field.name for field in fields(config)]
    assert min(len(text) for text in docs.values()) > 8


@pytest.mark.parametrize("command", ENGINE_COMMANDS, ids=" ".join)
def test_every_engine_setting_has_a_flag_with_its_explanation(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = help_of(command)
    docs = attribute_docs(EngineConfig)
    for field in fields(EngineConfig):
        if field.name != "model":
            assert f"--{field.name.replace('_', '-')}" in text
            assert for_the_command_line(docs[field.name]) in text
    assert "None" not in text
    assert "demo" in text


def test_serve_has_the_server_s_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = help_of(["serve"])
    for name, explanation in attribute_docs(ServerConfig).items():
        assert f"--{name.replace('_', '-')}" in text and explanation in text


def test_flags_that_are_not_given_leave_the_defaults() -> None:
    assert config_from_flags(EngineConfig, parse("serve", "m"), model="m") == EngineConfig(model="m")
    assert config_from_flags(ServerConfig, parse("serve", "m")) == ServerConfig()


def test_given_flags_reach_the_settings_in_their_types() -> None:
    args = parse(
        *("serve", "dir", "--dtype", "bfloat16", "--max-model-len", "99", "--gpu-memory-utilization", "0.5"),
        *("--no-enable-prefix-caching", "--skip-tokenizer-init", "--load-format", "dummy", "--seed", "-4"),
        *("--served-model-name", "x", "--port", "0", "--host", "::", "--drain-timeout", "1.5", "--no-reflection"),
    )
    assert config_from_flags(EngineConfig, args, model=args.model) == EngineConfig(
        model="dir",
        dtype="bfloat16",
        max_model_len=99,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        load_format="dummy",
        seed=-4,
        served_model_name="x",
    )
    assert config_from_flags(ServerConfig, args) == ServerConfig(port=0, host="::", drain_timeout=1.5, reflection=False)


def test_values_out_of_range_are_the_settings_own_errors() -> None:
    with pytest.raises(ConfigError, match="page_size must be at least 1, got 0"):
        config_from_flags(EngineConfig, parse("serve", "m", "--page-size", "0"), model="m")


@dataclass(frozen=True)
class Sample:
    """A settings class.

    Attributes:
        share: how much of it, in %,
            over two lines.
        deep: with a default of None.
    """

    share: float = 0.25
    deep: int | None = None


def test_explanations_go_over_lines_and_may_hold_percent_signs() -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Sample)
    text = " ".join(parser.format_help().split())
    assert "--share FLOAT how much of it, in %, over two lines (default: 0.25)" in text
    assert "--deep INT with a default of None" in text
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--deep", "3"])) == {"deep": 3}


def test_a_setting_may_be_left_out() -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Sample, skip=["deep"])
    assert "--deep" not in parser.format_help()


def test_a_limit_is_lifted_by_the_word_none() -> None:
    args = parse("serve", "m", "--max-num-queued-requests", "none")
    assert config_from_flags(EngineConfig, args, model="m").max_num_queued_requests is None


def test_given_flags_give_another_command_the_same_settings() -> None:
    words = ("--dtype", "bfloat16", "--no-reflection", "--max-num-queued-requests", "none", "--skip-tokenizer-init")
    args = parse("serve", "m", *words, "--num-front-ends", "3")
    again = parse("serve", "other", *given_flags(EngineConfig, args, skip=["model"]), *given_flags(ServerConfig, args))
    assert config_from_flags(EngineConfig, again, model="m") == config_from_flags(EngineConfig, args, model="m")
    assert config_from_flags(ServerConfig, again) == ServerConfig(num_front_ends=3, reflection=False)
    assert given_flags(EngineConfig, parse("serve", "m"), skip=["model"]) == []
