"""Operations that XLA has no good kernel for. One folder an operation.

Each folder holds the public function (`api.py`, with `implementation=None` for the best one on the platform), its
definition in plain jax.numpy (`reference.py`, which is also what the CPU runs), the shapes of real models
(`arg_specs.py`, read by tests and benchmarks alike), and the kernels. Nothing here imports jaxserve.

Axes: T tokens, S sequences, P pages, K kv heads, G query heads a kv head, H head_dim, E experts, D hidden size, F inner
size of a feed-forward.
"""
