"""What the clients's tests share: the directory of a tokenizer of ASCII characters."""

from pathlib import Path

import pytest

from tests.support.ascii_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
