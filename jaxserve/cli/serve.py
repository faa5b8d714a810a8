"""`jaxserve serve`: the gRPC server."""

import argparse
import logging

from jaxserve.cli.flags import config_from_flags
from jaxserve.config import EngineConfig, ServerConfig


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status is 0 after a signal and 1 after a failure."""
    from jaxserve.server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s server: %(message)s")
    engine_config = config_from_flags(EngineConfig, args, model=args.model)
    return serve.run(engine_config, config_from_flags(ServerConfig, args))
