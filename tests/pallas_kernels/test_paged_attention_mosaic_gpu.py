"""The Mosaic GPU prefill kernel, interpreted on the CPU in float16, against attention written out in float64."""

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention import mosaic_gpu, paged_attention
from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS, BatchSpec, HeadSpec
from pallas_kernels.paged_attention.config import MosaicPrefillConfig
from tests.pallas_kernels.cases import SCALE, attention_case

HEADS_OF_64 = HeadSpec(1, 2, 64)
# Tiles of 64 tokens: several to a sequence, parts of one, exactly one; few tokens after much context.
RAGGED = BatchSpec(((150, 150), (70, 200), (1, 40), (64, 64), (3, 77)))

# Name -> (heads, batch, config, page size).
CASES: dict[str, tuple[HeadSpec, BatchSpec, MosaicPrefillConfig, int]] = {
    **{name: (HEADS["demo"], batch, MosaicPrefillConfig(2, 64, 2), 16) for name, batch in BATCHES.items()},
    "many tiles": (HEADS_OF_64, RAGGED, MosaicPrefillConfig(2, 64, 2), 16),
    "a program a tile": (HEADS_OF_64, RAGGED, MosaicPrefillConfig(2, 64, 2, persistent=False), 16),
    "one query head a tile": (HeadSpec(2, 1, 64), RAGGED, MosaicPrefillConfig(1, 128, 3), 16),
    "four query heads a tile": (HeadSpec(1, 4, 64), RAGGED, MosaicPrefillConfig(4, 128, 2), 16),
    "head_dim 128": (HeadSpec(1, 2, 128), RAGGED, MosaicPrefillConfig(2, 128, 2), 16),
    "a block is a page": (HEADS_OF_64, RAGGED, MosaicPrefillConfig(2, 64, 2), 64),
    "a page is four blocks": (HEADS_OF_64, RAGGED, MosaicPrefillConfig(2, 64, 2), 256),
}


def computed(args: tuple[np.ndarray, ...], config: MosaicPrefillConfig) -> np.ndarray:
    q, pool, *metadata = args

    def run(*arrays: Any) -> jax.Array:
        interpret = plgpu.InterpretGPUParams()
        return mosaic_gpu.prefill_mosaic_gpu(*arrays, scale=SCALE, config=config, interpret=interpret)

    return np.asarray(jax.jit(run)(q.astype(np.float16), pool.astype(np.float16), *map(jnp.asarray, metadata)))


@pytest.mark.parametrize("case", CASES)
def test_prompts_equal_dense_attention_and_padding_is_zero(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_gpu, "NUM_SMS", 3)  # so that a program has several tiles, and some have none
    heads, batch, config, page_size = CASES[case]
    args, expected = attention_case(heads, batch, np.random.default_rng(0), page_size=page_size)
    out = computed(args, config)
    start_loc = args[3]
    for start, end in zip(start_loc[:-1], start_loc[1:], strict=True):
        if end - start > 1:  # single queries are left to the decode kernel
            np.testing.assert_allclose(out[start:end], expected[start:end], atol=6e-3)
    assert (out[len(expected) :] == 0).all()


def test_what_the_kernel_cannot_compute_is_refused_by_name() -> None:
    args, _ = attention_case(HEADS["demo"], BATCHES["mixed"], np.random.default_rng(0))
    q, pool, *metadata = args
    half = (q.astype(np.float16), pool.astype(np.float16), *metadata)
    with pytest.raises(ValueError, match="mosaic_gpu takes bfloat16 or float16"):
        paged_attention(*args, scale=SCALE, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="no window"):
        paged_attention(*half, scale=SCALE, window=5, implementation="mosaic_gpu")
