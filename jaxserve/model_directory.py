"""Which directory a model's name means."""

from pathlib import Path

from jaxserve.errors import CheckpointError

DEMO_MODEL = "demo"


def resolve_model(model: str) -> Path:
    """The directory of a model: the bundled one for `demo`, else the local directory named.

    Raises:
        CheckpointError: there is no such directory.
    """
    if model == DEMO_MODEL and not Path(model).is_dir():
        return Path(__file__).parent / "demo_model"
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f"{model}: no such directory. Models are served from local directories as Hugging Face lays them out; "
            f"`{DEMO_MODEL}` is the bundled one"
        )
    return directory
