"""How attention heads lie over the devices of a tensor-parallel mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxserve.errors import ConfigError


@dataclass(frozen=True)
class HeadLayout:
    """Query heads grouped by the kv head they share, so that each device holds whole groups.

    Fewer kv heads than devices are copied, so that each device has one; the query heads of a kv head are then divided
    over its copies, and heads of zeros fill the last copy where they do not divide. Such heads add nothing: their part
    of the output projection is zeros too.

    Attributes:
        query_heads: N, as the checkpoint has them.
        kv_heads: as the checkpoint has them.
        copies: of each kv head.
    """

    query_heads: int
    kv_heads: int
    copies: int = 1

    @classmethod
    def over(cls, query_heads: int, kv_heads: int, devices: int) -> "HeadLayout":
        """The layout over some devices.

        Raises:
            ConfigError: the heads cannot be divided so.
        """
        if devices > query_heads:
            raise ConfigError(
                f"tensor_parallel_size {devices} is more than the model's {query_heads} query heads; lower it"
            )
        if kv_heads % devices and devices % kv_heads:
            raise ConfigError(
                f"tensor_parallel_size {devices} and the model's {kv_heads} kv heads do not divide each other; take "
                "one that does"
            )
        return cls(query_heads, kv_heads, max(1, devices // kv_heads))

    @property
    def num_kv_heads(self) -> int:
        """K, with the copies."""
        return self.kv_heads * self.copies

    @property
    def group_size(self) -> int:
        """G, query heads of each copy of a kv head, those of zeros included."""
        return -(-self.query_heads // self.kv_heads // self.copies)

    def queries(self, heads: jax.Array) -> jax.Array:
        """[N, ...], one entry a query head, to [K, G, ...]."""
        rest = heads.shape[1:]
        grouped = heads.reshape(self.kv_heads, self.query_heads // self.kv_heads, *rest)
        missing = self.copies * self.group_size - grouped.shape[1]
        padded = jnp.pad(grouped, [(0, 0), (0, missing), *((0, 0) for _ in rest)])
        return padded.reshape(self.num_kv_heads, self.group_size, *rest)

    def keys_or_values(self, heads: jax.Array) -> jax.Array:
        """One entry a kv head of the checkpoint, to [K, ...]."""
        return heads if self.copies == 1 else jnp.repeat(heads, self.copies, axis=0)
