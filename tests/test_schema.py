"""`Schema`, `Field` and `Kind`: what is there, and what a stage may ask for."""

import pytest

from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema

PLANT = Schema([Field("sensor", Kind.TEXT), Field("value", Kind.FLOAT), Field("note", None)])


@pytest.mark.parametrize(
    ("declared", "kind"),
    [(float, Kind.FLOAT), (int, Kind.INT), (bool, Kind.BOOL), (str, Kind.TEXT), (object, Kind.OBJECT)]
    + [(kind.value, kind) for kind in Kind]
    + [(kind, kind) for kind in Kind],
)
def test_kinds_are_declared_by_type_or_name(declared, kind):
    """A user writes a Python type or a kind's name."""
    assert Kind.of(declared) is kind


@pytest.mark.parametrize("declared", [list, "double", None, 5, [], complex])
def test_other_declarations_are_refused(declared):
    """The error shows what was written and what may be."""
    with pytest.raises(PlanError, match="is not a kind of column; write float, int"):
        Kind.of(declared)


def test_adding_keeps_places():
    """A new field goes last; one that exists keeps its place and takes the new kind; the schema itself stays."""
    made = PLANT.adding([Field("value", Kind.INT), Field("feature", Kind.FLOAT)])
    assert str(made) == "sensor: text, value: int, note: unknown, feature: float"
    assert len(PLANT) == 3


def test_equality_and_order():
    """Schemas are equal when fields, their order and openness are."""
    same = Schema.of({"sensor": str, "value": float}).adding([Field("note", None)])
    assert same == PLANT
    assert hash(same) == hash(PLANT)
    assert Schema(reversed(list(PLANT))) != PLANT
    assert PLANT.opened() != PLANT
    assert str(PLANT.opened()).endswith(", ...")


def test_require():
    """What is missing or of the wrong kind is refused by name; an open schema and an unknown kind get the benefit."""
    PLANT.require("value", stage="Rolling", kinds=[Kind.FLOAT])
    PLANT.require("note", stage="Rolling", kinds=[Kind.FLOAT])
    PLANT.opened().require("later", stage="Rolling")
    with pytest.raises(
        PlanError, match=r"Rolling needs a column 'vlaue'; the columns there are: sensor, value, note\."
    ):
        PLANT.require("vlaue", stage="Rolling")
    with pytest.raises(PlanError, match=r"Rolling needs column 'sensor' to be float or int; it is text\."):
        PLANT.require("sensor", stage="Rolling", kinds=[Kind.FLOAT, Kind.INT])
    with pytest.raises(PlanError, match="there are: none"):
        Schema().require("value", stage="Rolling")
