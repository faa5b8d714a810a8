"""Products by group and experts' networks: reference and interpreted Triton kernels against NumPy in float64."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import expert_mlp, grouped_matmul
from pallas_kernels.grouped_matmul.arg_specs import EXPERTS, ExpertSpec
from pallas_kernels.grouped_matmul.config import MatmulConfig, SortConfig, matmul_config, tile_rows
from pallas_kernels.grouped_matmul.triton import max_tiles
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases
from tests.references.blocks import silu

# Small blocks, so that small matrices have several of them; none divides the shapes below but where it says so.
CONFIG = MatmulConfig(16, 32, 16, num_warps=4, num_stages=2, tiles_together=3)
SIZES = {
    "even groups": [20, 20, 20, 20],
    "empty groups": [0, 33, 0, 0, 7, 0],
    "all rows in one group": [0, 0, 50, 0],
    "one row each": [1] * 9,
    "one row more than a tile": [17, 17, 17],
    "rows past the last group": [5, 0, 9],
}
# Name -> (model, tokens, which experts tokens choose).
BATCHES = {
    "one token": ("many experts", 1, "any"),
    "one token, few experts": ("few experts", 1, "any"),
    "as many tokens as need no sorting": ("many experts", 16, "any"),
    "no sorting, few experts": ("few experts", 16, "any"),
    "no sorting, all choose the same": ("many experts", 16, "same"),
    "one token more": ("many experts", 17, "any"),
    "sorted": ("many experts", 70, "any"),
    "sorted, few experts": ("few experts", 70, "any"),
    "sorted, all choose the same": ("few experts", 70, "same"),
    "blocks divide the matrices": ("even", 40, "any"),
    "one expert for each token": ("one of many", 40, "any"),
}
SPECS = {
    "many experts": ExpertSpec(40, 4, 24, 20),
    "few experts": ExpertSpec(4, 2, 40, 36),
    "one of many": ExpertSpec(17, 1, 24, 20),
    "even": ExpertSpec(8, 2, 32, 64),
}


def products_by_group(sizes: list[int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    rows = sum(sizes) + (6 if sizes == SIZES["rows past the last group"] else 0)
    lhs = rng.standard_normal((rows, 40)).astype(np.float32)
    rhs = rng.standard_normal((len(sizes), 72, 40)).astype(np.float32)
    expected = np.zeros((rows, 72))
    starts = np.cumsum([0, *sizes])
    for group, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        expected[start:end] = lhs[start:end].astype(np.float64) @ rhs[group].T
    return {"lhs": lhs, "rhs": rhs, "group_sizes": np.array(sizes, np.int32)}, expected


def experts(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arguments of expert_mlp for one of BATCHES, and the right result, one token and expert at a time."""
    model, num_tokens, choice = BATCHES[name]
    spec, rng = SPECS[model], np.random.default_rng(1)
    e, k, d, f = spec.num_experts, spec.num_experts_per_token, spec.hidden_size, spec.intermediate_size
    x = rng.standard_normal((num_tokens, d)).astype(np.float32)
    choices = [rng.permutation(e)[:k] for _ in range(num_tokens)]
    ids = np.array([choices[0]] * num_tokens if choice == "same" else choices, np.int32)
    weights = rng.uniform(0.1, 1, ids.shape).astype(np.float32)
    gate_up = (rng.standard_normal((e, 2, f, d)) / np.sqrt(d)).astype(np.float32)
    down = (rng.standard_normal((e, d, f)) / np.sqrt(f)).astype(np.float32)
    expected = np.zeros((num_tokens, d))
    for t, j in np.ndindex(ids.shape):
        gate, up = gate_up[ids[t, j]].astype(np.float64) @ x[t]
        expected[t] += weights[t, j] * (down[ids[t, j]] @ (silu(gate) * up))
    return {"x": x, "expert_ids": ids, "expert_weights": weights, "gate_up": gate_up, "down": down}, expected


@pytest.mark.parametrize("case", SIZES)
def test_the_reference_multiplies_each_row_by_the_matrix_of_its_group(case: str) -> None:
    args, expected = products_by_group(SIZES[case])
    np.testing.assert_allclose(jax.jit(grouped_matmul)(*args.values()), expected, atol=1e-4)


@pytest.mark.parametrize("case", BATCHES)
def test_the_reference_adds_up_the_weighted_experts_of_each_token(case: str) -> None:
    args, expected = experts(case)
    np.testing.assert_allclose(jax.jit(expert_mlp)(*args.values()), expected, atol=1e-5)


