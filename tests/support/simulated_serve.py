"""The server's own start, on the simulated engine.

`python -m tests.support.simulated_serve TOKENIZER_DIR FAULT NUM_FRONT_ENDS`
"""

import sys

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.server.serve import announce, run

if __name__ == "__main__":
    directory, fault, num_front_ends = sys.argv[1:]
    sys.exit(
        run(
            EngineConfig(model=directory, served_model_name=fault, step_timeout_s=0.5 if fault == "hanging" else None),
            ServerConfig(port=0, num_front_ends=int(num_front_ends), drain_timeout=20.0),
            announce,
            engine_command=(sys.executable, "-m", "tests.support.simulated_engine"),
        )
    )
