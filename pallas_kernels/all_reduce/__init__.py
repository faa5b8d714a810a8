"""Sums, choices and exchanges over the GPUs of one process, by kernels that write into each other's memory."""

from pallas_kernels.all_reduce.api import all_reduce, all_reduce_residual_norm, all_to_all, argmax_over_devices
from pallas_kernels.all_reduce.workspace import Peers, PeerWorkspace, WorkspaceLayout, why_no_peers

__all__ = [
    "PeerWorkspace",
    "Peers",
    "WorkspaceLayout",
    "all_reduce",
    "all_reduce_residual_norm",
    "all_to_all",
    "argmax_over_devices",
    "why_no_peers",
]
