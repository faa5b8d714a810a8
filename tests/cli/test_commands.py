"""The commands: what they print, and how they end."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxserve
from jaxserve.cli import main
from jaxserve.model_directory import resolve_model
from tests.support.recorded_models import DATA

SMALL = ["--max-model-len", "48", "--max-num-seqs", "2", "--max-num-batched-tokens", "8", "--no-compile-ahead"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for an engine that starts fast."""
    return [*SMALL, "--compilation-cache-dir", str(tmp_path_factory.mktemp("xla"))]


def test_generate_prints_one_json_object_a_prompt(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["def f(x):", "import os\n"]
    assert main(["generate", "demo", *prompts, "--max-tokens", "6", "--json", *small]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert len(line["outputs"][0]["token_ids"]) == 6
        assert line["outputs"][0]["finish_reason"] == "length"


def test_generate_prints_each_prompt_and_what_follows(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("def f(x):\nclass A:\n"))
    assert main(["generate", "demo", "--max-tokens", "5", "--stop", "zzz", *small]) == 0
    from_input = capsys.readouterr().out
    assert main(["generate", "demo", "def f(x):", "class A:", "--max-tokens", "5", *small]) == 0
    from_arguments = capsys.readouterr().out
    assert from_input == from_arguments
    first, second = from_input.index("def f(x):"), from_input.index("class A:")
    assert 0 == first < second - len("def f(x):")


def test_generate_samples_by_the_seed_given(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def text(seed: str) -> str:
        sampling = ["--temperature", "1.5", "--top-p", "0.99", "--top-k", "500", "--sampling-seed", seed]
        assert main(["generate", "demo", "x =", "--max-tokens", "12", *sampling, *small]) == 0
        return capsys.readouterr().out

    assert text("1") == text("1") != text("2")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["generate", "no/such/dir", "x"], 1, "no/such/dir: no such directory"),
        (["generate", "demo", "x", "--temperature", "-1"], 1, "temperature: must be from 0"),
        (["generate", "demo", "x", "--max-tokens", "0"], 1, "max_tokens: must be at least 1"),
        (["generate", "demo", "x", "--max-model-len", "9999"], 1, "max_model_len is 9999"),
        (["generate", "demo", "x", "--gpu-memory-utilization", "1.5"], 1, "gpu_memory_utilization must be above 0"),
        (["generate", "demo", "x", "--tensor-parallel-size", "64"], 1, "tensor_parallel_size is 64"),
        (["serve", "demo", "--port", "70000"], 1, "port must be from 0 to 65535"),
        (["serve", "no/such/dir"], 1, "no/such/dir: no such directory"),
        (["demo", "--requests", "0"], 1, "--requests and --max-tokens must be at least 1"),
        (["bench", "throughput", "demo", "--num-prompts", "0"], 1, "--num-prompts must be at least 1"),
        (["bench", "serve", "localhost:1", "--concurrency", "0"], 1, "--concurrency must be at least 1"),
        (["convert", "no/such/dir", "target"], 1, "no/such/dir: no such directory"),
        (["generate", "demo", "x", "--dtype", "int8"], 2, "invalid choice: 'int8'"),
        (["generate", "demo", "x", "--page-size", "many"], 2, "invalid int value: 'many'"),
        (["generate", "demo", "x", "--no-such-flag"], 2, "unrecognized arguments: --no-such-flag"),
        (["serve"], 2, "the following arguments are required: model"),
        (["fly"], 2, "invalid choice: 'fly'"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_what_cannot_work_ends_with_a_message_and_no_traceback(
    words: list[str], status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        ended: Any = main(words)
    except SystemExit as exit_:
        ended = exit_.code
    output = capfd.readouterr()
    assert ended == status
    assert message in output.err
    assert output.out == "" and "Traceback" not in output.err


def test_ctrl_c_ends_with_the_usual_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxserve.engine.llm.LLM.from_config", interrupted)
    assert main(["generate", "demo", "x"]) == 128 + signal.SIGINT
    assert "Traceback" not in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"jaxserve {jaxserve.__version__}\n"


def test_bench_throughput_prints_the_figures_of_its_prompts(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-prompts", "3", "--input-len", "7", "--output-len", "5"]
    command = ["bench", "throughput", str(DATA / "gqa"), "--skip-tokenizer-init", *sizes, *small]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_requests"], figures["input_tokens"], figures["output_tokens"]) == (3, 21, 15)
    assert figures["output_throughput"] == pytest.approx(15 / figures["duration"])
    assert main(command) == 0
    assert "21 in, 15 out" in capsys.readouterr().out


def test_convert_writes_what_generate_loads(
    tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "converted"
    assert main(["convert", str(resolve_model("demo")), str(target)]) == 0
    assert f"jaxserve serve {target}" in capsys.readouterr().out
    answers = []
    for model in ("demo", str(target)):
        assert main(["generate", model, "def f(x):", "--max-tokens", "6", *small]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_the_module_runs_as_a_program_and_help_loads_no_jax() -> None:
    code = "import sys, runpy; sys.argv = ['jaxserve', '--help']\n"
    code += "try: runpy.run_module('jaxserve', run_name='__main__')\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    for command in ("serve", "generate", "demo", "bench", "convert"):
        assert command in done.stdout
