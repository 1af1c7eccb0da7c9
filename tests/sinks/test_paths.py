"""Which sink a path means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill import sinks
from tidemill.errors import PlanError


@pytest.mark.parametrize(
    ("path", "cls"),
    [
        ("features.db", sinks.SQLite),
        ("FEATURES.SQLITE", sinks.SQLite),
        ("a.b.sqlite3", sinks.SQLite),
        ("march.parquet", sinks.Parquet),
        ("march/", sinks.Parquet),
        (Path("out.ndjson"), sinks.Lines),
        ("out.jsonl.gz", sinks.Lines),
        ("out.csv", sinks.Lines),
        ("out.csv.gz", sinks.Lines),
        ("-", sinks.Lines),
    ],
)
def test_the_suffix_says_the_sink(path: str | Path, cls: type[sinks.ProcessSink]) -> None:
    """Options are handed on."""
    sink = sinks.for_path(path, if_exists="replace", columns=["a"])
    assert type(sink) is cls
    assert (sink.if_exists, sink.columns) == ("replace", ("a",))


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    """It needs no slash at its end."""
    assert type(sinks.for_path(tmp_path)) is sinks.Parquet


@pytest.mark.parametrize("path", ["features", "features.txt", "march.parquet.gz", "features.db.gz"])
def test_another_suffix_is_refused_with_those_known(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"\.db.*\.parquet.*\.ndjson, \.jsonl, \.csv"):
        sinks.for_path(path)


def test_all_names_are_there() -> None:
    """Each public name loads, and dir() shows it."""
    assert set(sinks.__all__) <= set(dir(sinks))
    for name in sinks.__all__:
        assert getattr(sinks, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Excel'"):
        sinks.Excel  # noqa: B018
