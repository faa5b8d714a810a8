"""Checkpoints of the NumPy references: random ones written, and any read."""

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.references.blocks import Array
from tests.references.cases import NumpyCase


def read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """config.json and all tensors, in float64."""
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    return config, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def write_checkpoint(case: NumpyCase, directory: Path, seed: int) -> None:
    """Random weights, large enough that positions and biases matter and greedy tokens vary; stored in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, shape in case.reference.tensor_shapes(case.config).items():
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith(".bias"):
            value = 0.3 * noise
        elif len(shape) == 1:
            value = 1.0 + 0.2 * noise
        else:
            value = noise * 1.6 / np.sqrt(shape[1])
        if name == "lm_head.weight":  # rows of different lengths, so that normalising them matters
            value *= np.exp(0.3 * noise[:, :1])
        tensors[name] = value.astype(ml_dtypes.bfloat16)
    if case.inv_freq:
        half = case.config["hidden_size"] // case.config["num_attention_heads"] // 2
        frequencies = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
        for layer in range(case.config["num_hidden_layers"]):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(dict(sorted(case.config.items())), indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}, indent=2) + "\n")
