"""Normalisation. All of it is computed in float32."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.layers.device_sum import PARTS_SPEC, sum_over_devices
from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import TENSOR_AXIS, tensor_parallel_size
from pallas_kernels.all_reduce import Peers, all_reduce, all_reduce_residual_norm
from pallas_kernels.residual_norm import NormKind as RMSNormKind
from pallas_kernels.residual_norm import residual_norm
from pallas_kernels.residual_norm.reference import norm_weight, rms_norm, scale_normed, sum_parts

NormKind = Literal["rms", "rms_rounded_last", "rms_plus_one", "layer"]

# Rows of a step over several devices from which the residual stream is split by rows, where nothing but a product is
# added to it; None: never. Off, since a prefill over two H200s was 1 % slower with it (docs/decisions/0016).
SPLIT_STREAM_ROWS: int | None = None


class RMSNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019) of each head.

    Args:
        size: D, of the normalised axis.
        eps: added to the mean square.
        mesh: the devices.
        dtype: of the weight.
        kind: `rms` rounds to the dtype of the input and then scales by the weight, as Llama does;
            `rms_rounded_last` scales first, as OLMo 2 does; `rms_plus_one` scales first, by 1 + the weight, as Gemma
            does.
    """

    def __init__(
        self,
        size: int,
        *,
        eps: float,
        mesh: Mesh,
        dtype: DTypeLike,
        kind: RMSNormKind = "rms",
    ) -> None:
        self.weight = abstract_param(mesh, (size,), ("head_dim",), dtype)
        self.eps = eps
        self.kind: RMSNormKind = kind

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D], in the dtype of `x`."""
        return rms_norm(x, self.weight[...], eps=self.eps, kind=self.kind)


class HiddenNorms(nnx.Module):
    """The weights of all norms of hidden states, in one array: each array of its own would cost the host time in every
    step.

    Args:
        num_norms: N.
        size: D, of the normalised axis.
        eps: added to the mean square, or the variance.
        mesh: the devices.
        dtype: of the weights.
        kind: of them all: as of RMSNorm, or `layer`, which has biases too.
    """

    def __init__(
        self, num_norms: int, size: int, *, eps: float, mesh: Mesh, dtype: DTypeLike, kind: NormKind = "rms"
    ) -> None:
        self.weight = abstract_param(mesh, (num_norms, size), ("norm", "embed"), dtype)
        self.bias = abstract_param(mesh, (num_norms, size), ("norm", "embed"), dtype) if kind == "layer" else None
        self.eps = eps
        self.kind: NormKind = kind

    def __getitem__(self, row: int) -> "HiddenNorm":
        bias = None if self.bias is None else self.bias[...]
        return HiddenNorm(self.weight[...], bias, jnp.full(1, row, jnp.int32), self.kind, self.eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HiddenNorm:
    """One of HiddenNorms, or, for a function that layers share, the first of a layer's.

    Attributes:
        weights: [N, D] of all.
        biases: [N, D]; None without.
        row: [1] int32, which one. An array, so that layers may share what is compiled.
        kind: see HiddenNorms. Static.
        eps: static.
    """

    weights: jax.Array
    biases: jax.Array | None
    row: jax.Array
    kind: NormKind = field(metadata={"static": True})
    eps: float = field(metadata={"static": True})

    def __getitem__(self, number: int) -> "HiddenNorm":
        """The one so many after it."""
        return replace(self, row=self.row + number)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D], in the dtype of `x`."""
        weight = norm_weight(self.weights, self.row)
        if self.biases is None:
            return rms_norm(x, weight, eps=self.eps, kind=self.rms_kind)
        return _layer_norm(x, weight, norm_weight(self.biases, self.row), self.eps)

    @property
    def rms_kind(self) -> RMSNormKind:
        """The kind of a root mean square norm."""
        assert self.kind != "layer"
        return self.kind


