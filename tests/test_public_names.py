"""What is exported, and that a client never loads jax."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxserve

README_NAMES = {"AsyncClient", "Client", "CompletionOutput", "LLM", "RequestOutput", "SamplingParams"}


def test_the_package_exports_what_it_lists() -> None:
    assert set(jaxserve.__all__) == README_NAMES
    for name in jaxserve.__all__:
        assert getattr(jaxserve, name).__name__ == name
        assert name in dir(jaxserve)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'jaxserve' has no attribute 'Engine'"):
        _ = jaxserve.Engine


def modules_with_all() -> list[str]:
    root = Path(jaxserve.__file__).parent
    names = []
    for path in sorted(root.rglob("*.py")):
        if "\n__all__ = " in path.read_text(encoding="utf-8") and path.parent.name != "v1":
            parts = path.relative_to(root.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("module", modules_with_all())
def test_every_listed_name_exists(module: str) -> None:
    imported = importlib.import_module(module)
    assert len(set(imported.__all__)) == len(imported.__all__)
    for name in imported.__all__:
        assert hasattr(imported, name)


@pytest.mark.parametrize(
    "module",
    [
        "jaxserve",
        "jaxserve.client",
        "jaxserve.request",
        "jaxserve.config",
        "jaxserve.step",
        "jaxserve.scheduler.scheduler",
        "jaxserve.tokenizer",
        "jaxserve.engine.client",
        "jaxserve.server.serve",
        "jaxserve.cli",
    ],
)
def test_importing_it_does_not_load_jax(module: str) -> None:
    code = f"import sys, {module}\nassert 'jax' not in sys.modules and 'jaxlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_the_client_do_not_load_jax() -> None:
    code = "import sys\nfrom jaxserve import AsyncClient, Client, RequestOutput, SamplingParams\n"
    done = subprocess.run([sys.executable, "-c", code + "assert 'jax' not in sys.modules"])
    assert done.returncode == 0
