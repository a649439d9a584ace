"""What can be plugged in, by name: families of networks and of entropy models, ours and those of other packages.

Another package adds an entry by calling `register`, or without being imported first by an entry point in its
pyproject.toml, of the registry's group:

    [project.entry-points."l2c.transforms"]
    wavelet = "my_package.wavelet:FAMILY"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from l2c.errors import ConfigError
from l2c.settings import from_mapping

_Entry = TypeVar("_Entry")


class Registry(Generic[_Entry]):
    """Entries by name.

    Args:
        kind: what an entry is, for messages. group: of the entry points that add to it.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, _Entry] = {}

    def register(self, name: str, entry: _Entry) -> None:
        """Add an entry. Raises ConfigError: the name is taken by another one, or is not the entry's own."""
        own = getattr(getattr(entry, "config", None), "family", name)
        if own != name:
            raise ConfigError(f"{self.kind} {name!r}: its configurations say that the family is {own!r}")
        if self._entries.setdefault(name, entry) is not entry:
            raise ConfigError(f"there is another {self.kind} called {name!r}")

    def unregister(self, name: str) -> None:
        """Forget an entry. Raises ConfigError where there is none."""
        if self._entries.pop(name, None) is None:
            raise ConfigError(f"no {self.kind} is registered as {name!r}")

    def __getitem__(self, name: str) -> _Entry:
        """The entry of a name. Raises ConfigError where there is none, or where its package does not load."""
        if name not in self._entries:
            for point in entry_points(group=self.group, name=name):
                try:
                    self.register(name, point.load())
                except (ImportError, AttributeError) as error:
                    raise ConfigError(f"the {self.kind} {name!r} ({point.value}) does not load: {error}") from error
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is called {name!r}; there are {', '.join(self)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """All names in order."""
        return iter(sorted({*self._entries, *(point.name for point in entry_points(group=self.group))}))


def of_family(families: Registry[Any], data: Any, where: str) -> Any:
    """The configuration, filled, of the family that the table `data` names under "family".

    The family's `config` is a dataclass; its `former` are keys that are left out where they have one of these values.

    Raises:
        ConfigError: no such family, or as `settings.from_mapping` does.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of settings, got {type(data).__name__}")
    if not isinstance(data.get("family"), str):
        raise ConfigError(f"{where}.family must be one of {', '.join(families)}")
    try:
        config = families[data["family"]].config
    except ConfigError as error:
        raise ConfigError(f"{where}.family: {error}") from None
    former = {key for key, allowed in config.former.items() if data.get(key) in allowed}
    return from_mapping(config, {k: v for k, v in data.items() if k != "family" and k not in former}, where)
