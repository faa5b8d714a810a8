#!/usr/bin/env python3
"""Compiles the kernels and the real step for an H200, without a GPU, and fails where the result is not what it must be.

    UV_PROJECT_ENVIRONMENT=.venv-gate uv run --group gate scripts/compile_gate.py

Kernels: no register spilled to memory; wgmma, Hopper's matrix instruction, in the prefill kernels of 16-bit inputs;
keys and values fetched ahead by cp.async, or by TMA. The sampler: no second array as large as the logits. Steps: all of
the KV pool written in place and none of it copied, everything in one command buffer (CUDA graph) but the copy of the
tokens to the host, no sort and no loop, the kernels' work laid out once and not in each layer. There is no autotuning
in it, so it says nothing of which matrix kernels the GPU would choose. Takes about two minutes.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import mock

DUMP = tempfile.TemporaryDirectory()
MOSAIC_DUMP = {"MOSAIC_GPU_DUMP_PTX": "1"}
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = f"--xla_dump_to={DUMP.name} --xla_dump_hlo_as_text --xla_gpu_fail_ptx_compilation_on_register_spilling=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from jax_triton import triton_lib  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: E402

from jaxserve.models.config import ModelConfig  # noqa: E402
from jaxserve.models.decoder import Decoder  # noqa: E402
from jaxserve.runner import step_compiler  # noqa: E402
from jaxserve.runner.buckets import Bucket, Buckets, SamplerKind  # noqa: E402
from jaxserve.runner.kv_pool import KVPoolSpec  # noqa: E402
from jaxserve.runner.step_compiler import StepCompiler  # noqa: E402
from jaxserve.runner.step_function import run_step as bare_step  # noqa: E402
from jaxserve.sharding import make_mesh  # noqa: E402
from pallas_kernels import platform  # noqa: E402
from pallas_kernels.cached_attention import cached_attention  # noqa: E402
from pallas_kernels.gumbel_argmax import gumbel_argmax  # noqa: E402
from pallas_kernels.paged_attention import api  # noqa: E402
from pallas_kernels.paged_attention.arg_specs import HEADS, HeadSpec  # noqa: E402
from pallas_kernels.paged_attention.config import mosaic_prefill_config  # noqa: E402
from pallas_kernels.paged_attention.mosaic_gpu import prefill_mosaic_gpu  # noqa: E402
from pallas_kernels.residual_norm.api import FEW_ROWS  # noqa: E402
from pallas_kernels.sampling_floor import sampling_floor  # noqa: E402
from pallas_kernels.sampling_floor.arg_specs import VOCABULARIES  # noqa: E402
from pallas_kernels.skinny_matmul import api as skinny_api  # noqa: E402
from pallas_kernels.skinny_matmul.config import (  # noqa: E402
    MAX_SKINNY_ROWS,
    SHARED_BYTES,
    gated_config,
    scores_config,
    skinny_config,
    tiled_gated_config,
)
from pallas_kernels.skinny_matmul.tiled import tiled_gated_matmul  # noqa: E402
from pallas_kernels.skinny_matmul.triton import gated_matmul_triton, skinny_matmul_triton  # noqa: E402
from pallas_kernels.swiglu import api as swiglu_api  # noqa: E402

NUM_LAYERS = 4
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=8192,
    hidden_size=4096,
    num_layers=NUM_LAYERS,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
)
# (tokens, decode only, sampler) of the buckets that are compiled.
STEPS = (
    (1, True, SamplerKind.GREEDY),
    (256, True, SamplerKind.GREEDY),
    (512, False, SamplerKind.GREEDY),
    (8192, False, SamplerKind.GREEDY),
    (1, True, SamplerKind.FULL),
    (256, True, SamplerKind.FULL),
    (512, False, SamplerKind.FULL),
)
# Four of sampling_floor and one of gumbel_argmax.
SAMPLER_KERNELS = 5


# A step: a CUDA graph, and the copy of its tokens to the host.
STEP_THUNKS = ["kCommandBuffer", "kAsyncStart", "kAsyncDone"]


@wraps(bare_step)
def run_step(*args: Any) -> Any:
    """A topology's devices have no memories, so its shardings do not say that the tokens belong on the host: this is
    what JAX adds where they do."""
    pool, state, sampled = bare_step(*args)
    return pool, state, jax.device_put(sampled, jax.memory.Space.Host)


step_compiler.run_step = run_step  # type: ignore[assignment, attr-defined]


def clear_dump() -> None:
    """Forget what was compiled before."""
    for old in Path(DUMP.name).iterdir():
        old.unlink()


def thunks_of(function: str) -> list[str]:
    """The lines of what XLA runs for the one executable of a function since `clear_dump`; those inside graphs are
    indented."""
    return next(Path(DUMP.name).glob(f"*{function}*thunk_sequence_after_thunk_passes.txt")).read_text().splitlines()


def outside_graphs(thunks: list[str]) -> list[str]:
    """The kinds of those that are not inside a graph."""
    return [line.split()[1] for line in thunks if line[:1].isdigit()]


@dataclass(frozen=True)
class CompiledKernel:
    """A Triton kernel as XLA gets it."""

    name: str
    ptx: str
    shared_bytes: int

    def spilled_bytes(self) -> int:
        """Bytes that the assembler had to keep in memory for want of registers."""
        return sum(map(int, re.findall(r"(\d+) bytes spill", self.assembled())))

    def spills(self, where: str) -> list[str]:
        """What is wrong if a register spilled, after telling what the kernel takes."""
        spilled = self.spilled_bytes()
        print(f"{where}: {self.shared_bytes} bytes shared, {spilled} spilled", flush=True)
        return [f"{where}: {spilled} bytes spilled"] if spilled else []

    def assembled(self) -> str:
        """What the assembler says of it."""
        ptxas = next(Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/*/bin/ptxas"))
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(self.ptx)
            file.flush()
            command = [str(ptxas), "-v", "--gpu-name", "sm_90a", "-o", os.devnull, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def compile_problems(where: str, lowered: Any) -> list[str]:
    """What is wrong if XLA cannot compile it, as when a register of a kernel would spill."""
    print(where, flush=True)
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return [f"{where}: {error}"]
    return []


def h200(num_devices: int) -> Mesh:
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="h200",
        target_config=(ROOT / "tests" / "data" / "h200.txtpb").read_text(),
        topology=f"1x1x{num_devices}",
    )
    return make_mesh(num_devices, topology.devices)


@contextmanager
def on_hopper(*, mosaic: bool = True, skinny: bool = True) -> Iterator[None]:
    """Lets kernels be chosen and lowered as on a Hopper GPU.

    Args:
        mosaic: prompts may be Mosaic GPU's.
        skinny: products of few rows and gated ones may be kernels.
    """
    with ExitStack() as stack:
        for module in (platform, skinny_api):
            stack.enter_context(mock.patch.object(module, "triton_can_run", lambda: True))
        for module in (api, skinny_api):
            stack.enter_context(mock.patch.object(module, "is_hopper", lambda: True))
        stack.enter_context(mock.patch.object(api, "MOSAIC_GPU_BY_DEFAULT", mosaic))
        stack.enter_context(mock.patch.object(skinny_api, "SKINNY_BY_DEFAULT", skinny))
        launcher = triton_lib.triton_kernel_call_lib
        stack.enter_context(mock.patch.object(launcher, "get_compute_capability", lambda device: 90))
        yield


@contextmanager
def recorded_kernels() -> Iterator[list[CompiledKernel]]:
    """Collects kernels as Triton compiles them when they are lowered for jax_triton: of what XLA makes of them only
    spilled registers show."""
    kernels: list[CompiledKernel] = []
    compile_ttir = triton_lib.compile_ttir_inplace

    def compile_and_record(*args: Any) -> Any:
        result = compile_ttir(*args)
        kernels.append(CompiledKernel(result.name, result.binary, result.shared_mem_bytes))
        return result

    with (
        on_hopper(),
        mock.patch.object(platform, "TRITON_BY_XLA", False),
        mock.patch.object(triton_lib, "compile_ttir_inplace", compile_and_record),
    ):
        yield kernels


def check_kernels(mesh: Mesh, heads: HeadSpec, dtype: str) -> list[str]:
    """What is wrong with the kernels for one shape of heads."""
    k, g, h = heads.num_kv_heads, heads.group, heads.head_dim

    def abstract(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    problems = []
    for num_tokens in (64, 8192):
        args = (
            abstract((num_tokens, k, g + 2, h), dtype),
            abstract((num_tokens, 2, h // 2), "float32"),
            abstract((1000, 2, 16, k, h), dtype),
            abstract((num_tokens,), "int32"),
            abstract((64, 256), "int32"),
            abstract((65,), "int32"),
            abstract((64,), "int32"),
        )
        with recorded_kernels() as kernels:
            for decode_only in {num_tokens == 64, False}:
                attend = partial(cached_attention, scale=h**-0.5, decode_only=decode_only, implementation="triton")
                jax.jit(attend).trace(*args).lower()
        for kernel in kernels:
            where = f"{kernel.name}, {heads}, {dtype}, {num_tokens} tokens"
            problems += kernel.spills(where)
            if "cp.async" not in kernel.ptx and kernel.name != "rotate_and_write_kernel":
                problems.append(f"{where}: no cp.async")
            if kernel.name == "prefill_kernel" and dtype != "float32" and "wgmma.mma_async" not in kernel.ptx:
                problems.append(f"{where}: no wgmma")
    return problems


def check_mosaic_kernel(where: str, function: Callable[..., Any], *args: Any, may_spill: int = 0) -> list[str]:
    """What is wrong with the one Mosaic GPU kernel of a function, which may spill so many bytes."""
    with (
        tempfile.TemporaryDirectory() as dump,
        mock.patch.dict(os.environ, {**MOSAIC_DUMP, "MOSAIC_GPU_DUMP_TO": dump}),
    ):
        jax.jit(function).lower(*args).compile()
        (path,) = Path(dump).glob("*.ptx")
        kernel = CompiledKernel(where, path.read_text(), 0)
    report = kernel.assembled()
    spilled = max(map(int, re.findall(r"(\d+) bytes spill", report)))
    print(f"{where}: {spilled} bytes spilled", flush=True)
    problems = []
    if spilled > may_spill:
        problems.append(f"{where}: {spilled} bytes spilled")
    # The assembler makes one product wait for the last if it cannot keep them apart.
    if "serialized" in report or "wgmma.mma_async" not in kernel.ptx:
        problems.append(f"{where}: products do not overlap: {report}")
    return problems


def check_mosaic(mesh: Mesh, heads: HeadSpec) -> list[str]:
    """What is wrong with the Mosaic GPU prefill kernel for one shape of heads."""
    k, g, h = heads.num_kv_heads, heads.group, heads.head_dim
    config = mosaic_prefill_config(g, h, 16, jnp.bfloat16)
    assert config is not None

    def abstract(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    args = (
        abstract((8192, k, g, h), "bfloat16"),
        abstract((30011, 2, 16, k, h), "bfloat16"),
        abstract((64, 256), "int32"),
        abstract((65,), "int32"),
        abstract((64,), "int32"),
    )
    prefill = partial(prefill_mosaic_gpu, scale=h**-0.5, config=config)
    # A few numbers that a tile needs at its beginning and end may lie in memory.
    return check_mosaic_kernel(f"prefill_mosaic_gpu, {heads}", prefill, *args, may_spill=16)


def abstract_product(mesh: Mesh, num_rows: int, *weight: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a product takes: x [T, D] and weight [..., D]."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return tuple(
        jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding) for shape in ((num_rows, weight[-1]), weight)
    )


def check_skinny(mesh: Mesh, num_rows: int, columns: int, size: int) -> list[str]:
    """What is wrong with the Triton kernels for products, gated ones, and scores of a few rows."""
    weight, matrices = (columns, size), (2, columns, size)
    takes = (
        (skinny_config(num_rows, *weight), skinny_matmul_triton, weight),
        (gated_config(num_rows, *weight), gated_matmul_triton, matrices),
        (scores_config(num_rows, *weight), partial(skinny_matmul_triton, dtype=jnp.float32), weight),
    )
    runs = [(partial(kernel, config=config), shape) for config, kernel, shape in takes if config is not None]
    with recorded_kernels() as kernels:
        for run, shape in runs:
            jax.jit(run).trace(*abstract_product(mesh, num_rows, *shape)).lower()
    problems = [] if len(kernels) == len(runs) > 0 else [f"{len(kernels)} kernels, not {len(runs)}"]
    for kernel in kernels:
        where = f"{kernel.name}, {num_rows} rows, {columns} x {size}"
        problems += kernel.spills(where)
        problems += [f"{where}: no {what}" for what in ("cp.async", "wgmma.mma_async") if what not in kernel.ptx]
        if kernel.shared_bytes > SHARED_BYTES:
            problems.append(f"{where}: {kernel.shared_bytes} bytes of shared memory")
    return problems


def check_tiled_gated(mesh: Mesh, num_rows: int, columns: int, size: int) -> list[str]:
    """What is wrong with the Mosaic GPU kernel for gated products of many rows."""
    config = tiled_gated_config(num_rows, columns, size)
    assert config is not None
    where = f"tiled_gated_matmul, {num_rows} rows, {columns} x {size}"
    args = abstract_product(mesh, num_rows, 2, columns, size)
    return check_mosaic_kernel(where, partial(tiled_gated_matmul, config=config), *args)


def check_sampler(mesh: Mesh, num_rows: int, vocab_size: int) -> list[str]:
    """What is wrong with the kernels that restrict and draw."""

    def abstract(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    row, ids = abstract(num_rows), abstract(num_rows, dtype="int32")
    seeds = abstract(num_rows, 2, dtype="int32")

    def draw(logits: Any, best: Any, temperature: Any, k: Any, p: Any, min_p: Any, seeds: Any, positions: Any) -> Any:
        floor = sampling_floor(logits, best, temperature, k, p, min_p, implementation="triton")
        return gumbel_argmax(logits, best, floor, temperature, seeds, positions, implementation="triton")

    args = (abstract(num_rows, vocab_size), row, row, ids, row, row, seeds, ids)
    with recorded_kernels() as kernels:
        jax.jit(draw).trace(*args).lower()
    # What was lowered for jax_triton must not be used again.
    jax.clear_caches()
    with on_hopper():
        compiled: Any = jax.jit(draw).trace(*args).lower().compile()
    calls = [line for line in kernel_calls(compiled.as_text()) if "xla.gpu.triton" in line]
    where = f"sampler, {num_rows} rows of {vocab_size}"
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    spilled = {kernel.name: kernel.spilled_bytes() for kernel in kernels}
    print(f"{where}: {temporaries} bytes of temporaries, spilled {spilled}", flush=True)
    problems = [f"{where}: {name}: {size} bytes spilled" for name, size in spilled.items() if size]
    if {len(spilled), len(calls)} != {SAMPLER_KERNELS}:
        problems.append(f"{where}: {len(spilled)} kernels, {len(calls)} calls of XLA's own")
    if temporaries >= 4 * num_rows * vocab_size:
        problems.append(f"{where}: {temporaries} bytes of temporaries would hold the logits again")
    return problems


class AbstractModel:
    """A model of shapes only, for StepCompiler."""

    description = "of shapes only"

    def __init__(self, mesh: Mesh) -> None:
        model = Decoder(MODEL, mesh, param_dtype="bfloat16", max_model_len=4096)
        self._graphdef, state = nnx.split(model)
        leaves, self._treedef = jax.tree.flatten(state)
        self.weights = tuple(leaves)

    def merge(self, weights: Any) -> Decoder:
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, weights))


def kernel_calls(text: str) -> list[str]:
    """The lines of a step's HLO that call kernels of this project."""
    targets = r'custom_call_target="(__gpu\$xla\.gpu\.triton|triton_kernel_call_ffi|mosaic_gpu_v2)"'
    return [line for line in text.splitlines() if re.search(targets, line)]


