"""Sizes of the Triton kernels. Reasoned, not tuned."""

from dataclasses import dataclass

# Distances from the best logit at which the first pass measures, in units of the temperature (for top_k: of 1). Dense
# where nuclei end; the first of all passes must also find its way in rows of any spread. The last is the row's end.
LADDER = (0.8, 1.6, 2.4, 3.2, 4.0, 4.8, 5.6, 6.4, 7.2, 8.0, 12.0, 18.0, 30.0, 60.0, 120.0, float("inf"))


@dataclass(frozen=True)
class FloorConfig:
    """How rows are cut up. No size depends on the number of rows: a row's floor must not depend on the batch.

    Attributes:
        chunk: tokens a program of the passes over the whole row.
        fine_above: a second pass measures in rows where this many tokens may be left after the first.
        capacity: candidates of a row that fit in the list; rows with more of them are searched where they are.
        block: candidates a loop iteration of the search.
        pass_warps: warps a program of the passes.
        search_warps: warps a program of the search.
    """

    chunk: int = 4096
    fine_above: int = 1024
    capacity: int = 8192
    block: int = 2048
    pass_warps: int = 4
    search_warps: int = 8
