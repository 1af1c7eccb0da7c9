"""The house stands: imports point down only, and never sideways between the edges."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tidemill"

FLOORS = {
    **dict.fromkeys(
        (
            "errors",
            "schema",
            "column",
            "orders",
            "batch",
            "kinds",
            "rows",
            "interchange",
            "as_came",
            "letters",
            "named",
            "printable",
            "durations",
            "clock",
            "held",
            "first_of",
            "keep_alive",
            "files",
            "tls",
            "secret",
            "configured",
            "by_value",
            "initialized",
            "version",
            "annotations",
        ),
        0,
    ),
    "stages": 1,
    "formats": 1,
    "core": 2,
    "sources": 3,
    "lanes": 3,
    "sinks": 3,
    "engine": 4,
    "app": 5,
    "testing": 5,
    "__main__": 6,
    "__init__": 6,
}
"""Every part of the house and its floor; a new part must be added here."""

EDGES = {"sources", "lanes", "sinks"}

NO_IO = {"stages", "formats", "core"}
"""Parts that compute only."""

OWN_DOORS = {"tidemill.clock", "tidemill.files", "tidemill.secret"}
"""The house's own doors to time, disk and environment."""

DOORS = {
    "asyncio",
    "multiprocessing",
    "os",
    "pathlib",
    "select",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""Modules that lead outside, or to another time."""

OPENED = {
    "tidemill.formats.brokers": {"tidemill.secret"},  # of a broker's address parts may be kept elsewhere
    "tidemill.stages.onnx_runtime": {"os"},  # a variable that the library reads at its import
    "tidemill.stages.own_values": {"threading"},  # a function's threads may look at the same values first
    "tidemill.stages.tables": {"os"},  # os.PathLike, a type
    "tidemill.stages.statistics.compiled": {
        "os",
        "pathlib",
        "threading",
        "time",
        "tidemill.files",
    },  # machine code is kept on disk, its making timed, and loaded once though two runs begin
}
"""Doors that are open, with the reason."""

HEAVY = {
    "llvmlite",
    "numba",
    "onnxruntime",
    "pandas",
    "polars",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "rich",
    "cyclopts",
}
"""Libraries imported only where they are used: they are optional, or cost start-up time."""

LINUX = re.compile(
    r"memfd|MFD_|F_ADD_SEALS|F_SEAL_|SOCK_SEQPACKET|pidfd|waitid|pipe2|prctl|RUSAGE_THREAD|sched_|register_at_fork|platform"
)
"""How the names begin that not every system has, or that ask which it is."""

LINUX_HERE = {
    "tidemill.lanes.platform",  # all that lanes ask of it
    "tidemill.engine.state_folder",  # which file system a state folder lies on, where the system tells
    "tidemill.sinks.fence",  # a sink's process that outlived its engine; an edge knows no other
}
"""The files that name them, or paths in /proc and /sys."""

MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(module: str) -> str:
    """``tidemill.stages.rolling`` is of part ``stages``; the package itself is ``__init__``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, in functions and under TYPE_CHECKING too."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "tidemill":
                for alias in node.names:
                    yield node.lineno, f"tidemill.{alias.name}"
            else:
                yield node.lineno, module


def top_level_imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and library of each import that runs when the file is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def test_every_part_of_the_house_has_a_floor() -> None:
    """A new file or folder at the top is put on a floor before anything leans on it."""
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No file imports from a floor above its own, nor one edge another, nor the package's front door."""
    part = part_of(name_of(path))
    for line, imported in imports_of(path):
        if imported.split(".")[0] != "tidemill":
            continue
        other = part_of(imported)
        where = f"{name_of(path)}, line {line}: imports {imported}"
        if part == "__init__":
            continue
        assert other in FLOORS, f"{where}: not a part of the house; import names from where they live"
        assert other != "__init__" or FLOORS[part] >= 5, f"{where}: only people come in through the front door"
        if other != "__init__":
            assert FLOORS[other] <= FLOORS[part], f"{where}: that is a floor above"
        assert not ({part, other} <= EDGES and part != other), f"{where}: the edges do not know each other"


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(name_of(path)) in NO_IO], ids=name_of)
def test_what_computes_opens_no_door(path: Path) -> None:
    """Stages, formats and decisions import nothing that leads to files, sockets, processes, the loop or a clock."""
    doors = (DOORS | OWN_DOORS) - OPENED.get(name_of(path), set())
    found = {
        (line, name) for line, name in imports_of(path) if any(f"{name}.".startswith(f"{door}.") for door in doors)
    }
    assert found == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    """No module imports a heavy or optional library at its top."""
    nothing_but_its_use = ("tidemill.app.commands", "tidemill.app.run_options")
    used_here = {"cyclopts"} if name_of(path) in nothing_but_its_use else set()
    assert {(line, name) for line, name in top_level_imports_of(path) if name in HEAVY - used_here} == set()


def is_of_linux(node: ast.AST) -> bool:
    """Whether it is a name, or the beginning of a path, that not every system has."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith(("/proc/", "/sys/"))
    return isinstance(node, ast.Attribute) and bool(LINUX.match(node.attr))


def test_what_lanes_ask_of_linux_is_in_one_file() -> None:
    """So that another system is added in one place."""
    found = {name_of(path) for path in MODULES if any(map(is_of_linux, ast.walk(ast.parse(path.read_text()))))}
    assert found == LINUX_HERE
