"""What ``tidemill checkpoint`` prints: the checkpoints of a state folder, and whether they can be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tidemill import files
from tidemill.app.exit_codes import ExitCode
from tidemill.app.standard_streams import tell, write_out
from tidemill.app.units import in_units
from tidemill.engine import checkpoint_store
from tidemill.engine.checkpoint_store import Listed
from tidemill.errors import InputError
from tidemill.printable import lines_printable, printable

__all__ = ["checkpoint", "folder_of", "table"]


def checkpoint(place: Path, *, verify: bool = False, prune: int | None = None) -> int:
    """Prune where asked, and list what is left; the exit code says whether all of it can be used.

    A run may write there meanwhile. Raises `InputError` for a folder that is none.
    """
    folder = folder_of(place)
    if prune is not None:
        if prune < 1:
            raise InputError(f"--prune {prune}: one checkpoint at least must stay.")
        for path in checkpoint_store.prune(folder, prune):
            tell(f"tidemill: removed {path}\n")
    found = checkpoint_store.listed(folder, verify=verify)
    if not found:
        states = sorted(path.parent.name for path in folder.glob("*/checkpoints"))
        found_below = f"; name one of the state folders in it: {', '.join(states)}" if states else ""
        write_out(f"no checkpoints in {printable(f'{folder}{found_below}')}\n")
        return ExitCode.DONE
    write_out(lines_printable(table(found, verified=verify)))
    bad = [one for one in found if not one.whole]
    for one in bad:
        tell(f"tidemill: {printable(f'{one.path} cannot be used: {one.why}')}.\n")
    return ExitCode.BAD_INPUT if bad else ExitCode.DONE


def folder_of(place: Path) -> Path:
    """The folder of checkpoints that a path means: a state folder's, or the folder itself. Raises `InputError`."""
    tried = files.absolute(place)
    if not tried.is_dir():
        raise InputError(f"there is no folder {tried}; name a state folder, such as .tidemill/NAME.")
    inside = tried / "checkpoints"
    return inside if inside.is_dir() else tried


def table(found: Sequence[Listed], *, verified: bool) -> str:
    """A line for each, oldest first."""
    good = "whole" if verified else "complete"
    rows = [("number", "position", "written", "size", "state")]
    rows += [
        (
            str(one.number),
            "-" if one.position is None else str(one.position),
            "-" if one.written_ns is None else f"{np.datetime64(one.written_ns, 'ns').astype('M8[s]')}Z",
            in_units(one.bytes),
            good if one.whole else "damaged",
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    if not verified:
        lines.append("complete: by start and end; --verify reads every byte")
    return "".join(f"{line}\n" for line in lines)