@pytest.mark.parametrize("token", [0, 7])
def test_a_token_of_nan_leaves_the_others_as_they_are(token: int) -> None:
    args, expected = experts("sorted")
    args["x"][token] = np.nan
    out = np.asarray(jax.jit(expert_mlp)(*args.values()))
    others = np.arange(len(out)) != token
    np.testing.assert_allclose(out[others], expected[others], atol=1e-5)


def _cases() -> dict[str, tuple[KernelCase, np.ndarray]]:
    cases = {}
    for name, sizes in SIZES.items():
        args, expected = products_by_group(sizes)
        cases[f"groups, {name}"] = (
            KernelCase(args, {"operation": "grouped_matmul", "config": asdict(CONFIG)}),
            expected,
        )
    # Blocks of rows that are sorted together: all in one, a few, and more than are summed at once.
    sorts = {"sorted": [(16, 1), (32, 2), (4, 1)], "sorted, few experts": [(64, 4)]}
    for name in BATCHES:
        args, expected = experts(name)
        for chunk, chunks in sorts.get(name, [(128, 1)]):
            options = {"config": asdict(CONFIG), "sort": asdict(SortConfig(chunk, chunks))}
            cases[f"{name}, {chunks} x {chunk}"] = (KernelCase(args, {"operation": "expert_mlp", **options}), expected)
    for name in ("no sorting, few experts", "sorted"):
        args, expected = experts(name)
        args["x"][3] = np.nan
        expected[3] = np.nan
        options = {"config": asdict(CONFIG), "sort": asdict(SortConfig(32, 1))}
        cases[f"{name}, one token NaN"] = (KernelCase(args, {"operation": "expert_mlp", **options}), expected)
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    results = interpret_cases(tmp_path_factory.mktemp("cases"), {name: case for name, (case, _) in CASES.items()})
    return {name: out for name, (out,) in results.items()}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_products_one_row_at_a_time(case: str, outputs: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(outputs[case], CASES[case][1], atol=1e-4)


def test_no_batch_needs_more_tiles_than_are_launched() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        num_groups, block = rng.integers(1, 20), 2 ** rng.integers(2, 5)
        sizes = rng.integers(0, 40, num_groups) * rng.integers(0, 2, num_groups)
        sizes[0] += 1
        assert sum(-(-sizes // block)) <= max_tiles(int(sizes.sum()), int(num_groups), int(block))


@pytest.mark.parametrize("spec", EXPERTS)
@pytest.mark.parametrize("num_rows", [1, 16, 300, 65536])
def test_tiles_of_real_models_fit_the_rows_and_shared_memory(spec: str, num_rows: int) -> None:
    experts = EXPERTS[spec]
    for dtype in ("bfloat16", "float32"):
        block_m = tile_rows(num_rows, experts.num_experts, dtype)
        for n, k in [
            (2 * experts.intermediate_size, experts.hidden_size),
            (experts.hidden_size, experts.intermediate_size),
        ]:
            config = matmul_config(block_m, min(num_rows, experts.num_experts), n, k, dtype)
            assert k % config.block_k == 0
            row = config.block_k * jnp.dtype(dtype).itemsize * config.num_stages
            assert (config.block_m + config.block_n) * row <= 227 * 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((16, 39), np.float32)}, "x must be"),
        ({"expert_ids": np.zeros((16, 1), np.int32)}, "must both be"),
        ({"down": np.zeros((4, 36, 40), np.float32)}, "down"),
        ({"gate_up": np.zeros((4, 3, 36, 40), np.float32)}, "gate_up must be"),
        ({"expert_ids": np.zeros((16, 5), np.int32), "expert_weights": np.zeros((16, 5), np.float32)}, "1 to 4"),
    ],
)
def test_shapes_that_contradict_each_other_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    args, _ = experts("no sorting, few experts")
    with pytest.raises(ValueError, match=message):
        expert_mlp(*(args | change).values())


def test_groups_that_do_not_fit_the_matrices_are_refused() -> None:
    args, _ = products_by_group(SIZES["even groups"])
    with pytest.raises(ValueError, match="group_sizes"):
        grouped_matmul(args["lhs"], args["rhs"], args["group_sizes"][1:])


def test_an_unknown_implementation_and_a_mixture_of_dtypes_for_triton_are_refused() -> None:
    args, _ = products_by_group(SIZES["even groups"])
    with pytest.raises(ValueError, match="unknown implementation 'cublas'"):
        grouped_matmul(*args.values(), implementation="cublas")
    with pytest.raises(ValueError, match="one dtype"):
        grouped_matmul(args["lhs"].astype(np.float16), args["rhs"], args["group_sizes"], implementation="triton")
