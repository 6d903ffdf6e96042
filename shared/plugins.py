"""Tables that installed packages add to by entry points: families, summaries, readers, strategies.

A package names what it adds in its ``pyproject.toml``::

    [project.entry-points."fedlatent.families"]
    shy = "shy_package:FAMILY"

Entry points are looked up at the first use of a table and imported then, never by the runtime of
devices. What cannot be used breaks nothing: it is said where its name is asked for, and by
``fedlatent doctor``.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Generic, TypeVar

from fedlatent.shared.errors import ConfigError

Value = TypeVar("Value")

#: Groups of entry points, by the word behind ``fedlatent.``.
GROUPS = ("families", "summaries", "readers", "strategies")

_TABLES: dict[str, "PluginTable[object]"] = {}


class PluginTable(MutableMapping[str, Value], Generic[Value]):
    """What we have ourselves, then what plugins add; iteration leaves out what cannot be used."""

    def __init__(
        self,
        group: str,
        own: Mapping[str, Value],
        wrong: Callable[[str, object], str | None],
    ) -> None:
        """Keep our own; plugins are looked up at the first use.

        Args:
            group: one of `GROUPS`.
            own: what needs no plugin; a plugin never takes the place of one.
            wrong: why a value may not stand under its name, as a clause, or None where it may.
        """
        self._group = group
        self._rows: dict[str, Value] = dict(own)
        self._own = frozenset(own)
        self._wrong = wrong
        self._problems: dict[str, str] | None = None
        self._plugged: set[str] = set()
        self._lock = RLock()
        _TABLES[group] = self  # type: ignore[assignment]

    def problems(self) -> dict[str, str]:
        """Why what plugins add cannot be used, a sentence by its name."""
        with self._lock:  # of all threads, the first looks up and the others wait for it
            if self._problems is None:
                self._problems = {}  # before plugins are imported, which look at this table too
                self._problems = self._load()
            return self._problems

    def _load(self) -> dict[str, str]:
        problems: dict[str, str] = {}
        found = sorted(entry_points(group=f"fedlatent.{self._group}"), key=lambda one: one.name)
        names = [one.name for one in found]
        for one in found:
            try:
                value = self._checked(one, names.count(one.name))
            except ConfigError as error:
                problems[one.name] = str(error)
            else:
                self._rows[one.name] = value
                self._plugged.add(one.name)
        return problems

    @property
    def own(self) -> frozenset[str]:
        """The names that need no plugin; a look at those rows imports none."""
        return self._own

    def plugged(self, name: str) -> bool:
        """Whether a plugin has the name, one that cannot be used, too; never of one of ours."""
        return name not in self._own and (name in self.problems() or name in self._plugged)

    def _checked(self, entry: EntryPoint, count: int) -> Value:
        """What an entry point names.

        Raises:
            ConfigError: it cannot be used.
        """
        package = entry.dist.name if entry.dist is not None else entry.module
        where = f"plugin {package!r}, entry point {entry.name!r} of fedlatent.{self._group}"
        if entry.name in self._own:
            raise ConfigError(
                f"{where}: expected a name that fedlatent does not have, got one of its own; "
                "rename it there, or remove the package.",
                field=entry.name,
            )
        if count > 1:
            raise ConfigError(
                f"{where}: expected one package with that name, got {count}; remove all but one.",
                field=entry.name,
            )
        try:
            value = entry.load()
        except (Exception, SystemExit) as error:  # whatever its import does
            raise ConfigError(
                f"{where}: expected an import of {entry.value!r}, got {type(error).__name__}: "
                f"{error}; mend or remove the package.",
                field=entry.name,
            ) from error
        try:
            clause = self._wrong(entry.name, value)
        except Exception as error:  # whatever a look at it does
            clause = f"expected {entry.value!r} to be whole, got {type(error).__name__}: {error}"
        if clause is not None:
            raise ConfigError(f"{where}: {clause}; mend or remove the package.", field=entry.name)
        return value  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> Value:
        """The row of that name.

        Raises:
            KeyError: there is none.
            ConfigError: a plugin's that cannot be used.
        """
        if name not in self._rows and (problem := self.problems().get(name)) is not None:
            raise ConfigError(problem, field=name)
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        """Whether the name is known, also of a plugin that cannot be used."""
        rows = self._rows
        return name in rows or name in self.problems() or name in rows  # which that look-up adds to

    def __setitem__(self, name: str, value: Value) -> None:
        """Add a row in this process."""
        self._rows[name] = value

    def __delitem__(self, name: str) -> None:
        """Take a row out in this process."""
        del self._rows[name]

    def __iter__(self) -> Iterator[str]:
        """The names of all that can be used: ours, then plugins' in the order of their names."""
        self.problems()
        return iter([*self._rows])

    def __len__(self) -> int:
        """How many can be used."""
        self.problems()
        return len(self._rows)


def all_problems() -> list[str]:
    """Why what installed plugins add cannot be used, of all tables that are imported."""
    return [text for table in _TABLES.values() for text in table.problems().values()]


def is_callable(_: str, value: object) -> str | None:
    """What is wrong with a value that cannot be called."""
    return None if callable(value) else f"expected a function, got a {type(value).__name__}"
