"""Ids of whole tokenizers, special tokens included, against those that transformers' slow ones gave."""

import json
import shutil
from pathlib import Path

import pytest

from jaxserve.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data" / "tokenizers"
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED["cases"])
def test_ids_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = EXPECTED["cases"][name]
    for file in case["files"]:
        shutil.copy(DATA / file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(case["config"]))
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.encode(text) for text in EXPECTED["texts"]] == case["ids"]
