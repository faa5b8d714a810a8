"""What every test shares: four simulated devices, so that tensor parallelism runs on any machine."""

import jax

jax.config.update("jax_num_cpu_devices", 4)
