"""Record reference outputs of small random models, as transformers computes them on the CPU in float32.

jaxserve's tests compare against what this writes; nothing of jaxserve is needed, nor torch by jaxserve. To record
again, in an environment of its own:

    python -m venv /tmp/reference && /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    /tmp/reference/bin/python scripts/record_reference.py tests/data

Each case becomes a directory that holds an ordinary checkpoint (config.json, generation_config.json, safetensors) and
reference.npz:

    prompt_lens [n]             tokens of each prompt
    prompts [sum]               the prompts' token ids, one after the other
    logits [sum, V]             float32 scores after each prompt token
    greedy [n, 24]              the tokens chosen greedily after each prompt, end-of-sequence tokens passed over
    greedy_margins [n, 24]      by how much each beat the second best; never small, so identity is a fair test

rope_tables.npz holds the cosines and sines of more ways to scale rotary embeddings than there are cases: `settings`
(JSON, a list of config.json's), `positions` [p], and `tables` [len(settings), p, 2, H / 2].
"""

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

NUM_GREEDY = 24
MIN_MARGIN = 5e-3
MIN_DISTINCT = 14
PROMPT_LENS = (1, 6, 19, 41)


@dataclass
class Case:
    """One checkpoint to record.

    Attributes:
        config: settings that differ from the common ones.
        old_style: write rope_theta, rope_scaling and torch_dtype as transformers 4 did.
        dtype: of the stored weights. The model computes in float32 from the stored values.
        prompt_lens: tokens of each prompt.
        shard_bytes: largest safetensors file; one file if None.
        mistral: use Mistral's classes.
        eos: end-of-sequence ids for generation_config.json.
    """

    config: dict[str, Any] = field(default_factory=dict)
    old_style: bool = False
    dtype: torch.dtype = torch.bfloat16
    prompt_lens: tuple[int, ...] = PROMPT_LENS
    shard_bytes: int | None = None
    mistral: bool = False
    eos: int | list[int] = 2


COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}

CASES = {
    "gqa": Case({"vocab_size": 131}, dtype=torch.float32),
    "mqa": Case({"num_key_value_heads": 1}, old_style=True),
    "mha": Case({"hidden_size": 64, "num_key_value_heads": 4, "head_dim": None}, old_style=True),
    "tied": Case({"vocab_size": 131, "tie_word_embeddings": True}),
    "bias": Case({"attention_bias": True, "mlp_bias": True}, dtype=torch.float16),
    "rope_linear": Case({"rope_parameters": LINEAR}, old_style=True),
    # The prompts stay within the original context and generation leaves it.
    "rope_dynamic": Case({"rope_parameters": DYNAMIC, "max_position_embeddings": 24}, prompt_lens=(1, 6, 13, 20)),
    "rope_llama3": Case({"rope_parameters": LLAMA3}, old_style=True),
    "rope_yarn": Case({"rope_parameters": YARN}),
    "sharded": Case({}, shard_bytes=20_000, eos=[2, 5]),
    "mistral": Case({"sliding_window": None}, mistral=True, old_style=True),
}

ROPE_SETTINGS: list[dict[str, Any]] = [
    LINEAR,
    DYNAMIC,
    LLAMA3,
    LLAMA3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    YARN,
    YARN | {"truncate": False},
    YARN | {"attention_factor": 0.8},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "factor": 40.0},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 1e6, "original_max_position_embeddings": 4096},
]
ROPE_POSITIONS = (0, 1, 2, 3, 31, 32, 33, 100, 127, 128, 129, 1000, 1001, 4095)


def build(case: Case, seed: int) -> LlamaForCausalLM:
    """A model of random weights, large enough that positions and biases matter and greedy tokens vary."""
    settings = COMMON | case.config
    config = (MistralConfig if case.mistral else LlamaConfig)(**settings)
    model = (MistralForCausalLM if case.mistral else LlamaForCausalLM)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * (1.6 / parameter.shape[1] ** 0.5))
    return model


