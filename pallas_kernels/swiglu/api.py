"""The public operation: checks its argument and picks an implementation."""

import jax

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.swiglu.reference import swiglu_reference

# Up to so many rows XLA's kernel takes little more than its launch.
FEW_ROWS = 64


def swiglu(gate_up: jax.Array, *, implementation: Implementation | None = None) -> jax.Array:
    """silu(gate) * up (SwiGLU, Shazeer 2020).

    Args:
        gate_up: [T, 2, F] the gate's product, then the other one.
        implementation: `reference`, `triton`, or None for the best: Triton on a GPU for more than FEW_ROWS rows.

    Returns:
        [T, F] in gate_up's dtype; the kernel computes in float32 and rounds once.

    Raises:
        ValueError: the shape is another, or the implementation is unknown.
    """
    if gate_up.ndim != 3 or gate_up.shape[1] != 2:
        raise ValueError(f"gate_up {gate_up.shape} must be [T, 2, F]")
    if pick_implementation(implementation, takes_triton=gate_up.shape[0] > FEW_ROWS) == "reference":
        return swiglu_reference(gate_up)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.swiglu.triton import swiglu_triton

    return swiglu_triton(gate_up)
