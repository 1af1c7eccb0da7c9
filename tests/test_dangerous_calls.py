"""The gate of `make check`: nothing from outside is unpickled, evaluated or given to a shell, and no TLS goes unchecked.

It reads the code and runs none of it. What is dangerous and there is listed with the reason for which nothing from outside
reaches it; the list holds for one function each, so that the next one in the same file is found too.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tidemill"

DANGEROUS = {
    "builtins": {"eval", "exec", "compile", "__import__"},
    "pickle": {"load", "loads", "Unpickler", "_Unpickler"},
    "_pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads", "Unpickler"},
    "marshal": {"load", "loads"},
    "dill": {"*"},
    "joblib": {"*"},
    "shelve": {"*"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load"},
    "numpy": {"load"},
    "pandas": {"read_pickle", "eval"},
    "numexpr": {"*"},
    "torch": {"load"},
    "code": {"*"},
    "runpy": {"*"},
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell"},
    "multiprocessing.connection": {"*"},  # which unpickles what it receives
    "multiprocessing.managers": {"*"},
    "xml": {"*"},  # whose entities grow without bound
    "tarfile": {"*"},  # whose members name places of their own
    "zipfile": {"*"},
    "tempfile": {"mktemp"},
    "ssl": {"_create_unverified_context", "CERT_NONE"},
}
"""What runs or makes what its input says, or trusts whom it should not; ``*`` is the whole module."""
METHODS = {"eval", "exec"}
"""Methods of anything, such as of a data frame."""
OPTIONS = {"shell": False, "allow_pickle": False, "weights_only": True, "check_hostname": True}
"""Arguments and attributes with the only value that may be written."""

ALLOWED = {
    # The user's own code, which the user has asked to run.
    "app.load:_execute": {"builtins.compile", "builtins.exec"},
    # Text of our own making, of nothing but a number.
    "rows:_writer": {"builtins.eval"},
    # What this process has pickled itself, a moment ago.
    "engine.lent:called": {"cloudpickle.loads"},
    "formats.unfit:check_sendable": {"pickle.loads"},
    "engine.rehearsal:_opened": {"pickle.loads"},
    "lanes.call_codec:_dumped": {"pickle.loads"},
    "testing.laws:is_picklable": {"pickle.loads"},
    "testing.laws:state_is_restored": {"pickle.loads"},
    # From the process that made this one or that this one made, over sockets and memory that nobody else has.
    "app.trying:_try_stage": {"pickle.loads"},
    "app.trying:_Remaking": {"pickle.Unpickler"},
    "formats.packed:_exact": {"pickle.loads"},
    "formats.packed:decoded_texts": {"pickle.loads"},
    "formats.unread:": {"pickle._Unpickler"},
    "formats.unread:loads_items": {"pickle.loads"},
    "lanes.call_codec:loads_error": {"pickle.loads"},
    "lanes.forkserver:_preload": {"pickle.loads"},
    "lanes.keyed_objects:_Unpickler": {"pickle.Unpickler"},
    "lanes.parcels:unpack": {"pickle.loads"},
    "lanes.sink_main:_handle": {"pickle.loads"},
    "lanes.worker:_load": {"pickle.loads"},
    "lanes.worker:_change": {"pickle.loads"},
    "lanes.worker:_open": {"pickle.loads"},
    # The same, or out of a checkpoint: in a folder that is refused when others may write to it.
    "stages.object_states:_loaded": {"pickle.loads"},
    "stages.object_states:_of_attributes": {"pickle.loads"},
}

MODULES = sorted(SOURCE.rglob("*.py"))


class Reading(ast.NodeVisitor):
    """What is dangerous in one file: its line, the function that it is in, and what it is."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str, str]] = []
        self._names: dict[str, str] = {}
        self._inside = [""]

    def _note(self, node: ast.AST, what: str) -> None:
        self.found.append((getattr(node, "lineno", 0), self._inside[-1], what))

    # -- what names mean -----------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._names[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            self._imported(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            return
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            self._names[alias.asname or alias.name] = full
            self._imported(node, node.module or "")
            self._imported(node, full)
            self._known(node, full, star=alias.name == "*")

    def _imported(self, node: ast.AST, module: str) -> None:
        parents = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
        if any("*" in DANGEROUS.get(name, ()) for name in parents):
            self._note(node, f"{module}.*")

    def _known(self, node: ast.AST, full: str, *, star: bool = False) -> None:
        module, _, name = full.rpartition(".")
        dangerous = DANGEROUS.get(module, set())
        if name in dangerous or (star and dangerous):
            self._note(node, full)

    def _full(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._names.get(node.id, f"builtins.{node.id}")
        if isinstance(node, ast.Attribute):
            return f"{self._full(node.value)}.{node.attr}"
        return "?"

    # -- what is done --------------------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        self._known(node, self._full(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._full(node)
        self._known(node, full.removeprefix("builtins.") if full.count(".") > 1 else full)
        if node.attr in METHODS:
            self._note(node, f"?.{node.attr}")
        self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg in OPTIONS:
            self._set(node.arg, node.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in OPTIONS:
                self._set(target.attr, node.value)
        self.generic_visit(node)

    def _set(self, option: str, value: ast.expr) -> None:
        if not (isinstance(value, ast.Constant) and value.value is OPTIONS[option]):
            self._note(value, f"{option}=")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _function


def read(text: str) -> list[tuple[int, str, str]]:
    reading = Reading()
    reading.visit(ast.parse(text))
    return reading.found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


@cache
def found_in(path: Path) -> list[tuple[str, str, int]]:
    return [(f"{name_of(path)}:{function}", what, line) for line, function, what in read(path.read_text())]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_dangerous_is_done_but_what_is_listed(path: Path) -> None:
    """With the line of what is new: find another way, or say above why nothing from outside reaches it."""
    new = [(place, what, f"line {line}") for place, what, line in found_in(path) if what not in ALLOWED.get(place, ())]
    assert new == []


def test_what_is_listed_is_there() -> None:
    """A reason outlives no code."""
    there: dict[str, set[str]] = {}
    for path in MODULES:
        for place, what, _ in found_in(path):
            there.setdefault(place, set()).add(what)
    assert there == ALLOWED


PLANTED = """
import pickle; pickle.loads(data)
import pickle as p; p.load(file)
from pickle import loads; loads(data)
from pickle import loads as read; list(map(read, parts))
from pickle import *
import pickle; class Mine(pickle.Unpickler): pass
import cloudpickle; def f(): return cloudpickle.loads
import marshal; marshal.loads(data)
import _pickle; _pickle.loads(data)
import joblib
from shelve import open
import yaml; yaml.load(text, Loader=None)
import numpy as np; np.load(path)
import numpy as np; np.lib.format.read_array(file, allow_pickle=True)
import pandas as pd; pd.read_pickle(path)
import pandas as pd; frame.eval(text)
eval(text)
exec(text)
run = exec
compile(text, "", "exec")
__import__(name)
import builtins; builtins.eval(text)
import os; os.system(text)
from os import popen
import subprocess; subprocess.run(text, shell=True)
import subprocess; subprocess.run(text, shell=wanted)
import asyncio; asyncio.create_subprocess_shell(text)
import multiprocessing.connection
from multiprocessing.connection import Client
from multiprocessing import connection
import xml.etree.ElementTree as trees
from tarfile import open
import ssl; ssl._create_unverified_context()
import ssl; context.verify_mode = ssl.CERT_NONE
context.check_hostname = False
"""
HARMLESS = """
import pickle; pickle.dumps(value)
import ast; ast.literal_eval(text)
import numpy as np; np.loadtxt(path)
import re; re.compile(text)
import subprocess; subprocess.run(words, shell=False)
import json; json.loads(text)
import yaml; yaml.safe_load(text)
from tidemill.secret import code
evaluate = {"eval": 1}
context.check_hostname = True
"""


def statements(lines: str) -> list[str]:
    return [line.replace("; ", "\n") for line in lines.strip().splitlines()]


@pytest.mark.parametrize("text", statements(PLANTED))
def test_what_is_planted_is_found(text: str) -> None:
    """By whatever name it goes."""
    assert read(text) != []


@pytest.mark.parametrize("text", statements(HARMLESS))
def test_what_is_harmless_is_not(text: str) -> None:
    """Else the list would be of no use."""
    assert read(text) == []


def test_the_next_one_in_a_file_is_found(tmp_path: Path) -> None:
    """A reason holds for its function alone."""
    text = (SOURCE / "rows.py").read_text() + "\n\ndef another(text):\n    return eval(text)\n"
    found = {(f"rows:{function}", what) for _, function, what in read(text)}
    assert found - {(place, what) for place, whats in ALLOWED.items() for what in whats} == {
        ("rows:another", "builtins.eval")
    }
