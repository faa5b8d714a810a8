"""Compiled steps kept between starts, so that they need be neither compiled nor traced again."""

import hashlib
import importlib.metadata
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import jax
import msgspec
from jax.sharding import Mesh

import pallas_kernels
from jaxserve.layers import norm
from jaxserve.runner.buckets import Bucket
from pallas_kernels import targets

logger = logging.getLogger(__name__)

PACKAGES = Path(__file__).resolve().parent.parent
# What a step's computation is written in.
SOURCES = (PACKAGES / "layers", PACKAGES / "models", PACKAGES / "runner", PACKAGES / "sharding.py")
# Of the files of a directory; beyond it those go that were not used for longest. A step is about 2 MB.
LIMIT_BYTES = 4 << 30
_SUFFIX = ".step"
_DIGEST_BYTES = 32
# Where memory ends and where the caches lie has no part in what is compiled.
_UNREAD = ("XLA_PYTHON_CLIENT_", "JAX_COMPILATION_CACHE_", "TRITON_CACHE_")


class StoredStep(msgspec.Struct, frozen=True, array_like=True):
    """A step as a file holds it.

    Attributes:
        executable: as XLA writes it.
        kept: as in `StepExecutable`.
        temporary_bytes: as in `StepExecutable`.
    """

    executable: bytes
    kept: list[int]
    temporary_bytes: int


class StepCache:
    """The compiled steps of one engine, a file each.

    JAX has a cache of its own, which it asks with what it has traced and lowered: seconds of one core for each shape.
    This one is asked with all that the tracing depends on: the sources, the versions, the devices, the model, the
    settings. The files hold code and are trusted, as those of JAX's cache are. One that is damaged is compiled again.

    Args:
        directory: where they lie; made if it is missing.
        subject: what a step depends on besides its bucket.
    """

    def __init__(self, directory: Path, subject: Sequence[str]) -> None:
        self._directory = directory
        self._subject = "\n".join(subject)

    def load(self, bucket: Bucket) -> StoredStep | None:
        """The step of a bucket; None if it is not there."""
        path = self._path(bucket)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read, and its step is compiled again: %s", path, error)
            return None
        # It was used now; a directory that is only read does without.
        with suppress(OSError):
            path.touch()
        digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            logger.warning("%s is damaged, and its step is compiled again", path)
            return None
        return msgspec.msgpack.decode(zlib.decompress(packed), type=StoredStep)

    def store(self, bucket: Bucket, step: StoredStep) -> None:
        """Keep the step of a bucket. A directory that cannot be written to is no reason to stop."""
        packed = zlib.compress(msgspec.msgpack.encode(step), 1)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._directory) as beside:
                file = Path(beside) / "step"
                file.write_bytes(hashlib.sha256(packed).digest() + packed)
                # At once, so that no other process reads half of it.
                file.replace(self._path(bucket))
            self._prune()
        except OSError as error:
            logger.warning("a compiled step could not be kept in %s: %s", self._directory, error)

    def _path(self, bucket: Bucket) -> Path:
        digest = hashlib.sha256(f"{self._subject}\n{bucket!r}".encode()).hexdigest()
        return self._directory / (digest + _SUFFIX)

    def _prune(self) -> None:
        """Remove what was not used for longest, beyond LIMIT_BYTES."""
        files = [(path, path.stat()) for path in self._directory.glob("*" + _SUFFIX)]
        surplus = sum(stat.st_size for _, stat in files) - LIMIT_BYTES
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if surplus <= 0:
                break
            path.unlink(missing_ok=True)
            surplus -= stat.st_size


def environment(mesh: Mesh) -> list[str]:
    """What every step depends on that is neither the model's nor the engine's: sources, versions, devices, variables.

    Args:
        mesh: the devices.
    """
    devices = list(mesh.devices.flat)
    client = devices[0].client
    # First: importing kernels sets variables.
    launched_by = "" if client.platform == "cpu" else targets.register()
    switches = {
        name: getattr(jax.config, name)
        for name in ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
    }
    return [
        f"sources {_source_digest()}",
        f"versions {dict(_versions())}",
        f"platform {client.platform} {client.platform_version}",
        f"devices {[(device.id, device.device_kind) for device in devices]} {mesh.axis_names}",
        f"variables {sorted(_variables())}",
        f"switches {switches} {norm.SPLIT_STREAM_ROWS} {launched_by}",
    ]


def _source_digest() -> str:
    digest = hashlib.sha256()
    for root in (*SOURCES, Path(pallas_kernels.__file__).parent):
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root.parent)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _versions() -> Iterator[tuple[str, str | None]]:
    for name in ("jax", "jaxlib", "flax", "jax-triton", "triton", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, None


def _variables() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if name.startswith(("XLA_", "JAX_", "TRITON_", "MOSAIC_")) and not name.startswith(_UNREAD):
            yield name, value
