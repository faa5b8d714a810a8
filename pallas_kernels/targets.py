"""What compiled kernels call when they run, for programs that load them without having traced them."""


def register() -> str:
    """Make known to XLA what kernels on an NVIDIA GPU call. Importing them is what does.

    Returns:
        How Triton kernels are launched (`triton_call.launched_by`), on which it depends what is compiled; empty where
        jax_triton is not installed, and there are no such kernels.
    """
    # It sets what Mosaic GPU's kernels read when they are loaded.
    import jax.experimental.mosaic.gpu  # noqa: F401

    try:
        from pallas_kernels.triton_call import launched_by
    except ImportError:
        return ""
    return launched_by()
