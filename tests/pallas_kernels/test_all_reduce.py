"""Sums and maxima over devices: XLA's on CPU devices, the kernels' arithmetic and addressing in Triton's interpreter,
the workspace, and which of them is picked."""

from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels import platform
from pallas_kernels.all_reduce import (
    Peers,
    PeerWorkspace,
    WorkspaceLayout,
    all_reduce,
    all_reduce_residual_norm,
    all_to_all,
    api,
    argmax_over_devices,
    why_no_peers,
)
from pallas_kernels.all_reduce import triton as launching
from pallas_kernels.all_reduce.arg_specs import HIDDEN_SIZES
from pallas_kernels.all_reduce.config import (
    EMPTY,
    MAX_INBOX_BYTES,
    MAX_ROWS,
    ROW_INBOXES,
    WORD_BYTES,
    is_two_shot,
    max_kernel_rows,
    row_config,
)
from pallas_kernels.all_reduce.workspace import first_table
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

EPS = 1e-5
KINDS = ("rms", "rms_rounded_last", "rms_plus_one")
NORMS = (*((2, kind) for kind in KINDS), (3, "rms"))  # ranks, and a norm's kind
ROWS = 4


def mesh_of(size: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:size]), ("tensor",))


def over_devices(function: Any, mesh: Mesh, *specs: P) -> Any:
    """A function of each device's own arrays; results stand one after the other, device by device."""
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("tensor"), check_vma=False))


def arguments(
    ranks: int, size: int, num_parts: int = 1, rows: int = ROWS, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size + ranks)
    return {
        "parts": rng.standard_normal((ranks, num_parts, rows, size)).astype(dtype if num_parts == 1 else "float32"),
        "x": rng.standard_normal((rows, size)).astype(dtype),
        "weight": rng.standard_normal(size).astype(dtype),
    }


