"""Finding the pipeline in a file: ``plant.py`` or ``plant.py:NAME``."""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from tidemill.annotations import signature_of
from tidemill.core.plan import Plan
from tidemill.engine.loading import LoadedFar, loading
from tidemill.engine.pipeline import Pipeline
from tidemill.errors import InputError, PlanError, TidemillError

__all__ = ["Found", "find", "load"]

DEFAULT_NAME = "pipeline"


@dataclass(frozen=True)
class Found:
    """What a file offered: a whole pipeline, or only the plan of one, whose edges the command line gives."""

    pipeline: Pipeline | None
    plan: Plan | None
    name: str
    """The variable's name; for a pipeline without one, the file's."""
    path: Path


def load(target: str) -> Found:
    """The pipeline that ``target`` names.

    The file is executed once, up to its own ``tm.run`` or ``tm.serve`` where it has one. Its folder goes to the front
    of ``sys.path``, so that it may import its neighbours. Its functions travel to lanes by value: no lane imports it.

    Raises `InputError` when there is no such file, and `PlanError` when the file cannot be executed (the message ends
    with the line that failed), holds no pipeline, or several and none is called ``pipeline``.
    """
    path, name = split(target)
    namespace, ran = _execute(path)
    return find(namespace, name, path, ran=ran)


def split(target: str) -> tuple[Path, str | None]:
    """File and name of ``FILE.py[:NAME]``.

    >>> split("plant.py:night"), split("C:/plant.py")
    ((PosixPath('plant.py'), 'night'), (PosixPath('C:/plant.py'), None))
    """
    head, colon, tail = target.rpartition(":")
    if colon and tail.isidentifier() and not Path(target).exists():
        return Path(head), tail
    return Path(target), None


def find(namespace: Mapping[str, object], name: str | None, path: Path, *, ran: object = None) -> Found:
    """The pipeline in an executed file's namespace.

    By ``name``; else the only `Pipeline`; else the one called ``pipeline``; else the one that the file itself wanted
    to run (``ran``); else, the same way, a `Plan`.
    """
    if name is not None:
        return _named(namespace, name, path)
    pipelines = _unique(namespace, Pipeline)
    if len(pipelines) == 1:
        return Found(*_only(pipelines), path)
    if DEFAULT_NAME in pipelines:
        return Found(pipelines[DEFAULT_NAME], None, DEFAULT_NAME, path)
    if isinstance(ran, Pipeline):
        return Found(ran, None, ran.name or path.stem, path)
    if pipelines:
        raise PlanError(
            f"{path} holds {len(pipelines)} pipelines: {', '.join(sorted(pipelines))}. "
            f"Say which one: {path}:{min(pipelines)}"
        )
    plans = _unique(namespace, Plan)
    if len(plans) == 1:
        return Found(*_only(plans), path)
    if "plan" in plans:
        return Found(None, plans["plan"], "plan", path)
    if plans:
        raise PlanError(
            f"{path} holds no pipeline, but {len(plans)} plans: {', '.join(sorted(plans))}. "
            f"Say which one: {path}:{min(plans)}"
        )
    raise PlanError(_nothing(namespace, path, ran_early=ran is not None))


def _named(namespace: Mapping[str, object], name: str, path: Path) -> Found:
    value = namespace.get(name)
    if isinstance(value, Pipeline):
        return Found(value, None, name, path)
    if isinstance(value, Plan):
        return Found(None, value, name, path)
    there = sorted({**_unique(namespace, Pipeline), **_unique(namespace, Plan)})
    listed = f"it holds {', '.join(there)}" if there else "it holds no pipeline and no plan"
    if name in namespace:
        raise PlanError(
            f"{name} in {path} is of type {type(value).__name__}, not a tidemill Pipeline or Plan; {listed}."
        )
    raise PlanError(f"{path} has no {name}; {listed}.")


