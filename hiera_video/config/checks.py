"""Checks of single values, for the sections of a config. All raise UserError."""

from hiera_video.system.errors import UserError

PRECISIONS = ("float32", "bfloat16")
KEEP_UNITS_BY = ("random", "motion")


def require_one_of(key: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r} must be one of {', '.join(map(str, allowed))}")


def require_positive(section: str, config: object, names: str) -> None:
    """names: fields of `config`, separated by blanks. None means that a default is used."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{section}.{name}={value} must be > 0")


def require_share(section: str, config: object, names: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        if not 0 < value <= 1:
            raise UserError(f"{section}.{name}={value} must be above 0 and at most 1")


def require_not_negative(section: str, config: object, names: str) -> None:
    for name in names.split():
        if getattr(config, name) < 0:
            raise UserError(f"{section}.{name}={getattr(config, name)} must be >= 0")


def require_coverage(key: str, value: float) -> None:
    """Raises UserError."""
    if not 0 <= value <= 1:
        raise UserError(f"{key}={value} must be from 0 to 1")
