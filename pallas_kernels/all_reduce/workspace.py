"""The memory that GPUs write into for each other, and the table of its addresses.

XLA lets all GPUs of a process reach each other's memory, so an address on one is good in a kernel on another. What
others write into lies in one array a GPU; where that is, and what a GPU itself keeps from call to call, lies in a small
array that goes into the step like a weight. Kernels write into both, unknown to XLA.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.all_reduce.config import (
    EMPTY,
    LINE_BYTES,
    MAX_EXCHANGE_BYTES,
    MAX_EXCHANGE_ROWS,
    ROW_INBOXES,
    WORD_BYTES,
    max_kernel_rows,
)

_ALIGNMENT = 256


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class WorkspaceLayout:
    """What lies where in each device's workspace and in its row of the table.

    The workspace is inboxes. Those for maxima are of lines of 16 bytes, half of it data, half the epoch, the number of
    the call, and are there twice, for even and odd epochs: who sends epoch e knows that all have read epoch e - 2.
    Those for rows are of words of 8 bytes, full of EMPTY before a call, and are there `ROW_INBOXES` times
    (`kernels.py`).

    The table holds the addresses of all workspaces, the device's rank, and its error word: not 0 once a wait was given
    up. Then for each row of the residual stream which inbox its last call took, and for each row of an exchange the
    number of calls.

    Attributes:
        num_devices: N, 2 or more.
        row_bytes: most bytes of a row.
        max_rows: most rows of a call.
        max_exchange_rows: most rows of an exchange of maxima.
    """

    num_devices: int
    row_bytes: int
    max_rows: int
    max_exchange_rows: int = MAX_EXCHANGE_ROWS

    @classmethod
    def of(cls, hidden_size: int, itemsize: int, num_devices: int) -> "WorkspaceLayout":
        """For rows of some values of `itemsize` bytes, as many as `config.max_kernel_rows` says."""
        row_bytes = hidden_size * itemsize
        return cls(num_devices, row_bytes, max_kernel_rows(row_bytes, num_devices))

    @property
    def error_word(self) -> int:
        """Column of the table: not 0 once a wait was given up."""
        return 2 * self.num_devices + 1

    @property
    def row_counters(self) -> int:
        """First column of [max_rows] of the table."""
        return self.error_word + 1

    @property
    def exchange_counters(self) -> int:
        """First column of [max_exchange_rows] of the table."""
        return self.row_counters + self.max_rows

    @property
    def table_columns(self) -> int:
        """int32 values of a row of the table."""
        return self.exchange_counters + self.max_exchange_rows

    @property
    def exchange_inbox(self) -> int:
        """Offset in bytes of [2, N - 1, max_exchange_rows] lines of the workspace."""
        return 0

    @property
    def row_inbox(self) -> int:
        """Offset in bytes of [ROW_INBOXES, N - 1, max_rows, row_bytes / 8] words of the workspace."""
        return self.exchange_inbox + 2 * (self.num_devices - 1) * self.max_exchange_rows * LINE_BYTES

    @property
    def num_bytes(self) -> int:
        """Bytes of a device's workspace."""
        words = -(-self.row_bytes // WORD_BYTES)
        return _aligned(self.row_inbox + ROW_INBOXES * (self.num_devices - 1) * self.max_rows * words * WORD_BYTES)

    def takes(self, num_rows: int, row_bytes: int) -> bool:
        """Whether rows can be summed in it."""
        return num_rows <= self.max_rows and row_bytes <= self.row_bytes and row_bytes % WORD_BYTES == 0

    def pieces(self, row_bytes: int) -> int:
        """Rows of an inbox that a row of an exchange takes, which may be longer than they are."""
        return -(-row_bytes // (self.row_bytes // WORD_BYTES * WORD_BYTES))

    def takes_columns(self, num_rows: int, row_bytes: int) -> bool:
        """Whether each device can be given the columns, of `row_bytes`, that the others have of its `num_rows` rows."""
        most = min(self.max_rows, MAX_EXCHANGE_BYTES // self.num_devices // self.row_bytes)
        return num_rows * self.pieces(row_bytes) <= most


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Peers:
    """What the operations need to reach the other devices.

    Attributes:
        table: [N, table_columns] int32, `first_table`, split over the devices: inside `shard_map`, one row of it. The
            kernels count calls in it, so all steps must be given this very array.
        layout: of the workspaces. Static.
    """

    table: jax.Array
    layout: WorkspaceLayout = field(metadata={"static": True})


def first_table(addresses: Sequence[int], layout: WorkspaceLayout) -> np.ndarray:
    """[N, table_columns] int32 from the addresses of the N workspaces.

    Row r holds the addresses of ranks r, r + 1, ... modulo N, the low and the high half of each, then r, then zeros:
    the error word and the counters.
    """
    size = len(addresses)
    table = np.zeros((size, layout.table_columns), np.uint32)
    for rank in range(size):
        reached = [addresses[(rank + j) % size] for j in range(size)]
        halves = [half for address in reached for half in (address & 0xFFFFFFFF, address >> 32)]
        table[rank, : 2 * size + 1] = [*halves, rank]
    return table.view(np.int32)


def first_memory(layout: WorkspaceLayout) -> jax.Array:
    """[num_bytes / 4] uint32, what a workspace holds before the first call: epochs that are none, and EMPTY."""
    of_rows = jnp.arange(layout.num_bytes // 4) >= layout.row_inbox // 4
    return jnp.where(of_rows, jnp.uint32(EMPTY), jnp.uint32(0))


class PeerWorkspace:
    """The workspaces of a mesh's devices. Must be kept as long as any step that was given its table may run.

    One belongs to one stream of steps: steps that ran at the same time would mix their rows.

    Args:
        mesh: of one axis; of devices for which `why_no_peers` is None.
        layout: for as many devices.

    Attributes:
        peers: what the operations take.
    """

    def __init__(self, mesh: Mesh, layout: WorkspaceLayout) -> None:
        (axis,) = mesh.axis_names
        devices = list(mesh.devices.flat)
        if len(devices) != layout.num_devices:
            raise ValueError(f"the layout is for {layout.num_devices} devices; the mesh has {len(devices)}")
        split = NamedSharding(mesh, PartitionSpec(axis))
        memory = jax.jit(lambda: jnp.tile(first_memory(layout), (len(devices), 1)), out_shardings=split)()
        self._memory: jax.Array = jax.block_until_ready(memory)
        pointers = {s.device: s.data.unsafe_buffer_pointer() for s in self._memory.addressable_shards}
        table = first_table([pointers[device] for device in devices], layout)
        self.peers = Peers(jax.device_put(table, split), layout)

    def errors(self) -> list[int]:
        """The error word of each device, by rank. Waits for the steps in flight."""
        column = self.peers.layout.error_word
        return [int(np.asarray(s.data[0, column])) for s in self.peers.table.addressable_shards]


def why_no_peers(mesh: Mesh) -> str | None:
    """Why the devices of a mesh cannot write into each other's memory; None if they can.

    Devices that are only described, to compile for, are taken for GPUs of one host.
    """
    devices = list(mesh.devices.flat)
    if len(devices) < 2:
        return "there is one device"
    if any(device.platform not in ("gpu", "cuda") for device in devices):
        return "the devices are not NVIDIA GPUs"
    if len({device.process_index for device in devices}) > 1:
        return "the devices belong to several processes"
    if not isinstance(devices[0], jax.Device) or devices[0] not in jax.devices():
        return None
    ordinals = [device.local_hardware_id for device in devices]
    for a in ordinals:
        for b in ordinals:
            if a is None or b is None or (a != b and not _can_access(a, b)):
                return f"GPU {a} cannot reach the memory of GPU {b}"
    return None


def _can_access(device: int, peer: int) -> bool:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    handles = []
    for ordinal in (device, peer):
        handle = ctypes.c_int()
        if cuda.cuDeviceGet(ctypes.byref(handle), ordinal):
            return False
        handles.append(handle)
    reachable = ctypes.c_int()
    return not cuda.cuDeviceCanAccessPeer(ctypes.byref(reachable), *handles) and bool(reachable.value)
