"""Hands cases to `interpreted_triton` and brings the results back."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class KernelCase:
    """One call: the arguments and options of an operation's Triton implementation."""

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]


def interpret_cases(directory: Path, cases: dict[str, KernelCase]) -> dict[str, list[np.ndarray]]:
    """The results of each case, computed by Triton's interpreter in a process of its own."""
    for name, case in cases.items():
        np.savez(directory / f"{name}.npz", options=json.dumps(case.options), **case.arrays)
    command = [sys.executable, "-m", "tests.pallas_kernels.interpreted_triton", str(directory)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    results = {name: np.load(directory / f"{name}.out.npz") for name in cases}
    return {name: [file[f"arr_{i}"] for i in range(len(file.files))] for name, file in results.items()}