def expected(args: dict[str, np.ndarray], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The stream and its norm, in float64."""
    stream = args["x"].astype(np.float64) + args["parts"].astype(np.float64).sum((0, 1))
    scale = args["weight"].astype(np.float64) + (kind == "rms_plus_one")
    return stream, stream / np.sqrt((stream**2).mean(-1, keepdims=True) + EPS) * scale


def choices(ranks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values with ties, ids that rise from rank to rank, and the ids to be chosen."""
    rng = np.random.default_rng(ranks)
    values = rng.integers(-2, 2, (ranks, 11)).astype(np.float32)
    values[:, 9] = -np.inf
    values[:, 10] = -0.25
    ids = (100 * np.arange(ranks)[:, None] + rng.integers(0, 100, (ranks, 11))).astype(np.int32)
    return values, ids, np.take_along_axis(ids, values.argmax(0)[None], 0)[0]


def columns(ranks: int, rows: int, size: int) -> np.ndarray:
    """[ranks, ranks * rows, size]: some columns of all rows, on each rank."""
    values = np.random.default_rng(size).standard_normal((ranks, ranks * rows, size)).astype(np.float32)
    values[:, 0, 1] = -np.inf
    return values


def shares_of_rows(columns: np.ndarray) -> np.ndarray:
    """[ranks, rows, ranks * size]: all columns of some rows."""
    return np.concatenate(list(columns), axis=1).reshape(len(columns), -1, len(columns) * columns.shape[2])


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_reference_gives_each_device_all_columns_of_its_rows(ranks: int) -> None:
    values = columns(ranks, 3, 5)
    exchange = over_devices(lambda v: all_to_all(v[0], None, axis_name="tensor"), mesh_of(ranks), P("tensor"))
    np.testing.assert_array_equal(np.asarray(exchange(values)), np.concatenate(list(shares_of_rows(values))))


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_reference_sums_parts_and_devices(ranks: int, num_parts: int) -> None:
    args = arguments(ranks, 64, num_parts)
    mesh = mesh_of(ranks)
    parts = args["parts"].reshape(-1, ROWS, 64)
    summed = over_devices(lambda p: all_reduce(p, None, axis_name="tensor"), mesh, P("tensor"))(parts)
    for own in np.asarray(summed).reshape(ranks, ROWS, 64):
        np.testing.assert_allclose(own, parts.sum(0), atol=1e-5)
    for kind in KINDS:
        reduce = partial(all_reduce_residual_norm, peers=None, axis_name="tensor", eps=EPS, kind=kind)
        results = over_devices(reduce, mesh, P(), P("tensor"), P())(args["x"], parts, args["weight"])
        for result, want in zip(results, expected(args, kind), strict=True):
            for own in np.asarray(result).reshape(ranks, ROWS, 64):
                np.testing.assert_allclose(own, want, atol=2e-5)


def test_the_sum_is_rounded_before_it_is_added_to_the_stream() -> None:
    """As if one product had given it: 256 + 1/2 + 1/2 in bfloat16 is 257 only if the halves are added first."""
    x = jnp.full((1, 64), 256, jnp.bfloat16)
    parts = jnp.full((2, 1, 64), 1, jnp.bfloat16)
    reduce = partial(all_reduce_residual_norm, peers=None, axis_name="tensor", eps=EPS)
    stream, _ = over_devices(reduce, mesh_of(2), P(), P("tensor"), P())(x, parts, jnp.ones(64, jnp.bfloat16))
    assert set(np.asarray(stream, np.float32).ravel()) == {258.0}


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_reference_chooses_the_first_of_the_largest(ranks: int) -> None:
    values, ids, want = choices(ranks)

    def choose(values: jax.Array, ids: jax.Array) -> jax.Array:
        return argmax_over_devices(values[0], ids[0], None, axis_name="tensor")

    chosen = over_devices(choose, mesh_of(ranks), P("tensor"), P("tensor"))(values, ids)
    for own in np.asarray(chosen).reshape(ranks, -1):
        np.testing.assert_array_equal(own, want)


# Which of three calls sum in two shots. Only the last one's results are looked at; that in the middle has fewer rows.
FORMS = {"one": (False,) * 4, "two": (True,) * 4, "turns": (True, False, False, True)}
# (ranks, D, rows, parts, a norm's kind or None); rounded to float16, so that rounding can go wrong.
TWO_SHOT_SUMS: dict[str, tuple[int, int, int, int, str | None]] = {
    "sum": (4, 100, 5, 3, None),
    "sum of 3 ranks": (3, 100, 4, 1, None),
    "norm of fewer rows than ranks": (4, 100, 3, 2, "rms"),
    # 2250 lines: two chunks, the second of them not full.
    "long sum": (3, 9000, 2, 1, None),
    "long norm": (3, 9000, 1, 2, "rms_plus_one"),
}
# (rows, form, which of four ranks gave up), where half of the rows are summed without the last rank. In one shot all
# others wait for it; in two those that own a row and, if it owns one itself, all.
LATE = ((4, "one", [1, 1, 1, 0]), (4, "two", [1, 1, 0, 0]), (8, "two", [1, 1, 1, 0]))


def two_shot_arguments(name: str) -> dict[str, np.ndarray]:
    """With large values that cancel, so that ranks in another order give other bits."""
    ranks, size, rows, num_parts, _ = TWO_SHOT_SUMS[name]
    args = arguments(ranks, size, num_parts, rows, "float16")
    args["parts"][0, 0] += 8000
    args["parts"][-1, 0] -= 8000
    return args


# Bytes of a value.
ZEROS = {"float16": 2, "float32": 4}


def zeros_and_values(dtype: str) -> np.ndarray:
    """[4 ranks, 1, 1, 8]: negative zeros beside other values, and what an empty word of an inbox looks like."""
    empty = np.array([EMPTY] * 2, np.uint32).view(dtype)
    parts = np.zeros((4, 1, 1, 8), dtype)
    parts[:, 0, 0, : len(empty)] = empty
    parts[0, 0, 0, 4:] = [-0.0, 5, -0.0, -0.0]
    parts[1, 0, 0, 4:] = [-0.0, -0.0, -0.0, -0.0]
    parts[2, 0, 0, 4:] = [-0.0, -0.0, 7, -0.0]
    parts[3, 0, 0, 4:] = [-0.0, 1, -0.0, -0.0]
    return parts


@pytest.fixture(scope="module")
def two_shot_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {}
    for name, (_, size, _, _, kind) in TWO_SHOT_SUMS.items():
        args = two_shot_arguments(name)
        options: dict[str, Any] = {"operation": "all_reduce", "row_bytes": 2 * size, "max_rows": 6}
        if kind is None:
            args, options = {"parts": args["parts"]}, {**options, "dtype": "float16"}
        else:
            options |= {"eps": EPS, "kind": kind}
        for form, two_shot in FORMS.items():
            if form != "turns" or name == "sum":
                cases[f"{name}, {form}"] = KernelCase(args, {**options, "two_shot": two_shot})
    options = {"operation": "all_reduce", "row_bytes": 400, "max_rows": 8}
    for dtype, size in ZEROS.items():
        args = {"parts": zeros_and_values(dtype)}
        zeros = {"operation": "all_reduce", "row_bytes": size * 8, "max_rows": 2, "dtype": dtype}
        for form in ("one", "two"):
            cases[f"zeros, {dtype}, {form}"] = KernelCase(args, {**zeros, "two_shot": FORMS[form]})
    counted = {**options, "count_senders": True, "two_shot": FORMS["two"]}
    cases["senders"] = KernelCase({"parts": arguments(4, 100, rows=5)["parts"]}, counted)
    values, ids, _ = choices(4)
    for rows, form, _ in LATE:
        args = {"parts": arguments(4, 100, rows=rows)["parts"], "values": values, "ids": ids}
        cases[f"late, {rows} rows, {form}"] = KernelCase(args, {**options, "late": True, "two_shot": FORMS[form]})
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.fixture(scope="module")
def kernel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {}
    for ranks, kind in NORMS:
        options = {"operation": "all_reduce", "row_bytes": 800, "max_rows": 6, "eps": EPS, "kind": kind}
        cases[f"{kind} {ranks}"] = KernelCase(arguments(ranks, 100), options)
    for ranks in (2, 3):
        values, ids, _ = choices(ranks)
        exchange = {"operation": "all_reduce", "row_bytes": 800, "max_rows": 6}
        cases[f"argmax {ranks}"] = KernelCase({"values": values, "ids": ids}, exchange)
        cases[f"argmax {ranks} late"] = KernelCase({"values": values, "ids": ids}, {**exchange, "late": True})
        parts = arguments(ranks, 64, 3)["parts"]
        cases[f"sum {ranks}"] = KernelCase({"parts": parts}, dict(exchange))
        # A line holds both values of such a row.
        cases[f"pair {ranks}"] = KernelCase({"parts": arguments(ranks, 2)["parts"]}, dict(exchange))
        # 100 lines are a piece, cut as 128; three of them are a row, and the last line is half full.
        cases[f"exchange {ranks}"] = KernelCase({"columns": columns(ranks, 2, 451)}, dict(exchange))
    # 4500 values of 4 bytes are 2250 lines: two chunks, the second of them not full.
    long = {"operation": "all_reduce", "row_bytes": 18000, "max_rows": ROWS, "eps": EPS, "kind": "rms"}
    cases["long"] = KernelCase(arguments(2, 4500), long)
    pieces = {"operation": "all_reduce", "row_bytes": 18000, "max_rows": ROWS}
    cases["long exchange"] = KernelCase({"columns": columns(2, 2, 4501)}, pieces)
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


def of_ranks(results: list[np.ndarray], ranks: int) -> list[list[np.ndarray]]:
    """The results of each rank, after a look at whether all of them have the same bits and no wait was given up."""
    *arrays, errors = results
    assert not errors.any()
    each = len(arrays) // ranks
    grouped = [arrays[rank * each : (rank + 1) * each] for rank in range(ranks)]
    for of_rank in grouped[1:]:
        for array, first in zip(of_rank, grouped[0], strict=True):
            assert array.tobytes() == first.tobytes()
    return grouped


@pytest.mark.parametrize(("ranks", "kind"), NORMS)
def test_kernels_add_all_ranks_rows_to_the_stream_and_normalise_it(
    ranks: int, kind: str, kernel_results: dict[str, list[np.ndarray]]
) -> None:
    (first, *_) = of_ranks(kernel_results[f"{kind} {ranks}"], ranks)
    for result, want in zip(first, expected(arguments(ranks, 100), kind), strict=True):
        np.testing.assert_allclose(result, want, atol=2e-5)


def test_kernels_take_long_rows_in_chunks(kernel_results: dict[str, list[np.ndarray]]) -> None:
    assert row_config(18000).chunks == 2
    (first, *_) = of_ranks(kernel_results["long"], 2)
    for result, want in zip(first, expected(arguments(2, 4500), "rms"), strict=True):
        np.testing.assert_allclose(result, want, atol=5e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_kernels_sum_parts_first_and_ranks_in_their_order(
    ranks: int, kernel_results: dict[str, list[np.ndarray]]
) -> None:
    ((summed,), *_) = of_ranks(kernel_results[f"sum {ranks}"], ranks)
    total = np.zeros((ROWS, 64), np.float32)
    for own in arguments(ranks, 64, 3)["parts"]:
        total += (own[0] + own[1]) + own[2]
    np.testing.assert_array_equal(summed, total)


@pytest.mark.parametrize(("name", "form"), [*((name, "two") for name in TWO_SHOT_SUMS), ("sum", "turns")])
def test_two_shots_give_the_bits_of_one(name: str, form: str, two_shot_results: dict[str, list[np.ndarray]]) -> None:
    ranks = TWO_SHOT_SUMS[name][0]
    one, two = (of_ranks(two_shot_results[f"{name}, {which}"], ranks)[0] for which in ("one", form))
    for array, want in zip(two, one, strict=True):
        assert array.dtype == np.float16 and not np.isnan(want).any()
        assert array.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", [name for name, (*_, kind) in TWO_SHOT_SUMS.items() if kind is None])
def test_two_shots_add_in_the_order_of_ranks_and_round_once(
    name: str, two_shot_results: dict[str, list[np.ndarray]]
) -> None:
    ranks, size, rows, *_ = TWO_SHOT_SUMS[name]
    ((summed,), *_) = of_ranks(two_shot_results[f"{name}, two"], ranks)
    total = np.zeros((rows, size), np.float32)
    for own in two_shot_arguments(name)["parts"]:
        local = own[0]
        for part in own[1:]:
            local = local + part
        total += local.astype(np.float16)
    np.testing.assert_array_equal(summed, total.astype(np.float16))


@pytest.mark.parametrize("form", ["one", "two"])
@pytest.mark.parametrize("dtype", ZEROS)
def test_rows_that_look_like_an_empty_inbox_are_summed_as_any_other(
    dtype: str, form: str, two_shot_results: dict[str, list[np.ndarray]]
) -> None:
    ((summed,), *_) = of_ranks(two_shot_results[f"zeros, {dtype}, {form}"], 4)
    np.testing.assert_allclose(summed, zeros_and_values(dtype).sum((0, 1)), atol=1e-39)


def test_in_two_shots_rows_go_to_their_owner_and_sums_to_the_others(
    two_shot_results: dict[str, list[np.ndarray]],
) -> None:
    *_, senders, errors = two_shot_results["senders"]
    assert not errors.any()
    # Of 5 rows, rank 0 owns two.
    owners = np.array([0, 1, 2, 3, 0])
    np.testing.assert_array_equal(senders[:, :5], np.where(np.arange(4)[:, None] == owners, 3, 1))
    assert not senders[:, 5:].any()


@pytest.mark.parametrize(("rows", "form", "gave_up"), LATE)
def test_every_rank_hears_of_a_sum_that_was_given_up(
    rows: int, form: str, gave_up: list[int], two_shot_results: dict[str, list[np.ndarray]]
) -> None:
    *chosen, errors = two_shot_results[f"late, {rows} rows, {form}"]
    assert errors.tolist() == gave_up
    assert len(chosen) == 4 and all((of_rank == -1).all() for of_rank in chosen)


@pytest.mark.parametrize("ranks", [2, 3])
def test_kernels_sum_rows_of_two_values(ranks: int, kernel_results: dict[str, list[np.ndarray]]) -> None:
    ((summed,), *_) = of_ranks(kernel_results[f"pair {ranks}"], ranks)
    np.testing.assert_allclose(summed, arguments(ranks, 2)["parts"].sum((0, 1)), atol=1e-6)


@pytest.mark.parametrize(("case", "ranks"), [("exchange", 2), ("exchange", 3), ("long exchange", 2)])
def test_kernels_give_each_rank_all_columns_of_its_rows(
    case: str, ranks: int, kernel_results: dict[str, list[np.ndarray]]
) -> None:
    name, size = (case, 4501) if case == "long exchange" else (f"{case} {ranks}", 451)
    *shares, errors = kernel_results[name]
    assert not errors.any()
    np.testing.assert_array_equal(np.stack(shares), shares_of_rows(columns(ranks, 2, size)))


@pytest.mark.parametrize("ranks", [2, 3])
def test_kernels_choose_the_first_of_the_largest(ranks: int, kernel_results: dict[str, list[np.ndarray]]) -> None:
    ((chosen,), *_) = of_ranks(kernel_results[f"argmax {ranks}"], ranks)
    np.testing.assert_array_equal(chosen, choices(ranks)[2])


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_hears_of_a_wait_that_was_given_up(ranks: int, kernel_results: dict[str, list[np.ndarray]]) -> None:
    """The last rank made a call when the others had given it up; all take part in the next one."""
    *chosen, errors = kernel_results[f"argmax {ranks} late"]
    assert errors[0] == 1
    assert len(chosen) == ranks and all((of_rank == -1).all() for of_rank in chosen)


@pytest.mark.parametrize("num_devices", [2, 3, 8])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", HIDDEN_SIZES.values())
def test_the_regions_of_a_workspace_follow_each_other(size: int, itemsize: int, num_devices: int) -> None:
    layout = WorkspaceLayout.of(size, itemsize, num_devices)
    assert 0 < layout.max_rows <= MAX_ROWS
    ends = (
        layout.exchange_inbox + 2 * (num_devices - 1) * layout.max_exchange_rows * 16,
        layout.row_inbox + ROW_INBOXES * (num_devices - 1) * layout.max_rows * layout.row_bytes,
    )
    starts = (layout.row_inbox, layout.num_bytes)
    assert all(end <= start and start % 16 == 0 for end, start in zip(ends, starts, strict=True))
    # Addresses and the rank come first in the table.
    assert 2 * num_devices + 1 <= layout.error_word < layout.row_counters
    assert layout.row_counters + layout.max_rows <= layout.exchange_counters
    assert layout.exchange_counters + layout.max_exchange_rows == layout.table_columns
    assert layout.num_bytes - layout.row_inbox <= MAX_INBOX_BYTES
    assert layout.num_bytes < 100_000_000


@pytest.mark.parametrize("row_bytes", [8, 1152, 8192, 16384, 32768, 65536])
def test_a_row_is_cut_so_that_all_of_it_is_sent(row_bytes: int) -> None:
    config = row_config(row_bytes)
    assert config.words * config.chunks * WORD_BYTES >= row_bytes
    assert config.words == 32 * config.num_warps * config.together
    assert config.num_warps <= 32 and config.together <= 4


def test_many_devices_take_fewer_rows_at_once() -> None:
    assert [max_kernel_rows(8192, n) for n in (2, 4, 8)] == [512, 256, 256]
    assert [max_kernel_rows(16384, n) for n in (2, 4, 8)] == [256, 128, 128]


def test_two_shots_are_taken_where_they_spare_more_than_a_hop_costs() -> None:
    assert not any(is_two_shot(rows, row_bytes, 2) for rows in (1, 512) for row_bytes in (8192, 65536))
    # Rows from which on, of 8 and 16 KB.
    for num_devices, wanted in ((3, (110, 55)), (4, (49, 25)), (8, (14, 7))):
        for row_bytes, first in zip((8192, 16384), wanted, strict=True):
            assert not is_two_shot(first - 1, row_bytes, num_devices)
            assert is_two_shot(first, row_bytes, num_devices)
            settings = launching.row_settings(
                (1, first, row_bytes // 2), 2, WorkspaceLayout(num_devices, row_bytes, 512), 1
            )
            assert settings["TWO_SHOT"]


def test_columns_are_exchanged_by_kernel_up_to_some_bytes_of_all_devices() -> None:
    """128,256 scores of 4 bytes a row, over 2, 4 and 8 devices: 32, 64 and 128 rows."""
    for num_devices, rows in ((2, 16), (4, 16), (8, 16)):
        layout = WorkspaceLayout.of(4096, 2, num_devices)
        assert layout.takes_columns(rows, 128_256 // num_devices * 4)
        assert not layout.takes_columns(rows + 1, 128_256 // num_devices * 4)


def test_the_table_holds_the_others_addresses_in_the_order_of_ranks_after_mine() -> None:
    addresses = [0x7F00_8000_0000, 0x7F01_0000_0100, 0xFFFF_FFFF_0000]
    layout = WorkspaceLayout(3, 64, max_rows=4, max_exchange_rows=2)
    table = first_table(addresses, layout)
    assert table.dtype == np.int32 and table.shape == (3, 8 + 4 + 2)
    halves = table.view(np.uint32).astype(np.uint64)
    read = halves[:, 0:6:2] | halves[:, 1:6:2] << np.uint64(32)
    assert read.tolist() == [[addresses[(r + j) % 3] for j in range(3)] for r in range(3)]
    assert table[:, 6].tolist() == [0, 1, 2]
    assert not table[:, 7:].any()


def test_a_workspace_stays_where_its_table_says() -> None:
    workspace = PeerWorkspace(mesh_of(2), WorkspaceLayout.of(64, 4, 2))
    table = np.asarray(workspace.peers.table).view(np.uint32).astype(np.uint64)
    pointers = [s.data.unsafe_buffer_pointer() for s in workspace._memory.addressable_shards]
    assert [int(row[0] | row[1] << np.uint64(32)) for row in table] == pointers
    assert workspace.errors() == [0, 0]
    with pytest.raises(ValueError, match="layout is for 4 devices; the mesh has 2"):
        PeerWorkspace(mesh_of(2), WorkspaceLayout.of(64, 4, 4))


def test_devices_that_are_alone_or_no_gpus_have_no_peers() -> None:
    assert why_no_peers(mesh_of(1)) == "there is one device"
    assert why_no_peers(mesh_of(2)) == "the devices are not NVIDIA GPUs"


def test_gpus_of_several_processes_have_no_peers() -> None:
    devices = [mock.Mock(platform="gpu", process_index=i) for i in range(2)]
    assert why_no_peers(mock.Mock(devices=np.array(devices))) == "the devices belong to several processes"


def test_kernels_are_picked_up_to_the_rows_that_the_workspace_takes() -> None:
    layout = WorkspaceLayout.of(4096, 2, 2)
    peers = Peers(jnp.zeros((1, 6), jnp.int32), layout)
    bfloat16 = jnp.dtype(jnp.bfloat16)
    with mock.patch.object(platform, "triton_can_run", lambda: True):
        assert api._pick(None, peers, layout.max_rows, 4096, bfloat16) == "triton"
        assert api._pick(None, peers, layout.max_rows + 1, 4096, bfloat16) == "reference"
        assert api._pick(None, peers, 1, 4098, bfloat16) == "reference"
        assert api._pick(None, peers, 1, 2049, bfloat16) == "reference"
        assert api._pick(None, None, 1, 4096, bfloat16) == "reference"
        assert api._pick("reference", peers, 1, 4096, bfloat16) == "reference"
        with pytest.raises(ValueError, match="triton needs peers"):
            api._pick("triton", None, 1, 4096, bfloat16)
    with mock.patch.object(platform, "triton_can_run", lambda: False):
        assert api._pick(None, peers, 1, 4096, bfloat16) == "reference"


def test_the_exchange_kernel_is_picked_while_an_inbox_has_room_for_its_rows() -> None:
    layout = WorkspaceLayout(2, 8192, max_rows=512)
    mesh, peers = mesh_of(2), Peers(jnp.zeros((2, layout.table_columns), jnp.int32), layout)
    # 64,128 columns of 4 bytes are 32 pieces of 8 KB.
    assert layout.pieces(64_128 * 4) == 32
    exchange = over_devices(partial(all_to_all, axis_name="tensor"), mesh, P(None, "tensor"), P("tensor"))
    with (
        mock.patch.object(platform, "triton_can_run", lambda: True),
        mock.patch.object(launching, "all_to_all_triton", side_effect=lambda values, peers: values) as kernel,
    ):
        for num_rows, calls in ((34, 0), (32, 1)):
            jax.eval_shape(exchange, jax.ShapeDtypeStruct((num_rows, 2 * 64_128), jnp.float32), peers)
            assert kernel.call_count == calls


def test_wrong_arguments_are_named() -> None:
    rows = jnp.zeros((1, 2, 8))
    with pytest.raises(ValueError, match=r"parts must be \[parts, T, D\]"):
        all_reduce(rows[0], None, axis_name="tensor")
    with pytest.raises(ValueError, match="must be bfloat16, or float32 if there are several"):
        all_reduce(rows, None, axis_name="tensor", dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="unknown kind 'max'"):
        all_reduce_residual_norm(rows[0], rows, rows[0, 0], None, axis_name="tensor", eps=EPS, kind="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values must be \[N \* R, D\] over 2 devices"):
        over_devices(lambda v: all_to_all(v, None, axis_name="tensor"), mesh_of(2), P(None, "tensor"))(rows[0, :1])
    with pytest.raises(ValueError, match="float32 and int32"):
        argmax_over_devices(jnp.zeros(3), jnp.zeros(3), None, axis_name="tensor")
