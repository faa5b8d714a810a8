#!/usr/bin/env python3
"""Writes the tables of docs/models.md: what is supported, what proves it, and what fits on which GPUs.

    uv run scripts/models_table.py            # writes them
    uv run scripts/models_table.py --check    # exits 1 if they are not what is there

Everything in them is derived: architectures and features from the families' code, reading the config.json of the
checkpoints in tests/data; sizes from scripts/published_models.py.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from published_models import PUBLISHED  # noqa: E402

from jaxserve.errors import ConfigError  # noqa: E402
from jaxserve.models.config import ModelConfig  # noqa: E402
from jaxserve.models.families import FAMILIES  # noqa: E402
from jaxserve.models.family import ModelFamily  # noqa: E402
from jaxserve.models.registry import MODEL_FAMILIES, load_config  # noqa: E402

DOCS = ROOT / "docs" / "models.md"
DATA = ROOT / "tests" / "data"
GPU_BYTES = {"80 GB": 80e9, "141 GB": 141e9}
NUM_GPUS = (1, 2, 4, 8)
# gpu_memory_utilization by default, what a step's temporaries take of it, and the least context worth serving.
UTILIZATION, TEMPORARY_BYTES, CONTEXT = 0.9, 2 * 2**30, 8192
BF16_BYTES = 2


def features(config: ModelConfig) -> list[str]:
    """How a model differs from the first Llama."""
    rope = {config.rope.kind} | ({config.local_rope.kind} if config.local_rope else set())
    named = {
        "LayerNorm": config.norm == "layer",
        "(1 + w) norms": config.norm == "rms_plus_one",
        "norms after attention and feed-forward": config.norm_placement == "after",
        "norms before and after": config.norm_placement == "around",
        "parallel attention and feed-forward": config.parallel_residual,
        "q/k norm of each head": config.qk_norm == "head",
        "q/k norm of all heads": config.qk_norm == "whole",
        "grouped queries": 1 < config.num_kv_heads < config.num_query_heads,
        "multi-query": config.num_kv_heads == 1,
        "QKV bias": config.qkv_bias,
        "sliding window": "local" in config.layer_kinds and "global" not in config.layer_kinds,
        "window in some layers": "local" in config.layer_kinds and "global" in config.layer_kinds,
        "rope of its own in local layers": config.local_rope is not None,
        "ALiBi": config.positions == "alibi",
        "learned positions": config.positions == "learned",
        "partial rotation": config.rotary_dim is not None,
        **{f"rope {kind}": True for kind in sorted(rope - {"default"})},
        "log n scaling": config.logn_length is not None,
        "soft caps": config.attention_soft_cap is not None or config.logits_soft_cap is not None,
        "scaled embeddings": config.embedding_multiplier != 1.0,
        "scaled residual": config.residual_multiplier != 1.0,
        "scaled logits": config.logits_divisor != 1.0,
        "normalised head": config.normalized_head,
        "plain feed-forward": not config.gated_mlp,
        "routed experts": config.experts is not None,
        "tied embeddings": config.tie_word_embeddings,
    }
    return [name for name, has in named.items() if has]


def recorded_cases() -> dict[str, ModelConfig]:
    """The recorded checkpoints, by name."""
    return {path.parent.name: load_config(path.parent) for path in sorted(DATA.glob("*/reference.npz"))}


def support_table() -> list[str]:
    """One row a family: architectures, features, and the recorded checkpoints that prove them."""
    cases = recorded_cases()
    rows = ["| family | architectures | what is covered, beside plain Llama | proved by |", "|---|---|---|---|"]
    for family in FAMILIES:
        own = {name: config for name, config in cases.items() if config.architecture in family.architectures}
        covered = dict.fromkeys(feature for config in own.values() for feature in features(config))
        architectures = ", ".join(f"`{name}`" for name in family.architectures)
        proofs = ", ".join(f"`{name}`" for name in own)
        rows.append(f"| {family.name} | {architectures} | {', '.join(covered)} | {proofs} |")
    return rows


def size_table() -> list[str]:
    """One row a published model: parameters, memory, and on how many GPUs it can be served."""
    columns = [f"{name} GPUs" for name in GPU_BYTES]
    rows = [f"| model | parameters | weights | a token | {' | '.join(columns)} |", "|---|---|---|---|" + "---|" * 2]
    for name, keys in PUBLISHED.items():
        config = _translate(keys)
        family = MODEL_FAMILIES[config.architecture]
        parameters = _num_parameters(family, config)
        fits = " | ".join(_fits(config, parameters, gpu_bytes) for gpu_bytes in GPU_BYTES.values())
        weights = parameters * BF16_BYTES / 2**30
        token = _token_bytes(config, 1) / 2**10
        rows.append(f"| {name} | {parameters / 1e9:.1f} B | {weights:.1f} GiB | {token:.0f} KiB | {fits} |")
    return rows


def _translate(keys: dict[str, Any]) -> ModelConfig:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(keys), encoding="utf-8")
        return load_config(directory)


def _num_parameters(family: ModelFamily, config: ModelConfig) -> int:
    return sum(math.prod(t.shape) for source in family.weights(config, 1).values() for t in source.tensors)


def _token_bytes(config: ModelConfig, num_gpus: int) -> int:
    num_kv_heads, _ = config.parallel_heads(num_gpus)
    return 2 * config.num_layers * num_kv_heads * config.head_dim * BF16_BYTES


def _fits(config: ModelConfig, parameters: int, gpu_bytes: float) -> str:
    """The numbers of GPUs over which the model can be split and that have room for it and one context."""
    fitting = []
    for num_gpus in NUM_GPUS:
        try:
            token_bytes = _token_bytes(config, num_gpus)
        except ConfigError:
            continue
        needed = (parameters * BF16_BYTES + min(CONTEXT, config.context_length) * token_bytes) / num_gpus
        if needed + TEMPORARY_BYTES <= gpu_bytes * UTILIZATION:
            fitting.append(str(num_gpus))
    return ", ".join(fitting) or "–"


def updated(text: str) -> str:
    """docs/models.md with the tables as they must be."""
    for name, rows in (("support", support_table()), ("sizes", size_table())):
        begin, end = f"<!-- {name} table: scripts/models_table.py -->", f"<!-- end of {name} table -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise SystemExit(f"{DOCS}: needs a block from {begin!r} to {end!r}")
        text = before + "\n".join([begin, "", *rows, "", end]) + after
    return text


def main() -> int:
    """Write the tables, or check them."""
    text = DOCS.read_text(encoding="utf-8")
    wanted = updated(text)
    if sys.argv[1:] == ["--check"]:
        if text != wanted:
            print(f"{DOCS} is not up to date; run scripts/models_table.py")
        return int(text != wanted)
    DOCS.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
