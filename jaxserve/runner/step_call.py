"""Calling a compiled step without what JAX looks at in every argument of every call."""

from typing import Any

import jax

from jaxserve.runner.step_function import DeviceState, Weights


class StepCall:
    """A compiled step with the weights that it is given each time.

    JAX asks each argument of a call for its type, its layout and its sharding, and whether it was deleted. A step's
    arrays have been the compiled ones' since the engine began, and they are many: so they go to the executable itself,
    by parts of jax that are not public (its version is pinned).

    Args:
        compiled: `run_step`, compiled ahead of time, for arrays with these shardings.
        weights: arrays that lie as they were compiled for.
    """

    def __init__(self, compiled: Any, weights: Weights) -> None:
        self.compiled = compiled
        self._weights = weights
        call = compiled._executable.unsafe_call
        plain = not (
            compiled._params.const_args
            or call.mut
            or call.ordered_effects
            or call.has_unordered_effects
            or call.has_host_callbacks
        )
        # Without what the computation does not read, which the executable does not take.
        self._kept = sorted(call.kept_var_idx)
        self._kept_weights = [weights[i] for i in self._kept if i < len(weights)]
        self._kept_others = [i - len(weights) for i in self._kept if i >= len(weights)]
        self._executable = call.xla_executable if plain else None
        self._handlers = call.out_handler.handlers

    def __call__(
        self, kv_pages: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array
    ) -> tuple[jax.Array, DeviceState, jax.Array]:
        """As `run_step`. Returns without waiting for the device."""
        if self._executable is None:
            result: tuple[jax.Array, DeviceState, jax.Array] = self.compiled(
                self._weights, kv_pages, state, packed, used
            )
            return result
        others = (kv_pages, *state, packed, used)
        arrays = [*self._kept_weights, *[others[i] for i in self._kept_others]]
        pool, *rest, sampled = self._executable.execute_sharded(arrays).consume_with_handlers(self._handlers)
        return pool, DeviceState(*rest), sampled
