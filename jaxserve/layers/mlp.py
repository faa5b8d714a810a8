"""Feed-forward layers."""

from typing import Literal

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.layers.linear import multiply_columns, multiply_gated, multiply_split
from jaxserve.layers.parameter import abstract_param

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


def activate(x: jax.Array, activation: Activation) -> jax.Array:
    """An activation by its name; `gelu_tanh` is the approximation of Hendrycks and Gimpel (2016)."""
    if activation == "silu":
        return jax.nn.silu(x)
    if activation == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


class GateUpProjection(nnx.Module):
    """The gate and up matrices of a feed-forward layer in one product.

    Args:
        hidden_size: D, of the input.
        intermediate_size: F, of each output.
        bias: add a bias.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool, mesh: Mesh, dtype: DTypeLike) -> None:
        axes = ("gate_up", "mlp")
        self.weight = abstract_param(mesh, (2, intermediate_size, hidden_size), (*axes, "embed"), dtype)
        self.bias = abstract_param(mesh, (2, intermediate_size), axes, dtype) if bias else None
        self.mesh = mesh

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, D] to [T, 2, F], gate and up."""
        out = multiply_columns(x, self.weight[...], self.mesh, split_axis=1)
        return out if self.bias is None else out + self.bias[...]


class DownProjection(nnx.Module):
    """The feed-forward's inner values back to the residual stream.

    Args:
        hidden_size: D, of the output.
        intermediate_size: F, of the input.
        bias: add a bias.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, (hidden_size, intermediate_size), ("embed", "mlp"), dtype)
        self.bias = abstract_param(mesh, (hidden_size,), ("embed",), dtype) if bias else None
        self.mesh = mesh

    def in_parts(self, x: jax.Array) -> jax.Array:
        """[T, F] to [parts, T, D] as `multiply_split` leaves them."""
        return multiply_split(x, self.weight[...], None if self.bias is None else self.bias[...], self.mesh)


class UpProjection(nnx.Module):
    """The first matrix of a feed-forward layer without a gate.

    Args:
        hidden_size: D, of the input.
        intermediate_size: F, of the output.
        bias: add a bias.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, (intermediate_size, hidden_size), ("mlp", "embed"), dtype)
        self.bias = abstract_param(mesh, (intermediate_size,), ("mlp",), dtype) if bias else None
        self.mesh = mesh

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, D] to [T, F]."""
        out = multiply_columns(x, self.weight[...], self.mesh, split_axis=0)
        return out if self.bias is None else out + self.bias[...]


class FeedForward(nnx.Module):
    """What feed-forward layers share: inner values that each makes in its own way, and the product after them."""

    down_proj: DownProjection

    def in_parts(self, x: jax.Array) -> jax.Array:
        """[T, D] to [parts, T, D] as `multiply_split` leaves them."""
        return self.down_proj.in_parts(self._inner(x))

    def _inner(self, x: jax.Array) -> jax.Array:
        """[T, D] to [T, F]."""
        raise NotImplementedError


class GatedMLP(FeedForward):
    """`down(activation(gate(x)) * up(x))` (SwiGLU and its kin, Shazeer 2020).

    Args:
        hidden_size: D.
        intermediate_size: F.
        activation: of the gate.
        bias: add a bias to all three products.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: Activation = "silu",
        bias: bool,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        self.gate_up_proj = GateUpProjection(hidden_size, intermediate_size, bias=bias, mesh=mesh, dtype=dtype)
        self.down_proj = DownProjection(hidden_size, intermediate_size, bias=bias, mesh=mesh, dtype=dtype)
        self.activation = activation
        self.mesh = mesh

    def _inner(self, x: jax.Array) -> jax.Array:
        if self.activation == "silu" and self.gate_up_proj.bias is None:
            return multiply_gated(x, self.gate_up_proj.weight[...], self.mesh)
        gate_up = self.gate_up_proj(x)
        return activate(gate_up[:, 0], self.activation) * gate_up[:, 1]


class PlainMLP(FeedForward):
    """`down(activation(up(x)))` (Vaswani et al. 2017).

    Args:
        hidden_size: D.
        intermediate_size: F.
        activation: of the inner values.
        bias: add a bias to both products.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: Activation,
        bias: bool,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        self.up_proj = UpProjection(hidden_size, intermediate_size, bias=bias, mesh=mesh, dtype=dtype)
        self.down_proj = DownProjection(hidden_size, intermediate_size, bias=bias, mesh=mesh, dtype=dtype)
        self.activation = activation

    def _inner(self, x: jax.Array) -> jax.Array:
        return activate(self.up_proj(x), self.activation)