def _unique(namespace: Mapping[str, object], kind: type) -> dict[str, Any]:
    """Names of ``kind``, each object once: two names of one pipeline are no choice to ask about."""
    found: dict[str, Any] = {}
    for name in sorted(namespace, key=lambda name: (name not in (DEFAULT_NAME, "plan"), name.startswith("_"), name)):
        value = namespace[name]
        if isinstance(value, kind) and not any(value is seen for seen in found.values()):
            found[name] = value
    return found


def _only(found: Mapping[str, Any]) -> tuple[Pipeline | None, Plan | None, str]:
    ((name, value),) = found.items()
    return (value, None, name) if isinstance(value, Pipeline) else (None, value, name)


def _nothing(namespace: Mapping[str, object], path: Path, *, ran_early: bool) -> str:
    own = sorted(name for name in namespace if not name.startswith("_"))
    listed = f"The names in it: {', '.join(own[:20])}{', ...' if len(own) > 20 else ''}." if own else "It has no names."
    early = " It was read as far as its own tm.run or tm.serve." if ran_early else ""
    return (
        f"{path} holds no pipeline.{early} {listed} Write at the top level of the file: "
        f"{DEFAULT_NAME} = tm.Pipeline(source, plan, sink)"
    )


# -- executing ---------------------------------------------------------------------------------------------


def _execute(path: Path) -> tuple[dict[str, object], object]:
    """The file's namespace, and what it wanted to run itself (None when nothing)."""
    full = path.absolute()
    if not full.is_file():
        kind = "is a folder, not a Python file" if full.is_dir() else "does not exist"
        raise InputError(f"The pipeline file {full} {kind}.")
    module = types.ModuleType(_module_name(path))
    module.__file__ = str(full)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(full.parent))
    cloudpickle.register_pickle_by_value(module)
    ran: object = None
    try:
        code = compile(full.read_bytes(), str(full), "exec", dont_inherit=True)
        with loading():
            exec(code, module.__dict__)  # noqa: S102 - this is what running a user's file means
    except LoadedFar as far:
        ran = far.pipeline if far.pipeline is not None else far
    except TidemillError:
        raise
    except SystemExit as error:
        raise PlanError(f"{full} ended itself with exit code {error.code!r} while it was read.") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PlanError(_failed(full, error)) from error
    return module.__dict__, ran


def _module_name(path: Path) -> str:
    """A name that takes no other module's place: ``json.py`` is a fine name for a pipeline file."""
    stem = path.stem
    taken = stem in sys.modules or stem in sys.stdlib_module_names or stem == "tidemill"
    return f"pipeline_{stem}" if taken else stem


def _failed(path: Path, error: BaseException) -> str:
    """One paragraph: the error, and the last line of the user's own file on the way to it."""
    if path.suffix not in (".py", "") and isinstance(error, SyntaxError | NameError):
        return (
            f"{path} is no Python file, which a pipeline is in; a recording is for --input, or for this, which writes a pipeline: "
            f"tidemill new plan.py --from {path}"
        )
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}" if error.lineno else ""
        return f"{error.filename or path}{where}: {error.msg}"
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f", line {line}" if line else ""
    return f"{path}{where} could not be read: {type(error).__name__}: {_with_the_option_meant(error)}"


def _with_the_option_meant(error: BaseException) -> str:
    """The error's words; of an option that something of ours does not have, also what was meant by it: some versions of Python
    name the wrong one alone."""
    wrong = r"((\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)').*"
    said = re.fullmatch(wrong, str(error)) if isinstance(error, TypeError) else None
    if said is None:
        return str(error)
    places = [sys.modules.get(name) for name in ("tidemill", "tidemill.sources", "tidemill.sinks")]
    called = next(filter(None, (getattr(place, said[2], None) for place in places)), None)
    if called is None:
        return str(error)
    options = [option for option in signature_of(called).parameters if option != "self"]
    close = difflib.get_close_matches(said[3], options, 1)
    return f"{said[1]}. Did you mean {close[0]}=?" if close else f"{said[1]}. Its options are {', '.join(options)}"