def check_step(mesh: Mesh, bucket: Bucket, *, mosaic: bool = False, skinny: bool = False) -> list[str]:
    """What is wrong with the executable of one bucket, with the kernels of Hopper GPUs or without: for prompts Mosaic
    GPU's, and those for products of few rows and gated ones."""
    pool = KVPoolSpec(NUM_LAYERS, 30011, 16, MODEL.num_kv_heads, MODEL.head_dim, jnp.dtype("bfloat16"))
    model = AbstractModel(mesh)
    # Layers are traced once for each shape: what was traced with other kernels must not be used again.
    jax.clear_caches()
    clear_dump()
    with on_hopper(mosaic=mosaic, skinny=skinny):
        step: Any = StepCompiler(model, model.weights, mesh, pool, 256, 256).compile(bucket)
    pool_bytes = pool.num_pages * pool.page_bytes
    memory = step.memory_analysis()
    text = step.as_text()
    thunks = thunks_of("run_step")
    outside = outside_graphs(thunks)
    calls = kernel_calls(text)
    # Only norms give two streams; all of the sampler are given the logits.
    stream = re.escape(f"bf16[{bucket.num_tokens},{MODEL.hidden_size}]{{1,0}}")
    norms = [line for line in calls if re.search(rf"= \({stream}, {stream}\)", line)]
    sampling = [line for line in calls if f"f32[{bucket.num_seqs},{MODEL.vocab_size}]" in line]
    products = [line for line in calls if re.search(rf"= \w+\[\d,{bucket.num_tokens},\d+\]{{2,1,0}} custom", line)]
    activations = [line for line in calls if f"= bf16[{bucket.num_tokens},{MODEL.intermediate_size}]" in line]
    attention = [line for line in calls if line not in (*norms, *sampling, *products, *activations)]
    print(
        f"{bucket}: {len(thunks)} thunks, {len(calls)} calls of kernels, "
        f"{memory.temp_size_in_bytes} bytes of temporaries"
    )

    problems = []
    few = bucket.num_tokens <= MAX_SKINNY_ROWS
    tiled = skinny and not few
    if memory.alias_size_in_bytes < pool_bytes:
        problems.append(f"only {memory.alias_size_in_bytes} bytes written in place; the pool has {pool_bytes}")
    if memory.temp_size_in_bytes >= pool_bytes // NUM_LAYERS:
        problems.append(f"{memory.temp_size_in_bytes} bytes of temporaries would hold a layer's pool")
    if re.search(rf"= bf16\[{pool.shape[0]},\S* copy\(", text):
        problems.append("the pool is copied")
    if outside != STEP_THUNKS:
        problems.append(f"not one command buffer and a copy, but {outside[:8]}")
    if len(attention) != NUM_LAYERS * (1 if bucket.decode_only else 3):
        problems.append(f"{len(attention)} calls of attention in {NUM_LAYERS} layers")
    # Those of layers, and scores. Of many rows gated ones alone, as XLA's others are as fast.
    if len(products) != (3 * NUM_LAYERS + 1 if skinny and few else 0):
        problems.append(f"{len(products)} products of few rows in {NUM_LAYERS} layers")
    if len(norms) != (2 * NUM_LAYERS if skinny or bucket.num_tokens > FEW_ROWS else 0):
        problems.append(f"{len(norms)} sums with their norms in {NUM_LAYERS} layers")
    if len(activations) != (NUM_LAYERS if skinny or bucket.num_tokens > swiglu_api.FEW_ROWS else 0):
        problems.append(f"{len(activations)} activations in {NUM_LAYERS} layers")
    if len(sampling) != (SAMPLER_KERNELS if bucket.sampler is SamplerKind.FULL else 0):
        problems.append(f"{len(sampling)} calls of kernels in the sampler")
    if bucket.decode_only and "triton_kernel_call_ffi" in text:
        problems.append("Triton kernels are not XLA's own: the host would ask each before every step")
    if (mosaic or tiled) != ("mosaic_gpu_v2" in text):
        problems.append("prompts or gated products are not computed by the kernel that should do it")
    # Kernels count on arrays that are aligned.
    if any("kDynamicSliceFusion" in line for line in thunks):
        problems.append("kernels are given slices where they lie")
    if loops := re.findall(r" (?:sort|while)\(|DeviceRadixSort", text):
        problems.append(f"sorts or loops: {loops}")
    # An operand says which sequence each program works for: one array for each of the kernels that attend.
    plans = {plan for line in attention if (plan := _plan(line, bucket)) is not None}
    if len(plans) != (1 if bucket.decode_only else 2):
        problems.append(f"work is laid out {len(plans)} times: {sorted(plans)}")
    return [f"{bucket}: {problem}" for problem in problems]


