"""The training script on a corpus of a few files."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from demo_model_corpus import Corpus, prepare, read_sources
from demo_model_export import export, to_numpy
from demo_model_llama import ModelConfig
from tokenizers import Tokenizer as Backend
from train_demo_model import TrainConfig, learning_rate, line_starts, train

from jaxserve.tokenizer import Tokenizer

CODE = "def function_{i}(value):\n    if value > {i}:\n        return value + {i}\n    return None\n\n\n"
TINY = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    (root / "encodings").mkdir()
    for i in range(120):
        (root / f"module_{i}.py").write_text(CODE.format(i=i) * 3)
    (root / "copy.py").write_text(CODE.format(i=0) * 3)
    (root / "broken.py").write_text("def f(:\n" * 100)
    (root / "table.py").write_text("X = [" + "1234567, " * 100 + "]")
    (root / "encodings" / "cp1.py").write_text(CODE.format(i=500) * 3)
    (root / "LICENSE.txt").write_text("the licence")
    return root


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return prepare(folder)


def test_broken_repeated_and_generated_files_are_left_out(folder: Path) -> None:
    names = set(read_sources(folder))
    assert {"broken.py", "table.py", "encodings/cp1.py"}.isdisjoint(names)
    assert len(names & {"copy.py", "module_0.py"}) == 1
    assert len(names) == 120


def test_held_out_files_are_not_trained_on(corpus: Corpus) -> None:
    tokenizer = Backend.from_str(corpus.tokenizer_json)
    held_out = set(tokenizer.decode(corpus.held_out.tolist(), skip_special_tokens=False).split("<eos>")) - {""}
    train_files = set(tokenizer.decode(corpus.train.tolist(), skip_special_tokens=False).split("<eos>")) - {""}
    assert len(held_out) == corpus.facts["num_held_out_files"]
    assert len(train_files) == corpus.facts["num_train_files"]
    assert held_out.isdisjoint(train_files)


def test_a_saved_corpus_is_read_back_whole(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path / "corpus.npz")
    loaded = Corpus.load(tmp_path / "corpus.npz")
    assert np.array_equal(loaded.train, corpus.train)
    assert np.array_equal(loaded.held_out, corpus.held_out)
    rest = ("held_out_bytes", "tokenizer_json", "license_text", "facts")
    assert all(getattr(loaded, name) == getattr(corpus, name) for name in rest)


def test_windows_can_start_where_a_line_does(corpus: Corpus) -> None:
    tokenizer = Backend.from_str(corpus.tokenizer_json)
    starts = line_starts(corpus.train, tokenizer)
    assert len(starts) > 100
    assert all(tokenizer.id_to_token(int(corpus.train[i - 1])).endswith("Ċ") for i in starts[:50])


def test_the_learning_rate_warms_up_and_falls() -> None:
    settings = TrainConfig(warmup_steps=10)
    rates = [learning_rate(step, 200, settings) for step in range(200)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert rates[-1] == pytest.approx(settings.final_learning_rate, rel=0.1)


def test_training_learns_and_exports_a_model_directory(corpus: Corpus, tmp_path: Path) -> None:
    settings = TrainConfig(epochs=2, batch_size=8, seq_len=32, warmup_steps=4, eval_every=1000, dropout=0.0)
    params, record = train(corpus, TINY, settings, minutes=10.0)
    history = record["history"]
    assert isinstance(history, list)
    assert history[-1]["held_out_loss"] < 5.0  # log(4096) is 8.3
    record |= {"held_out_nats_per_token": 1.0, "held_out_bits_per_byte": 1.0}
    rounded = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    export(tmp_path, to_numpy(rounded), dataclasses.asdict(TINY), corpus, dataclasses.asdict(settings), record)
    assert Tokenizer.load(tmp_path).encode("def", add_special_tokens=False)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "LICENSE").read_text().endswith("the licence")


def test_the_same_seed_trains_the_same_weights(corpus: Corpus) -> None:
    settings = TrainConfig(epochs=0.2, batch_size=4, seq_len=32, dropout=0.1)
    first, _ = train(corpus, TINY, settings, minutes=10.0)
    second, _ = train(corpus, TINY, settings, minutes=10.0)
    assert all(np.array_equal(first[name], second[name]) for name in first)
