"""The tables of docs/models.md."""

import runpy
import subprocess
import sys
from pathlib import Path

from jaxserve.models.families import FAMILIES

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_tables_of_the_docs_are_those_of_the_code() -> None:
    command = [sys.executable, str(SCRIPTS / "models_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_family_has_a_published_size_in_them() -> None:
    published = runpy.run_path(str(SCRIPTS / "published_models.py"))["PUBLISHED"]
    sized = {keys["architectures"][0] for keys in published.values()}
    assert [family.name for family in FAMILIES if not sized & set(family.architectures)] == []