def _plan(call: str, bucket: Bucket) -> str | None:
    """The operand that lays out the work of a kernel that attends."""
    operands: list[str] = re.findall(r" custom-call\(([^)]*)\)", call)[0].split(", ")
    if "mosaic_gpu_v2" in call:
        return operands[0]
    place = 4 if bucket.decode_only else 5
    return operands[place] if len(operands) > 5 else None


def step_buckets() -> dict[tuple[int, bool, SamplerKind], Bucket]:
    """The buckets of an engine on a GPU, by tokens, whether they only decode, and sampler."""
    buckets = Buckets(max_num_seqs=256, max_num_batched_tokens=8192, page_size=16, split_decode=True)
    return {(b.num_tokens, b.decode_only, b.sampler): b for b in buckets}


def report_problems(problems: list[str]) -> int:
    """Print them, and give the exit status."""
    for problem in problems:
        print(f"FAIL {problem}")
    print("compiled as it must" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def main() -> int:
    mesh = h200(1)
    problems = []
    for name, heads in HEADS.items():
        problems += check_kernels(mesh, heads, "bfloat16")
        if name in ("llama-3-8b", "gemma-2-9b"):
            problems += check_kernels(mesh, heads, "float32")
    for vocab_size in VOCABULARIES.values():
        problems += check_sampler(mesh, 256, vocab_size)
    buckets = step_buckets()
    for name in ("llama-3-8b", "llama-2-7b", "demo", "smollm-135m"):
        problems += check_mosaic(mesh, HEADS[name])
    for num_rows in (1, 32, 64):
        problems += check_skinny(mesh, num_rows, 4096, 4096)
    for num_rows, columns, size in ((1, 1536, 4096), (64, 14336, 4096), (64, 4096, 13696), (64, 32_064, 8192)):
        problems += check_skinny(mesh, num_rows, columns, size)
    for num_rows, columns, size in ((256, 14336, 4096), (8192, 14336, 4096), (128, 3584, 4096)):
        problems += check_tiled_gated(mesh, num_rows, columns, size)
    for step in STEPS:
        problems += check_step(mesh, buckets[step])
    for step in STEPS:
        if not buckets[step].decode_only:
            problems += check_step(mesh, buckets[step], mosaic=True)
    for num_tokens in (1, 64, 256):
        problems += check_step(mesh, buckets[num_tokens, True, SamplerKind.GREEDY], skinny=True)
    return report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
