"""Functions of scripts, of ``-c`` and standard input, of modules that are gone, of notebooks: all run in lanes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(200)

SOURCE = """
import asyncio
import dataclasses
import enum
import tidemill as tm

FACTOR = 3
MODEL = None

class Kind(enum.Enum):
    GOOD = 1

@dataclasses.dataclass
class Reading:
    value: int
    kind: Kind = Kind.GOOD

    def scaled(self):
        return Reading(self.value * FACTOR)

class NoSensor(Exception):
    pass

def load(model):
    global MODEL
    MODEL = model

def predict():
    return MODEL

def scale(reading):
    if reading.value < 0:
        raise NoSensor(reading.value)
    return reading.scaled()

def made(offset):
    def inner(reading):
        return Reading(reading.value + offset)
    return inner

async def main():
    async with tm.Lanes(2, initializer=load, initargs=("model",)) as lanes:
        read = await lanes.run(scale, Reading(14))
        told = [type(read) is Reading, read.value, read.kind is Kind.GOOD]
        told.append((await lanes.run(made(5), Reading(1))).value)
        told.append((await lanes.run(lambda reading: reading.scaled(), Reading(2))).value)
        told.append((await lanes.run(Reading(7).scaled)).value)
        told.append([one.value for one in await asyncio.gather(*map(lanes.batched(
            lambda readings: [scale(reading) for reading in readings]), [Reading(1), Reading(2)]))])
        told.append([one.value async for one in lanes.stream(scale, map(Reading, range(3)))])
        try:
            await lanes.run(scale, Reading(-1))
        except NoSensor as error:
            told.append(str(error))
        told.append(await lanes.run(predict))
        print(told)
"""
TOLD = "[True, 42, True, 6, 6, 21, [3, 6], [0, 3, 6], '-1', 'model']\n"
RUN = "\nasyncio.run(main())\n"


@pytest.mark.parametrize("way", ["script", "command", "stdin", "module", "package", "zip", "exec"])
def test_code_of_the_main_module(tmp_path: Path, way: str) -> None:
    """However Python was started: without a main guard, with classes, enums, closures, lambdas and errors of its own."""
    script = tmp_path / "program.py"
    script.write_text(SOURCE + RUN)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SOURCE + RUN)
    text, command = None, [str(script)]
    match way:
        case "command":
            command = ["-c", SOURCE + RUN]
        case "stdin":
            text, command = SOURCE + RUN, ["-"]
        case "module":
            command = ["-m", "program"]
        case "package":
            command = ["-m", "package"]
        case "zip":
            import zipfile

            with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
                archive.writestr("__main__.py", SOURCE + RUN)
            command = [str(tmp_path / "app.pyz")]
        case "exec":
            command = ["-c", f"exec({SOURCE + RUN!r}, {{'__name__': 'gone'}})"]
    done = subprocess.run(
        [sys.executable, *command], input=text, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    if way == "exec":  # neither this process nor another can find its module
        assert done.returncode == 0 or "cannot be sent to a lane" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, TOLD), done.stderr


def test_a_script_that_was_deleted(tmp_path: Path) -> None:
    """After it was read: nothing reads it again."""
    script = tmp_path / "program.py"
    script.write_text("import os\nos.unlink(__file__)\n" + SOURCE + RUN)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, TOLD), done.stderr


def test_a_main_module_that_is_missing(tmp_path: Path) -> None:
    """Embedded interpreters have none: functions of other modules run."""
    source = """
import sys, asyncio, tidemill as tm
del sys.modules['__main__']
async def main():
    async with tm.Lanes(1) as lanes:
        return await lanes.run(divmod, 7, 2)
sys.stdout.write(str(asyncio.run(main())))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "(3, 1)"), done.stderr


def test_a_module_that_only_this_process_can_find(tmp_path: Path) -> None:
    """Made in memory: a clear error, before or after the call was sent, and lanes that go on."""
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent("""
            import asyncio, sys, types
            import tidemill as tm

            module = types.ModuleType("in_memory")
            exec("def f(x): return x + 1", module.__dict__)
            sys.modules["in_memory"] = module

            async def main():
                async with tm.Lanes(1) as lanes:
                    try:
                        print(await lanes.run(module.f, 1))
                    except (tm.CallError, ModuleNotFoundError) as error:
                        print("in_memory" in str(error))
                    print(await lanes.run(abs, -3))

            asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout in {"2\n3\n", "True\n3\n"}


def test_modules_are_those_of_the_application_wherever_it_is_started(tmp_path: Path) -> None:
    """Not those of the current directory, though one of them has the name of a module of Python's own."""
    app, here = tmp_path / "app", tmp_path / "here"
    app.mkdir()
    here.mkdir()
    (app / "helpers.py").write_text("def who(): return 'of the application'")
    (here / "helpers.py").write_text("def who(): return 'of the current directory'")
    (here / "token.py").write_text("raise SystemExit('this token.py was run')")
    (app / "program.py").write_text(
        textwrap.dedent("""
            import asyncio, helpers, os, sys
            import tidemill as tm

            def look():
                return helpers.who(), sys.flags.utf8_mode, sys.warnoptions, sys.path, os.environ.get("PYTHONPATH")

            async def main():
                async with tm.Lanes(1) as lanes:
                    told = await lanes.run(look)
                    print(told[0], told == look())

            asyncio.run(main())
        """)
    )
    command = [sys.executable, "-W", "error::UserWarning", "-X", "utf8", str(app / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "of the application True\n"), done.stderr


def test_a_notebook() -> None:
    """Functions and classes of cells, redefined in a later cell, on the notebook's own running loop."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel, of the dev extra")
    pytest.importorskip("ipykernel")
    import nbformat

    cells = [
        SOURCE,
        "await main()",
        "lanes = await tm.Lanes(1).__aenter__()\ndef f(x): return x + 1\nprint(await lanes.run(f, 1))",
        "def f(x): return Reading(x + 10)\nprint((await lanes.run(f, 1)).value)",
        "await lanes.aclose()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = ["".join(part.get("text", "") for part in cell.outputs) for cell in notebook.cells]
    assert printed == ["", TOLD, "2\n", "11\n", ""]
