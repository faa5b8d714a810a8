"""Reading the rotary embedding's settings, in either style of config.json."""

from typing import Any

from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config_file import ConfigFile

# What each kind may be given beside its theta.
_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
_MAX_FACTOR = 65536.0


def read_rope(file: ConfigFile, max_position_embeddings: int, head_dim: int) -> RopeConfig:
    """The rotary embedding of a config.json: `rope_theta` beside `rope_scaling`, or both within `rope_parameters`.

    Args:
        file: the config.
        max_position_embeddings: of the same file.
        head_dim: H.

    Raises:
        CheckpointError: an unknown kind, or a key that is missing, unknown or contradicts another.
    """
    theta = file.number("rope_theta", 10000.0)
    top_level_original = file.get("original_max_position_embeddings")
    name, values = _scaling(file)
    scaling = ConfigFile(file.path, values, prefix=f"{name}.")
    kind = _kind(scaling)
    if "rope_theta" in values:
        inner = scaling.number("rope_theta")
        if file.get("rope_theta") is not None and inner != theta:
            raise scaling.error("rope_theta", f"is {inner}, but rope_theta is {theta}")
        theta = inner
    scaling.refuse("partial_rotary_factor", (1.0, 1), "rotating a part of each head is not implemented")
    original = _original_length(scaling, kind, top_level_original, max_position_embeddings)
    config = RopeConfig(
        kind=kind,  # type: ignore[arg-type]  # checked to be one of the keys above
        theta=theta,
        factor=1.0 if kind == "default" else scaling.number("factor"),
        original_max_position_embeddings=original,
        **_of_kind(scaling, kind),
    )
    _check(scaling, config, theta, head_dim)
    scaling.refuse_unknown(frozenset({"type", "rope_type"}))
    return config


def _scaling(file: ConfigFile) -> tuple[str, dict[str, Any]]:
    """The object that holds the kind and its settings, and its key; empty if there is none."""
    old, new = file.get("rope_scaling"), file.get("rope_parameters")
    if old is not None and new is not None and old != new:
        raise file.error("rope_parameters", "and rope_scaling are both given and differ; keep one of them")
    name, value = ("rope_parameters", new) if new is not None else ("rope_scaling", old)
    if value is not None and not isinstance(value, dict):
        raise file.error(name, f"must be an object, got {value!r}")
    return name, value or {}


def _kind(scaling: ConfigFile) -> str:
    new, old = scaling.get("rope_type"), scaling.get("type")
    if new is not None and old is not None and new != old:
        raise scaling.error("rope_type", f"is {new!r}, but type is {old!r}")
    kind = new if new is not None else old if old is not None else "default"
    if kind not in _KEYS:
        raise scaling.error("rope_type", f"is {kind!r}, which is not supported; supported: {', '.join(_KEYS)}")
    return str(kind)


def _original_length(scaling: ConfigFile, kind: str, top_level: object, max_position_embeddings: int) -> int | None:
    if kind in ("default", "linear"):
        return None
    if kind == "dynamic":
        # Dynamic NTK grows from max_position_embeddings, whatever else a config names.
        scaling.refuse(
            "original_max_position_embeddings",
            (max_position_embeddings,),
            f"contradicts max_position_embeddings ({max_position_embeddings}), which dynamic scaling starts from",
        )
        return max_position_embeddings
    inner = scaling.integer("original_max_position_embeddings", max_position_embeddings)
    if top_level is None:
        return inner
    if top_level != inner and "original_max_position_embeddings" in scaling.values:
        raise scaling.error("original_max_position_embeddings", f"is {inner}, but outside of it is {top_level!r}")
    if isinstance(top_level, bool) or not isinstance(top_level, int) or top_level < 1:
        raise scaling.error("original_max_position_embeddings", f"must be a positive integer, got {top_level!r}")
    return top_level


def _of_kind(scaling: ConfigFile, kind: str) -> dict[str, Any]:
    if kind == "llama3":
        return {key: scaling.number(key) for key in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        return {
            "beta_fast": scaling.number("beta_fast", 32.0),
            "beta_slow": scaling.number("beta_slow", 1.0),
            "attention_factor": scaling.optional_number("attention_factor"),
            "mscale": scaling.optional_number("mscale"),
            "mscale_all_dim": scaling.optional_number("mscale_all_dim"),
            "truncate": scaling.boolean("truncate", True),
        }
    return {}


def _check(scaling: ConfigFile, config: RopeConfig, theta: float, head_dim: int) -> None:
    if not 1.0 <= config.factor <= _MAX_FACTOR:
        raise scaling.error("factor", f"must be from 1 to {_MAX_FACTOR:g}, got {config.factor}")
    if theta <= 1.0:
        raise scaling.error("rope_theta", f"must be above 1, got {theta}")
    if config.kind == "llama3" and config.low_freq_factor >= config.high_freq_factor:
        raise scaling.error(
            "low_freq_factor", f"is {config.low_freq_factor}, not below high_freq_factor ({config.high_freq_factor})"
        )
    if config.kind == "yarn" and config.beta_fast < config.beta_slow:
        raise scaling.error("beta_fast", f"is {config.beta_fast}, below beta_slow ({config.beta_slow})")
    if config.kind == "dynamic" and head_dim <= 2:
        raise scaling.error("rope_type", f"dynamic needs a head_dim above 2, got {head_dim}")
