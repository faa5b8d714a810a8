"""`python -m tests.support.simulated_serve TOKENIZER_DIR FAULT`: the server's own start, on the simulated engine."""

import sys

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.server.app import announce, run

if __name__ == "__main__":
    directory, fault = sys.argv[1:]
    sys.exit(
        run(
            EngineConfig(model=directory, served_model_name=fault),
            ServerConfig(port=0, drain_timeout=20.0),
            announce,
            engine_command=(sys.executable, "-m", "tests.support.simulated_engine"),
        )
    )
