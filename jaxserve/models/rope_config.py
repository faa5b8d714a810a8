"""Reading the rotary embedding's settings, in either style of config.json."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config_file import ConfigFile

# What each kind may be given beside its theta.
_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
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
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class RopeKeys:
    """Where a family keeps the two settings that all kinds have, and what they are if left out.

    Attributes:
        theta: key of the base of the wavelengths.
        default_theta: its value if left out.
        partial: key of the rotated part of each head.
        default_partial: its value if left out.
    """

    theta: str = "rope_theta"
    default_theta: float = 10000.0
    partial: str = "partial_rotary_factor"
    default_partial: float = 1.0


class Ropes(NamedTuple):
    """The rotary embeddings of a config.json.

    Attributes:
        rope: that of global layers.
        local_rope: that of local layers; None if it is the same.
        rotary_dim: rotated dimensions of each head.
    """

    rope: RopeConfig
    local_rope: RopeConfig | None
    rotary_dim: int


def read_ropes(file: ConfigFile, max_position_embeddings: int, head_dim: int, keys: RopeKeys) -> Ropes:
    """The rotary embeddings of a config.json, in any style of transformers.

    The kind and its settings are in `rope_scaling`, beside the base; or all are within `rope_parameters`; or that holds
    one such object for `full_attention` and one for `sliding_attention`.

    Args:
        file: the config.
        max_position_embeddings: of the same file.
        head_dim: H.
        keys: how the family calls the settings.

    Raises:
        CheckpointError: an unknown kind, or a key that is missing, unknown or contradicts another.
    """
    name, values = _scaling(file)
    objects = {"": values}
    if any(kind in values for kind in _LAYER_TYPES):
        for kind in _LAYER_TYPES:
            if not isinstance(values.get(kind), dict):
                raise file.error(f"{name}.{kind}", f"must be an object, got {values.get(kind)!r}")
        if surplus := sorted(set(values) - set(_LAYER_TYPES)):
            raise file.error(f"{name}.{surplus[0]}", "stands beside settings for each type of layer; put it into them")
        objects = {f".{kind}": values[kind] for kind in _LAYER_TYPES}
    read = [
        _read_one(file, ConfigFile(file.path, v, prefix=f"{name}{suffix}."), max_position_embeddings, head_dim, keys)
        for suffix, v in objects.items()
    ]
    (rope, rotary_dim), (local_rope, local_rotary_dim) = read[0], read[-1]
    if local_rotary_dim != rotary_dim:
        raise file.error(name, "rotates another part of each head in sliding layers; only equal parts are implemented")
    return Ropes(rope, None if local_rope == rope else local_rope, rotary_dim)


def _read_one(
    file: ConfigFile, scaling: ConfigFile, max_position_embeddings: int, head_dim: int, keys: RopeKeys
) -> tuple[RopeConfig, int]:
    kind = _kind(scaling)
    theta = _within_or_beside(file, scaling, "rope_theta", keys.theta, keys.default_theta)
    partial = _within_or_beside(file, scaling, "partial_rotary_factor", keys.partial, keys.default_partial)
    # Compared before it is rounded: what is too large may not fit an integer.
    rotary_dim = int(head_dim * partial) if partial <= 1.0 else head_dim + 1
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise file.error(
            keys.partial, f"makes {rotary_dim} of {head_dim} dimensions rotate; that must be an even number"
        )
    original = _original_length(scaling, kind, file.get("original_max_position_embeddings"), max_position_embeddings)
    config = RopeConfig(
        kind=kind,  # type: ignore[arg-type]  # checked to be one of the keys above
        theta=theta,
        factor=_factor(scaling, kind, original, max_position_embeddings),
        original_max_position_embeddings=original,
        **_of_kind(scaling, kind, rotary_dim),
    )
    _check(scaling, config, theta, rotary_dim)
    scaling.refuse_unknown(frozenset({"type", "rope_type"}))
    return config, rotary_dim


def _within_or_beside(file: ConfigFile, scaling: ConfigFile, key: str, family_key: str, default: float) -> float:
    """A number that stands within the object of settings, or beside it under the family's name or the common one.

    Some versions of transformers wrote it more than once. All must agree.
    """
    names = [name for name in dict.fromkeys((family_key, key)) if file.get(name) is not None]
    values = [file.number(name) for name in names]
    if len(set(values)) > 1:
        raise file.error(key, f"is {values[1]}, but {family_key} is {values[0]}")
    if scaling.get(key) is None:
        return values[0] if values else default
    inner = scaling.number(key)
    if values and inner != values[0]:
        raise scaling.error(key, f"is {inner}, but {names[0]} is {values[0]}")
    return inner


def _factor(scaling: ConfigFile, kind: str, original: int | None, max_position_embeddings: int) -> float:
    if kind == "default":
        return 1.0
    if kind == "longrope" and original is not None:
        return scaling.number("factor", max(1.0, max_position_embeddings / original))
    return scaling.number("factor")


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
    if kind == "su":  # what longrope was called at first
        kind = "longrope"
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
    # A kind that tells short from long contexts has no use for a length that is not the original one.
    default = None if kind == "longrope" and top_level is None else max_position_embeddings
    if kind == "longrope" and isinstance(top_level, int):
        default = top_level
    inner = scaling.integer("original_max_position_embeddings", default)
    if top_level is None:
        return inner
    if top_level != inner and "original_max_position_embeddings" in scaling.values:
        raise scaling.error("original_max_position_embeddings", f"is {inner}, but outside of it is {top_level!r}")
    if isinstance(top_level, bool) or not isinstance(top_level, int) or top_level < 1:
        raise scaling.error("original_max_position_embeddings", f"must be a positive integer, got {top_level!r}")
    return top_level


def _of_kind(scaling: ConfigFile, kind: str, rotary_dim: int) -> dict[str, Any]:
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
    if kind == "longrope":
        return {
            "attention_factor": scaling.optional_number("attention_factor"),
            "short_factors": _factors(scaling, "short_factor", rotary_dim),
            "long_factors": _factors(scaling, "long_factor", rotary_dim),
        }
    return {}


def _factors(scaling: ConfigFile, key: str, rotary_dim: int) -> tuple[float, ...]:
    values = scaling.get(key)
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and v > 0 for v in values)
    if not numbers or len(values) != rotary_dim // 2:
        raise scaling.error(key, f"must be a list of {rotary_dim // 2} numbers above 0, got {values!r}")
    return tuple(float(v) for v in values)


def _check(scaling: ConfigFile, config: RopeConfig, theta: float, rotary_dim: int) -> None:
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
    if config.kind == "dynamic" and rotary_dim <= 2:
        raise scaling.error("rope_type", f"dynamic needs more than 2 rotated dimensions, got {rotary_dim}")
