"""The training script's modules stand beside it in scripts/."""

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    return REPOSITORY / "jaxserve" / "demo_model"