def write_checkpoint(model: LlamaForCausalLM, case: Case, directory: Path) -> None:
    """Save as a Hugging Face directory in the style that the case wants."""
    shutil.rmtree(directory, ignore_errors=True)
    model.generation_config.eos_token_id = case.eos
    model = model.to(case.dtype)
    model.save_pretrained(directory, max_shard_size=case.shard_bytes or "1GB")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if case.config.get("head_dim", 16) is None:
        config.pop("head_dim", None)
    if case.old_style:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def record(directory: Path, case: Case, seed: int) -> dict[str, np.ndarray] | None:
    """Reference outputs of a written checkpoint; None if its greedy tokens repeat themselves or are near ties."""
    generator = np.random.default_rng(seed)
    vocab_size = (COMMON | case.config)["vocab_size"]
    prompts = [generator.integers(0, vocab_size, size=n) for n in case.prompt_lens]
    logits, greedy, margins = [], [], []
    for prompt in prompts:
        # A new model each time: dynamic scaling remembers the longest sequence it has seen.
        model = AutoModelForCausalLM.from_pretrained(
            directory, config=AutoConfig.from_pretrained(directory), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        out = model(torch.tensor(prompt)[None], use_cache=True)
        logits.append(out.logits[0].numpy())
        tokens, beaten = [], []
        for _ in range(NUM_GREEDY):
            top = torch.topk(out.logits[0, -1], 2)
            tokens.append(int(top.indices[0]))
            beaten.append(float(top.values[0] - top.values[1]))
            out = model(top.indices[:1][None], past_key_values=out.past_key_values, use_cache=True)
        if min(beaten) < MIN_MARGIN or len(set(tokens)) < MIN_DISTINCT:
            return None
        greedy.append(tokens)
        margins.append(beaten)
    return {
        "prompt_lens": np.array(case.prompt_lens, np.int32),
        "prompts": np.concatenate(prompts).astype(np.int32),
        "logits": np.concatenate(logits).astype(np.float32),
        "greedy": np.array(greedy, np.int32),
        "greedy_margins": np.array(margins, np.float32),
    }


def record_case(name: str, case: Case, directory: Path) -> None:
    """Write a checkpoint and its reference outputs, with the first seed whose greedy tokens make a fair test."""
    for seed in range(1000):
        write_checkpoint(build(case, seed), case, directory)
        reference = record(directory, case, seed)
        if reference is not None:
            np.savez_compressed(directory / "reference.npz", **reference)
            size = sum(p.stat().st_size for p in directory.iterdir())
            print(
                f"{name}: seed {seed}, least margin {reference['greedy_margins'].min():.4f}, {size} bytes", flush=True
            )
            return
    raise SystemExit(f"{name}: no seed gives tokens that vary")


def record_rope_tables(path: Path) -> None:
    """Write the cosines and sines of each of ROPE_SETTINGS, each position asked for by itself and in order."""
    settings, tables = [], []
    for rope in ROPE_SETTINGS:
        config = COMMON | {"rope_parameters": dict(rope), "max_position_embeddings": 128}
        embedding = LlamaRotaryEmbedding(LlamaConfig(**config))
        settings.append({"architectures": ["LlamaForCausalLM"], **config, "rope_parameters": rope})
        rows = [embedding(torch.zeros(1), torch.tensor([[p]])) for p in ROPE_POSITIONS]
        tables.append([[part[0, 0, : part.shape[-1] // 2].numpy() for part in row] for row in rows])
    np.savez_compressed(
        path,
        settings=json.dumps(settings),
        positions=np.array(ROPE_POSITIONS, np.int32),
        tables=np.array(tables, np.float32),
    )


@torch.no_grad()
def main() -> None:
    """Record every case, or those named."""
    parser = argparse.ArgumentParser(description="Record reference outputs for tests/data.")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all if left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases or CASES:
        record_case(name, CASES[name], arguments.out / name)
    record_rope_tables(arguments.out / "rope_tables.npz")


if __name__ == "__main__":
    main()
