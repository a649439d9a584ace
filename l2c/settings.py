"""Settings: frozen dataclasses filled from tables of JSON or TOML.

Unknown and missing keys are refused, so a misspelt entry can never be silently ignored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from l2c.errors import ConfigError


def from_mapping(cls: Any, data: Any, where: str) -> Any:
    """Fill the dataclass `cls` from the mapping `data`, refusing unknown and missing keys and wrong types.

    A field that is a dataclass with a class method `from_mapping(data, where)` of its own is filled by that.

    Raises:
        ConfigError: names `where` and the key.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a table of settings, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in data:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where}: missing key {name!r}")
            continue
        values[name] = _convert(hints[name], data[name], f"{where}.{name}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one entry against its type hint; whole numbers are accepted where a float is expected."""
    if dataclasses.is_dataclass(hint):
        own = getattr(hint, "from_mapping", None)
        return own(value, where) if own is not None else from_mapping(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, where) for v in value)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in typing.get_args(hint):
            return None
        return _convert(next(t for t in typing.get_args(hint) if t is not types.NoneType), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
