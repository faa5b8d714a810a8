"""`jaxserve convert`: a Hugging Face directory to an Orbax checkpoint."""

import argparse
from pathlib import Path

from jaxserve.progress import progress_bars


def run(args: argparse.Namespace) -> int:
    """Convert and say where the result lies."""
    from jaxserve.model_directory import resolve_model
    from jaxserve.models.checkpoint.orbax import convert

    with progress_bars() as report:
        convert(
            resolve_model(args.source),
            Path(args.target),
            on_progress=lambda done, total: report("Writing tensors (MiB)", done >> 20, total >> 20),
        )
    print(f"wrote {args.target}; serve it with: jaxserve serve {args.target}")
    return 0
