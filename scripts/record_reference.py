"""Record reference outputs of small random models, as transformers computes them on the CPU in float32.

jaxserve's tests compare against what this writes; nothing of jaxserve is needed, nor torch by jaxserve. To record
again, in an environment of its own:

    python -m venv /tmp/reference && /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    /tmp/reference/bin/python scripts/record_reference.py tests/data

The cases are in scripts/reference_cases. Families that transformers does not have are recorded by
scripts/record_numpy_reference.py, in the same form. Each case becomes a directory that holds an ordinary checkpoint
(config.json, generation_config.json, safetensors) and reference.npz:

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded_case import NUM_GREEDY, record, record_case
from reference_cases import CASES, ROPE_COMMON, ROPE_POSITIONS, ROPE_SETTINGS, Case
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

MAX_SEEDS = 1000
FINAL_NORMS = ("model.norm.weight", "transformer.ln_f.weight")


def build(case: Case, directory: Path, seed: int) -> PreTrainedModel:
    """A model of random weights, large enough that positions and biases matter and greedy tokens vary."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32).eval()
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    offset = 1.0 if model.config.model_type.startswith("gemma") else 0.0  # Gemma multiplies by 1 + w
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(".bias"):
            parameter.copy_(0.3 * noise)
        elif case.signed_final_norm and name in FINAL_NORMS:
            parameter.copy_(noise - offset)
        elif parameter.ndim == 1:
            parameter.copy_(1.0 - offset + 0.2 * noise)
        else:
            fan_in = parameter.shape[0] if name in transposed else parameter.shape[-1]
            parameter.copy_(noise * (1.6 / fan_in**0.5))
    return model


def write_checkpoint(case: Case, directory: Path, seed: int) -> None:
    """Save a random model as a Hugging Face directory, config.json and tensor names as published ones have them."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    path = directory / "config.json"
    config = json.dumps(case.config, indent=2) + "\n"
    path.write_text(config)
    model = build(case, directory, seed)
    if case.generation_eos is not None:
        model.generation_config.eos_token_id = case.generation_eos
    model = model.to(getattr(torch, case.dtype))
    model.save_pretrained(directory, max_shard_size=case.shard_bytes or "1GB")
    path.write_text(config)
    if case.renamed or case.buffers:
        _as_published(case, directory / "model.safetensors")


def _as_published(case: Case, path: Path) -> None:
    tensors = load_file(path)
    for old, new in case.renamed:
        tensors = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()}
    for name, shape, dtype in case.buffers:
        for layer in range(case.num_layers):
            ones = torch.ones(shape)
            tensors[name.format(layer)] = (ones.tril() if ones.ndim > 1 else ones).to(getattr(torch, dtype))
    save_file(tensors, path, metadata={"format": "pt"})


def greedy_continuation(directory: Path, prompt: list[int]) -> tuple[np.ndarray, list[int], list[float]]:
    """See `recorded_case.Continue`."""
    # A new model each time: dynamic scaling remembers the longest sequence it has seen.
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=AutoConfig.from_pretrained(directory), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    out = model(torch.tensor(prompt)[None], use_cache=True)
    logits = out.logits[0].numpy()
    tokens: list[int] = []
    margins: list[float] = []
    for _ in range(NUM_GREEDY):
        top = torch.topk(out.logits[0, -1], 2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        out = model(top.indices[:1][None], past_key_values=out.past_key_values, use_cache=True)
    return logits, tokens, margins


def attempt(case: Case, directory: Path, seed: int) -> dict[str, np.ndarray] | None:
    """Write a checkpoint of random weights, and record it."""
    write_checkpoint(case, directory, seed)
    return record(
        case.prompt_lens,
        case.config["vocab_size"],
        seed,
        case.max_draws,
        lambda prompt: greedy_continuation(directory, prompt),
    )


def record_rope_tables(path: Path) -> None:
    """Write the cosines and sines of each of ROPE_SETTINGS, each position asked for by itself and in order."""
    settings: list[dict[str, Any]] = []
    tables = []
    for rope in ROPE_SETTINGS:
        embedding = LlamaRotaryEmbedding(LlamaConfig(**ROPE_COMMON | {"rope_parameters": dict(rope)}))
        settings.append(ROPE_COMMON | {"rope_parameters": rope})
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
    """Record every case and the tables, or the cases named."""
    parser = argparse.ArgumentParser(description="Record reference outputs for tests/data.")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all and the tables if left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    for name in arguments.cases or CASES:
        case, directory = CASES[name], arguments.out / name
        record_case(name, directory, lambda seed, c=case, d=directory: attempt(c, d, seed), MAX_SEEDS)  # type: ignore[misc]
    if not arguments.cases:
        record_rope_tables(arguments.out / "rope_tables.npz")


if __name__ == "__main__":
    main()
