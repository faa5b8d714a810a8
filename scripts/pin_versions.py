"""Write the versions that uv resolved into pyproject.toml, as the tested ones.

    uv lock --upgrade && uv run pytest && python scripts/pin_versions.py

uv.lock itself is not kept, since it spells out download addresses. NVIDIA's libraries are left to jax's own ranges:
they must fit the driver of the machine.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNPINNED = re.compile(r"^(jaxserve|triton|nvidia-.*|jax-cuda.*)$")


def main() -> None:
    """Replace `constraint-dependencies` in pyproject.toml."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    pins = sorted(f"{p['name']}=={p['version']}" for p in lock["package"] if not UNPINNED.match(p["name"]))
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    path = ROOT / "pyproject.toml"
    text, count = re.subn(
        r"constraint-dependencies = \[\n.*?\]\n",
        f"constraint-dependencies = [\n{lines}]\n",
        path.read_text(),
        flags=re.S,
    )
    if count != 1:
        raise SystemExit("pyproject.toml has no [tool.uv] constraint-dependencies to replace")
    path.write_text(text)
    print(f"pinned {len(pins)} packages")


if __name__ == "__main__":
    main()
