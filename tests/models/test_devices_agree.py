"""What several devices compute beside what one does, and beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import Recording

# Of a layer: both norms, q with k and v, rotated, attended, gate with up, their product, the sums over devices, and the
# stream after each of them.
ROUNDINGS = 10


def load(data_dir: Path, case: str, devices: int, dtype: Any) -> LoadedModel:
    return load_model(data_dir / case, make_mesh(devices), dtype=dtype, max_model_len=64)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("case", ["gqa", "olmo2", "falcon"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_devices_have_the_same_bits(
    dtype: str,
    case: str,
    devices: int,
    data_dir: Path,
    hidden_on_each_device: Callable[[LoadedModel, list[list[int]]], list[np.ndarray]],
) -> None:
    """Nothing but this makes them choose the same tokens. Devices have each their own copy of the stream."""
    first, *others = hidden_on_each_device(load(data_dir, case, devices, dtype), Recording.of(case).prompts)
    assert len(others) == devices - 1 and np.asarray(first, np.float32).std() > 0.1
    for other in others:
        assert other.tobytes() == first.tobytes()


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("case", ["gqa", "mha", "olmo2"])
def test_logits_in_bfloat16_lie_within_its_rounding_of_one_device_s(
    case: str, devices: int, data_dir: Path, forward: Any
) -> None:
    """Sums over devices are rounded elsewhere than one product is, and from the first value that differs on, all later
    roundings are as good as independent. One moves a value by a share of at most u = 2^-8, evenly spread: u / sqrt(3)
    in the mean square. So two computations of n roundings lie sqrt(2 n / 3) u apart."""
    prompts = Recording.of(case).prompts
    one = load(data_dir, case, 1, "bfloat16")
    expected = forward(one, prompts)
    distance = np.sqrt(np.mean((forward(load(data_dir, case, devices, "bfloat16"), prompts) - expected) ** 2))
    bound = 2**-8 * np.sqrt(2 / 3 * ROUNDINGS * one.config.num_layers) * expected.std()
    assert bound / 100 < distance < bound
    exact = forward(load(data_dir, case, 1, "float32"), prompts)
    # Nor are they further from each other than two that are each as far from the truth as the one.
    assert distance < np.sqrt(2 * np.mean((expected - exact) ** 2))