def _layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation of [..., D] with weight and bias [D] (Ba et al. 2016)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + eps)
    return (normed * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def add_and_norm(
    x: jax.Array, delta: jax.Array | None, norm: HiddenNorm | None, mesh: Mesh, peers: Peers | None
) -> tuple[jax.Array, jax.Array]:
    """Add to the residual stream and normalise it.

    Args:
        x: [T, D] the residual stream, whole on every device or split by its rows.
        delta: what is added to it: [T, D], whole on every device, or [parts, T, D] as `multiply_split` leaves them.
            None adds nothing.
        norm: None leaves the sum as it is.
        mesh: the devices.
        peers: how they reach each other's memory; None leaves sums over them to XLA.

    Returns:
        The sum, split by its rows from SPLIT_STREAM_ROWS on, and its norm, whole on every device.
    """
    if delta is None:
        return x, x if norm is None else norm(x)
    if norm is None or norm.kind == "layer":
        x = x + (sum_over_devices(delta, x.dtype, mesh, peers) if delta.ndim == 3 else delta)
        return x, x if norm is None else norm(x)
    summed: tuple[jax.Array, jax.Array]
    whole, rows = P(), P(TENSOR_AXIS)
    if delta.ndim == 3 and _splits_stream(x.shape[0], mesh):
        by_rows = partial(_add_and_norm_by_rows, eps=norm.eps, kind=norm.rms_kind)
        split = (rows, PARTS_SPEC, whole, whole)
        summed = jax.shard_map(by_rows, mesh=mesh, in_specs=split, out_specs=(rows, whole), check_vma=False)(
            x, delta, norm.weights, norm.row
        )
        return summed
    if delta.ndim == 3 and tensor_parallel_size(mesh) > 1:
        reduced = partial(all_reduce_residual_norm, axis_name=TENSOR_AXIS, eps=norm.eps, kind=norm.rms_kind)
        specs = (whole, PARTS_SPEC, whole, rows, whole)
        summed = jax.shard_map(reduced, mesh=mesh, in_specs=specs, out_specs=(whole, whole), check_vma=False)(
            x, delta, norm.weights, peers, norm.row
        )
        return summed
    fused = partial(residual_norm, eps=norm.eps, kind=norm.rms_kind)
    summed = jax.shard_map(fused, mesh=mesh, in_specs=(whole,) * 4, out_specs=(whole, whole), check_vma=False)(
        x, delta, norm.weights, norm.row
    )
    return summed


def _splits_stream(num_rows: int, mesh: Mesh) -> bool:
    size = tensor_parallel_size(mesh)
    return SPLIT_STREAM_ROWS is not None and size > 1 and num_rows >= SPLIT_STREAM_ROWS and num_rows % size == 0


def _add_and_norm_by_rows(
    x: jax.Array, parts: jax.Array, weights: jax.Array, row: jax.Array, *, eps: float, kind: RMSNormKind
) -> tuple[jax.Array, jax.Array]:
    """On each device: its rows of the stream, and the norm of all of them (sequence parallelism, Korthikanti et al.
    2022). As many bytes cross as in a sum on every device, which is made of the same two halves; but adding and
    normalising stand between them, on a share of the rows."""
    own = jax.lax.psum_scatter(sum_parts(parts, x.dtype), TENSOR_AXIS, scatter_dimension=0, tiled=True)
    x, normed = residual_norm(x, own, weights, row, eps=eps, kind=kind)
    return x, jax.lax.all_gather(normed, TENSOR_AXIS, axis=0, tiled=True)


class WholeNorm(nnx.Module):
    """Root mean square normalisation over all heads of a token together, split over the devices by kv head.

    Queries' and keys' are applied together, by `norm_over_heads`.

    Args:
        shape: [K, G, H] or [K, H], as queries or keys lie.
        size: values of a token that are not padding.
        copies: devices that hold the same values; 1 where none are copied.
        eps: added to the mean square.
        kind: see RMSNorm.
        mesh: the devices.
        dtype: of the weight.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        size: int,
        copies: int,
        eps: float,
        kind: RMSNormKind,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        axes = ("kv_heads", "group", "head_dim") if len(shape) == 3 else ("kv_heads", "head_dim")
        self.weight = abstract_param(mesh, shape, axes, dtype)
        self.count = size * copies
        self.eps = eps
        self.kind = kind

    def scale(self, x: jax.Array, weight: jax.Array, sum_of_squares: jax.Array) -> jax.Array:
        """Some heads of `x` [T, ...], with their weight, by the sum [T] over all heads; in the dtype of `x`."""
        mean_square = sum_of_squares.reshape(-1, *(1,) * (x.ndim - 1)) / self.count
        normed = x.astype(jnp.float32) * jax.lax.rsqrt(mean_square + self.eps)
        return scale_normed(normed, weight, self.kind, x.dtype)


def norm_over_heads(
    q: jax.Array, k: jax.Array, q_norm: WholeNorm, k_norm: WholeNorm, mesh: Mesh, peers: Peers | None
) -> tuple[jax.Array, jax.Array]:
    """Normalise queries [T, K, G, H] and keys [T, K, H], each over all heads of a token.

    What crosses the devices are two numbers a token, the sums of squares of both, in one message: two messages that
    nothing puts in order could not go by the same workspace.

    Args:
        q: queries.
        k: keys.
        q_norm: of queries.
        k_norm: of keys.
        mesh: the devices.
        peers: how they reach each other's memory; None leaves the sum to XLA.

    Returns:
        Both, normalised, in their dtypes.
    """

    def local(
        q: jax.Array, k: jax.Array, q_weight: jax.Array, k_weight: jax.Array, peers: Peers | None
    ) -> tuple[jax.Array, jax.Array]:
        own = [jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim))) for x in (q, k)]
        sums = jnp.stack(own, axis=-1)
        if tensor_parallel_size(mesh) > 1:
            sums = all_reduce(sums[None], peers, axis_name=TENSOR_AXIS)
        return q_norm.scale(q, q_weight, sums[:, 0]), k_norm.scale(k, k_weight, sums[:, 1])

    if tensor_parallel_size(mesh) > 1:
        heads, weights = P(None, TENSOR_AXIS), P(TENSOR_AXIS)
        local = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(heads, heads, weights, weights, weights),
            out_specs=(heads, heads),
            check_vma=False,
        )
    return local(q, k, q_norm.weight[...], k_norm.weight[...], peers)
