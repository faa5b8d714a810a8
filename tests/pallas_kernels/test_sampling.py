"""sampling_floor and gumbel_argmax: the references and the interpreted Triton kernels, against definitions."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.gumbel_argmax import gumbel_argmax
from pallas_kernels.gumbel_argmax.reference import gumbel_argmax_reference, gumbel_noise
from pallas_kernels.sampling_floor import sampling_floor
from pallas_kernels.sampling_floor.arg_specs import ParamsSpec
from pallas_kernels.sampling_floor.reference import sampling_floor_reference
from tests.pallas_kernels.sampling_cases import VOCAB_SIZE, Row, arrays, hard_rows, kept_by_definition, random_rows

ROWS = hard_rows() | random_rows(16)
RESTRICTIONS = ("temperature", "top_k", "top_p", "min_p")
# Sizes that send rows of 300 tokens through all that a real vocabulary meets: several chunks, a second pass, a list of
# several blocks, and a list too short.
SIZES = {
    "narrowed twice, short list": {
        "floor": {"chunk": 128, "fine_above": 8, "capacity": 32, "block": 128},
        "draw": {"chunk": 128, "few": 32},
    },
    "narrowed once, long list": {
        "floor": {"chunk": 256, "fine_above": 1000, "capacity": 512, "block": 128},
        "draw": {"chunk": 512, "few": 512},
    },
}


def floor_by_reference(inputs: dict[str, np.ndarray]) -> np.ndarray:
    names = ("logits", "best", *RESTRICTIONS)
    return np.asarray(jax.jit(sampling_floor_reference)(*(inputs[name] for name in names)))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Sizes -> what the kernels computed of all ROWS; `alone` has every seventh row and nothing else."""
    directory: Path = tmp_path_factory.mktemp("cases")
    inputs = arrays(list(ROWS.values()))
    for name, sizes in SIZES.items():
        np.savez(directory / f"{name}.npz", options=json.dumps(sizes), **inputs)
    some = {name: array[::7] for name, array in inputs.items()}
    np.savez(directory / "alone.npz", options=json.dumps(next(iter(SIZES.values()))), **some)
    command = [sys.executable, "-m", "tests.pallas_kernels.interpreted_sampling", str(directory)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return {name: dict(np.load(directory / f"{name}-out.npz")) for name in (*SIZES, "alone")}


@cache
def reference_floors() -> np.ndarray:
    return floor_by_reference(arrays(list(ROWS.values())))


def assert_cut_right(row: Row, floor: float) -> None:
    must, may = kept_by_definition(row)
    kept = row.logits >= floor
    assert not (must & ~kept).any(), f"dropped {row.logits[must & ~kept]}, floor {floor}"
    assert not (kept & ~may).any(), f"kept {row.logits[kept & ~may]}, floor {floor}"


@pytest.mark.parametrize("name", ROWS)
def test_reference_keeps_what_the_definition_keeps(name: str) -> None:
    assert_cut_right(ROWS[name], reference_floors()[list(ROWS).index(name)])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_keep_what_the_definition_keeps(
    name: str, sizes: str, outputs: dict[str, dict[str, np.ndarray]]
) -> None:
    assert_cut_right(ROWS[name], outputs[sizes]["floor"][list(ROWS).index(name)])


def test_a_row_is_cut_and_drawn_alike_whatever_rows_are_beside_it(outputs: dict[str, dict[str, np.ndarray]]) -> None:
    among_all, alone = outputs[next(iter(SIZES))], outputs["alone"]
    np.testing.assert_array_equal(alone["floor"], among_all["floor"][::7])
    np.testing.assert_array_equal(alone["tokens"], among_all["tokens"][::7])


@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_draw_the_tokens_of_the_reference(sizes: str, outputs: dict[str, dict[str, np.ndarray]]) -> None:
    inputs = arrays(list(ROWS.values()))
    random = inputs["temperature"] >= np.finfo(np.float32).tiny
    tokens = gumbel_argmax_reference(
        inputs["logits"],
        inputs["best"],
        outputs[sizes]["floor"],
        inputs["temperature"],
        inputs["seeds"],
        inputs["positions"],
    )
    np.testing.assert_array_equal(outputs[sizes]["tokens"][random], np.asarray(tokens)[random])
    assert len(set(tokens[random].tolist())) > 20


def test_noise_of_the_kernel_is_that_of_jax_random(outputs: dict[str, dict[str, np.ndarray]]) -> None:
    """One wrong bit of the random numbers would show; the tolerance is that of two logarithms."""
    inputs = arrays(list(ROWS.values()))
    expected = gumbel_noise(inputs["seeds"][:2], inputs["positions"][:2], VOCAB_SIZE)
    np.testing.assert_allclose(outputs[next(iter(SIZES))]["noise"], expected, rtol=2e-6, atol=2e-6)


def test_noise_lies_within_the_reach_that_the_kernel_counts_on() -> None:
    """The extremes of -log(-log(u)) over 23-bit uniform numbers, as the reference computes them."""
    extremes = -jnp.log(-jnp.log(jnp.array([np.finfo(np.float32).tiny, 1 - 2.0**-23], jnp.float32)))
    assert 20.4 < float(extremes[1] - extremes[0]) < 20.45


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Row,
            st.lists(st.one_of(st.integers(-4, 4), st.just(-np.inf)), min_size=12, max_size=12)
            .filter(lambda values: max(values) > -np.inf)
            .map(lambda values: np.array(values, np.float32)),
            st.builds(
                ParamsSpec,
                temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
                top_k=st.one_of(st.none(), st.integers(0, 15)),
                top_p=st.sampled_from([0.0, 0.1, 0.37, 0.8, 0.99, 1.0]),
                min_p=st.sampled_from([0.0, 0.013, 0.3, 1.0]),
            ),
        ),
        min_size=4,
        max_size=4,
    )
)
def test_reference_cuts_any_row_of_ties_and_suppressed_tokens_right(rows: list[Row]) -> None:
    for row, floor in zip(rows, floor_by_reference(arrays(rows)), strict=True):
        assert_cut_right(row, floor)


