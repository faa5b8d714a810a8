"""What a program must have imported that loads compiled kernels."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pallas_kernels import targets
way = targets.register()
from pallas_kernels.triton_call import launched_by
assert way == launched_by()
assert "jax.experimental.mosaic.gpu" in sys.modules and "jax_triton" in sys.modules
"""


def test_what_kernels_call_is_imported_in_a_process_that_traced_nothing() -> None:
    pytest.importorskip("jax_triton")
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
