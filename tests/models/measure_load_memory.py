"""Load a checkpoint of some hundred megabytes and print how far the host's memory rose above the weights themselves.

Arguments: an empty directory, the number of devices, the dtype to load as.
"""

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax

from jaxserve.config import DType
from jaxserve.models.checkpoint import load_model
from jaxserve.models.registry import MODEL_FAMILIES, load_config
from jaxserve.sharding import make_mesh

HIDDEN, INNER, LAYERS = 1024, 10240, 3
ITEM_BYTES = 4


def _write_checkpoint(directory: Path, hidden: int, inner: int, layers: int) -> list[int]:
    """Write a float32 checkpoint whose data is a hole in its file; the bytes of each tensor."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": inner,
        "max_position_embeddings": 64,
    }
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    sizes = []
    for name, shape in _tensors(directory):
        start, end = end, end + math.prod(shape) * ITEM_BYTES
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        sizes.append(end - start)
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return sizes


def _tensors(directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    config = load_config(directory)
    for source in MODEL_FAMILIES[config.architecture].weights(config, 1).values():
        for tensor in source.tensors:
            yield tensor.name, tensor.shape


def _resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Measure and print JSON."""
    jax.config.update("jax_num_cpu_devices", 4)
    directory, mesh, dtype = Path(sys.argv[1]), make_mesh(int(sys.argv[2])), cast(DType, sys.argv[3])
    _write_checkpoint(directory / "small", 64, 128, 1)
    sizes = _write_checkpoint(directory / "large", HIDDEN, INNER, LAYERS)
    # What jax and the loader need once, however large the model.
    load_model(directory / "small", mesh, dtype=dtype)
    before = _resident("VmRSS")
    model = load_model(directory / "large", mesh, dtype=dtype)
    # The high-water mark of the whole process is that of the load, since the model is larger than all else in it.
    peak = _resident("VmHWM") - before - model.num_bytes
    print(json.dumps({"peak_bytes": peak, "largest_bytes": max(sizes), "total_bytes": sum(sizes)}))


if __name__ == "__main__":
    main()
