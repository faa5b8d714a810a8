"""The bundled model: its files, and that the engine computes with them what the training script does."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from demo_model_llama import ModelConfig, Params, forward
from safetensors import safe_open

from jaxserve import LLM, SamplingParams
from jaxserve.tokenizer import Tokenizer

PROMPT = 'def mean(values):\n    """Return'


@pytest.fixture(scope="module")
def tokenizer(demo_directory: Path) -> Tokenizer:
    return Tokenizer.load(demo_directory)


@pytest.fixture(scope="module")
def params(demo_directory: Path) -> Params:
    with safe_open(demo_directory / "model.safetensors", framework="flax") as file:
        return {name: file.get_tensor(name).astype(jnp.float32) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def config(demo_directory: Path) -> ModelConfig:
    settings: dict[str, Any] = json.loads((demo_directory / "config.json").read_text())
    return ModelConfig(**{name: settings[name] for name in ModelConfig.__dataclass_fields__})


def test_it_is_small(demo_directory: Path, params: Params) -> None:
    assert sum(value.size for value in params.values()) <= 6_000_000
    assert (demo_directory / "model.safetensors").stat().st_size <= 12_000_000


def test_weights_are_bfloat16(demo_directory: Path) -> None:
    with safe_open(demo_directory / "model.safetensors", framework="flax") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {jnp.dtype(jnp.bfloat16)}  # noqa: SIM118


def test_the_license_of_the_training_text_is_noted(demo_directory: Path) -> None:
    assert "PSF LICENSE AGREEMENT" in (demo_directory / "LICENSE").read_text().upper()
    assert "PSF License Agreement" in (demo_directory / "README.md").read_text()


def test_the_record_holds_the_held_out_loss(demo_directory: Path) -> None:
    record = json.loads((demo_directory / "training.json").read_text())
    lowest = min(entry["held_out_loss"] for entry in record["history"])
    assert record["held_out_nats_per_token"] == pytest.approx(lowest, abs=0.01)  # the weights rounded to bfloat16
    assert record["data"]["num_train_files"] > record["data"]["num_held_out_files"] > 0


def test_the_tokenizer_fits_the_model(tokenizer: Tokenizer, config: ModelConfig) -> None:
    assert tokenizer.vocab_size == config.vocab_size == 4096
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x\n\n\n", "  \r\n é 東京 😀\0", "", "\n", "a" * 5000])
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_prompt_that_ends_a_line_is_cut_as_in_the_text_it_begins(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("def f(n):\n    return n\n")
    for beginning in ("def f(n):", "def f(n):\n", "def f(n):\n    "):
        ids = tokenizer.encode(beginning)
        assert ids == whole[: len(ids)]


def test_chat_writes_messages_as_comments(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Add two\nnumbers."}, {"role": "assistant", "content": "a + b"}]
    text = tokenizer.decode(tokenizer.apply_chat_template(messages), skip_special_tokens=False)
    assert text == "<bos># Add two\n# numbers.\na + b\n\n"


def test_it_predicts_python(tokenizer: Tokenizer, params: Params, config: ModelConfig) -> None:
    text = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    ids = np.array([tokenizer.encode(text)[:257]])
    logits = np.asarray(forward(params, jnp.asarray(ids[:, :-1]), config), np.float64)[0]
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(256), ids[0, 1:]]
    assert nats.mean() < 2.5  # an untrained model has log(4096), 8.3


def test_the_engine_generates_what_the_plain_forward_pass_does(
    tokenizer: Tokenizer, params: Params, config: ModelConfig
) -> None:
    ids = tokenizer.encode(PROMPT)
    window = np.zeros((1, len(ids) + 24), np.int32)
    window[0, : len(ids)] = ids
    for i in range(len(ids), window.shape[1]):
        window[0, i] = int(jnp.argmax(forward(params, jnp.asarray(window), config)[0, i - 1]))
    llm = LLM("demo", dtype="float32", max_num_seqs=2, max_num_batched_tokens=64, num_pages=80, compile_ahead=False)
    output = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=24), use_tqdm=False)[0].outputs[0]
    assert output.token_ids == window[0, len(ids) :].tolist()
    assert PROMPT + output.text == tokenizer.decode(window[0].tolist())