@pytest.mark.parametrize("implementation", ["Triton", "pallas"])
def test_unknown_implementations_are_refused(implementation: str) -> None:
    rows = {name: jnp.asarray(array) for name, array in arrays([ROWS["padding"]]).items()}
    restrictions = [rows[name] for name in RESTRICTIONS]
    with pytest.raises(ValueError, match="there are: reference, triton"):
        sampling_floor(rows["logits"], rows["best"], *restrictions, implementation=implementation)  # type: ignore[arg-type]
    draw = [rows[name] for name in ("best", "best", "temperature", "seeds", "positions")]
    with pytest.raises(ValueError, match="there are: reference, triton"):
        gumbel_argmax(rows["logits"], *draw, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["logits", "best", *RESTRICTIONS])
def test_arrays_of_another_shape_or_dtype_are_refused(wrong: str) -> None:
    names = ("logits", "best", *RESTRICTIONS)
    rows = {name: jnp.asarray(array) for name, array in arrays([ROWS["padding"]]).items()}
    for bad in (rows[wrong][None], rows[wrong].astype(jnp.bfloat16)):
        with pytest.raises(ValueError, match=f"{wrong} must be"):
            sampling_floor(*((rows | {wrong: bad})[name] for name in names))


@pytest.mark.parametrize("wrong", ["logits", "best", "floor", "temperature", "seeds", "positions"])
def test_drawing_refuses_arrays_of_another_shape_or_dtype(wrong: str) -> None:
    names = ("logits", "best", "floor", "temperature", "seeds", "positions")
    rows = {name: jnp.asarray(array) for name, array in arrays([ROWS["padding"]]).items()}
    rows["floor"] = rows["best"]
    for bad in (rows[wrong][None], rows[wrong].astype(jnp.bfloat16)):
        with pytest.raises(ValueError, match=f"{wrong} must be"):
            gumbel_argmax(*((rows | {wrong: bad})[name] for name in names))
