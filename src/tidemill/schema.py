"""Names and kinds of columns: what a batch holds, and what a stage adds to it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidemill.errors import PlanError

__all__ = ["KINDS", "NAMING", "Asked", "Field", "Kind", "Schema"]


class Kind(enum.Enum):
    """What a column holds. A column has one kind for the whole run."""

    FLOAT = "float"
    """float64; a missing value reads as NaN. Every number is a float unless declared."""
    INT = "int"
    """int64, by declaration (``columns={"n": int}``)."""
    BOOL = "bool"
    TEXT = "text"
    TIME = "time"
    """int64 nanoseconds since 1970-01-01 UTC; reads as datetime64[ns]."""
    OBJECT = "object"
    """Anything else: nested lists and dicts, any Python value."""

    __hash__ = object.__hash__  # of the name it would be Python code, in every look-up of a column's type

    @classmethod
    def of(cls, declared: object) -> Kind:
        """The kind that a user's declaration means.

        >>> Kind.of(float), Kind.of("int"), Kind.of(str)
        (<Kind.FLOAT: 'float'>, <Kind.INT: 'int'>, <Kind.TEXT: 'text'>)
        """
        if isinstance(declared, cls):
            return declared
        by_type = {float: cls.FLOAT, int: cls.INT, bool: cls.BOOL, str: cls.TEXT, object: cls.OBJECT}
        if isinstance(declared, type) and declared in by_type:
            return by_type[declared]
        if isinstance(declared, str) and declared in {kind.value for kind in cls}:
            return cls(declared)
        raise PlanError(
            f"{declared!r} is not a kind of column; write float, int, bool, str, object, "
            f"or one of {', '.join(repr(kind.value) for kind in cls)}."
        )


KINDS: Final = {kind.value: kind for kind in Kind}
"""By what they are called: a look-up takes a tenth of the time of ``Kind(name)``."""
NAMING: Final = (Kind.TEXT, Kind.FLOAT, Kind.INT, Kind.BOOL)
"""The kinds of columns that can name a sensor or a device."""


@dataclass(frozen=True)
class Field:
    """One column's name and kind; ``kind`` is None while nothing but nulls has been seen."""

    name: str
    kind: Kind | None
    came: bool = field(default=False, compare=False)
    """It comes from a source, where its kind can be declared."""

    def __str__(self) -> str:
        return f"{self.name}: {self.kind.value if self.kind else 'unknown'}"


@dataclass(frozen=True)
class Asked:
    """What is asked of a column that nobody has seen yet: to be of one of these kinds, and why.

    >>> print(Asked((Kind.FLOAT, Kind.INT), "as Lag('value') needs it"))
    float or int, as Lag('value') needs it
    """

    kinds: tuple[Kind, ...]
    why: str

    def __str__(self) -> str:
        return f"{' or '.join(kind.value for kind in self.kinds)}, {self.why}"


class Schema:
    """An ordered, immutable list of fields.

    ``open`` says that more columns may come which only the first batch will show: what a source
    that was not peeked at brings, or what an undeclared function adds.

    >>> schema = Schema([Field("sensor", Kind.TEXT), Field("value", Kind.FLOAT)])
    >>> print(schema.adding([Field("normalized", Kind.FLOAT)]))
    sensor: text, value: float, normalized: float
    """

    __slots__ = ("_fields", "asked", "key", "open")

    def __init__(
        self,
        fields: Iterable[Field] = (),
        *,
        open: bool = False,  # noqa: A002 - the field's word
        key: str = "sensor",
        asked: dict[str, Asked] | None = None,
    ) -> None:
        self._fields = {field.name: field for field in fields}
        self.open = open
        self.asked = asked
        """Where it is noted what is required of columns that are not there yet, up to the first stage that may make any."""
        self.key = key
        """The field that names the sensor, or would."""

    @classmethod
    def of(cls, declared: Mapping[str, object]) -> Schema:
        """A schema from a user's mapping of names to kinds (``{"n": int}``)."""
        return cls(Field(name, Kind.of(kind)) for name, kind in declared.items())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and list(self) == list(other) and self.open == other.open

    def __hash__(self) -> int:
        return hash((tuple(self), self.open))

    def __str__(self) -> str:
        shown = ", ".join(map(str, self))
        return f"{shown}, ..." if self.open else shown

    def __repr__(self) -> str:
        return f"Schema({self})"

    def adding(self, fields: Iterable[Field]) -> Schema:
        """This schema with ``fields`` after it; an existing name keeps its place and takes the new kind."""
        merged = dict(self._fields)
        merged.update({field.name: field for field in fields})
        return Schema(merged.values(), open=self.open, key=self.key, asked=self.asked)

    def adding_new(self, fields: Iterable[Field], *, stage: str) -> Schema:
        """The same, for fields that replace none; raises `PlanError` when one would."""
        new = list(fields)
        twice = next((field.name for field in new if field.name in self), None)
        if twice is not None:
            raise PlanError(
                f"{stage} would replace the column {twice!r}, which is there already; give it names= of its own."
            )
        return self.adding(new)

    def opened(self) -> Schema:
        """The same fields, with more to come."""
        return Schema(self, open=True, key=self.key)

    def require(self, name: str, *, stage: str, kinds: Iterable[Kind] = ()) -> None:
        """Raise `PlanError` when ``name`` cannot be there, or is of a kind that ``stage`` cannot use."""
        field, allowed = self._fields.get(name), tuple(kinds)
        if field is None:
            if not self.open:
                raise PlanError(
                    f"{stage} needs a column {name!r}; the columns there are: {', '.join(self.names) or 'none'}."
                )
            if self.asked is not None and allowed:
                self.asked.setdefault(name, Asked(allowed, f"as {stage} needs it"))
            return
        if allowed and field.kind is not None and field.kind not in allowed:
            wanted = " or ".join(kind.value for kind in allowed)
            remedy = (
                f" With columns={{{name!r}: float}} of the source, a record that has no number there is a dead letter; "
                f"tm.MapRows(function, adds={{{name!r}: float}}) before it makes numbers of texts."
                if field.came and Kind.FLOAT in allowed and field.kind in (Kind.TEXT, Kind.OBJECT)
                else ""
            )
            raise PlanError(f"{stage} needs column {name!r} to be {wanted}; it is {field.kind.value}.{remedy}")
