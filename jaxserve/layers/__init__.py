"""The parts that models are made of. They know the mesh and the kernels, and nothing of requests."""
