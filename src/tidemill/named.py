"""How sources and sinks are called, in messages, logs and reports."""

from __future__ import annotations

__all__ = ["Named"]


class Named:
    """Has the name that it was given, or that of its kind."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._suffix = ""

    @property
    def name(self) -> str:
        return self._name or f"{self.kind}{self._suffix}"

    @property
    def kind(self) -> str:
        """The name of one that was given none."""
        return type(self).__name__.lower()

    @property
    def named(self) -> bool:
        """Whether the name was given; else it is that of its kind."""
        return self._name is not None

    def number(self, number: int) -> None:
        """The second of its kind in a pipeline is ``lines_2``, if it was given no name."""
        self._suffix = f"_{number}" if number > 1 else ""
