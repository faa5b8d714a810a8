"""What compiled kernels call when they run, for programs that load them without having traced them."""


def register() -> bool:
    """Make known to XLA what kernels on an NVIDIA GPU call. Importing them is what does.

    Returns:
        Whether XLA launches Triton kernels itself (`triton_call.driver_reads_ptx`), on which it depends what is
        compiled. False where jax_triton is not installed, and there are no such kernels.
    """
    # It sets what Mosaic GPU's kernels read when they are loaded.
    import jax.experimental.mosaic.gpu  # noqa: F401

    try:
        from pallas_kernels.triton_call import driver_reads_ptx
    except ImportError:
        return False
    return driver_reads_ptx()
