"""Calling a compiled step without what JAX looks at in every argument of every call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax._src.interpreters import pxla
from jaxlib.xla_client import DeviceList

from jaxserve.runner.step_function import DeviceState, Weights


@dataclass(frozen=True)
class StepExecutable:
    """A compiled step as XLA has it.

    Attributes:
        executable: of XLA.
        kept: which arguments it takes, counted through all of `run_step`'s arrays: those that the computation reads.
        temporary_bytes: memory that a device needs for temporaries.
        compiled: what JAX must call itself, since the step has callbacks; None if it has not.
    """

    executable: Any
    kept: Sequence[int]
    temporary_bytes: int
    compiled: Any = None

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "StepExecutable":
        """What JAX compiled. By parts of jax that are not public; its version is pinned."""
        executable: Any = compiled._executable
        call, params = executable.unsafe_call, compiled._params
        effects = call.ordered_effects or call.has_unordered_effects or call.has_host_callbacks
        analysis: Any = compiled.memory_analysis()
        return cls(
            executable=call.xla_executable,
            kept=sorted(call.kept_var_idx),
            temporary_bytes=0 if analysis is None else int(analysis.temp_size_in_bytes),
            compiled=compiled if effects or params.const_args or call.mut else None,
        )

    @classmethod
    def restored(
        cls, data: bytes, kept: Sequence[int], temporary_bytes: int, devices: Sequence[jax.Device]
    ) -> "StepExecutable":
        """What was kept of one: `data` is what `executable.serialize()` gave.

        Raises:
            jax.errors.JaxRuntimeError: it cannot be loaded.
        """
        client: Any = devices[0].client
        return cls(client.deserialize_executable(data, DeviceList(tuple(devices)), None), kept, temporary_bytes)

    def hlo_text(self) -> str:
        """The optimized computation."""
        return "\n".join(module.to_string() for module in self.executable.hlo_modules())


class StepCall:
    """A compiled step with the weights that it is given each time.

    JAX asks each argument of a call for its type, its layout and its sharding, and whether it was deleted. A step's
    arrays have been the compiled ones' since the engine began, and they are many: so they go to XLA's executable.

    Args:
        step: for arrays with these shardings.
        weights: arrays that lie as it was compiled for.
        results: `run_step`'s by shape and sharding, flat.
    """

    def __init__(self, step: StepExecutable, weights: Weights, results: Sequence[jax.ShapeDtypeStruct]) -> None:
        self.step = step
        self._weights = weights
        self._kept_weights = [weights[i] for i in step.kept if i < len(weights)]
        self._kept_others = [i - len(weights) for i in step.kept if i >= len(weights)]
        avals = [jax.core.ShapedArray(result.shape, result.dtype) for result in results]
        shardings: Any = [result.sharding for result in results]
        self._handlers = pxla.global_avals_to_results_handler(avals, shardings, committed=True).handlers

    def __call__(
        self, kv_pages: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array
    ) -> tuple[jax.Array, DeviceState, jax.Array]:
        """As `run_step`. Returns without waiting for the device."""
        if self.step.compiled is not None:
            result: tuple[jax.Array, DeviceState, jax.Array]
            result = self.step.compiled(self._weights, kv_pages, state, packed, used)
            return result
        others = (kv_pages, *state, packed, used)
        arrays = [*self._kept_weights, *[others[i] for i in self._kept_others]]
        pool, *rest, sampled = self.step.executable.execute_sharded(arrays).consume_with_handlers(self._handlers)
        return pool, DeviceState(*rest), sampled
