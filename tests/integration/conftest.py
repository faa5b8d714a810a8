"""What every test of the whole engine needs."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compilation_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xla")
