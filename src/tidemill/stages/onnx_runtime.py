"""The only door to ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import MissingExtra, PlanError
from tidemill.stages.model_wiring import Wiring

__all__ = ["Calls", "Runtime"]

_PREFERRED: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Runtime:
    """ONNX Runtime, for a stage to hold: making one imports nothing, unpickling one imports the library.

    A plan is made and pickled in the application, which never needs the library, and unpickled in the fork server
    (decision 0007), so that lanes find it loaded. Raises `MissingExtra` where it is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtra("onnxruntime", "onnx", "ONNX models")

    def __reduce__(self) -> tuple[Callable[[], Runtime], tuple[()]]:
        return _loaded, ()

    def opened(self, model: bytes, source: str, providers: Sequence[str] | None, wiring: Wiring, stage: str) -> Calls:
        """The model, ready to run in this thread alone; raises `PlanError` where it cannot be.

        ``providers`` in order of preference; by default the GPU's by CUDA where this build of the library has it, and
        then the processor's. The library falls back to the next where one cannot start.
        """
        library = _library()
        available = library.get_available_providers()
        for wanted in providers or ():
            if wanted not in available:
                raise PlanError(f"{stage}: there is no provider {wanted!r}; there are: {', '.join(available)}.")
        options = library.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what fails is raised, and told by us
        chosen = list(providers or (one for one in _PREFERRED if one in available))
        try:
            return Calls(library.InferenceSession(model, options, providers=chosen), wiring, stage)
        except Exception as error:
            told = str(error).strip().partition("\n")[0]
            raise PlanError(f"{stage}: ONNX Runtime {library.__version__} cannot run {source}: {told}") from error


class Calls:
    """Calls of a session with tiles of one size.

    Where all outputs are numbers of known shapes it is bound to memory of its own, once: that saves a third of what a call
    costs beside the model.
    """

    def __init__(self, session: Any, wiring: Wiring, stage: str) -> None:
        self._session, self._wiring, self._stage = session, wiring, stage
        tile = wiring.tile
        self._inputs = [np.zeros((tile, *feed.shape), feed.dtype) for feed in wiring.feeds]
        shapes = [found.shape for found in wiring.found]
        self._outputs = [
            np.zeros((tile, *shape), found.dtype)
            for found, shape in zip(wiring.found, shapes, strict=True)
            if shape is not None
        ]
        self._binding = None if None in shapes else session.io_binding()
        if self._binding is not None:
            for feed, array in zip(wiring.feeds, self._inputs, strict=True):
                self._binding.bind_input(feed.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for found, array in zip(wiring.found, self._outputs, strict=True):
                self._binding.bind_output(found.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, fed: Sequence[NDArray[Any]], rows: int) -> list[NDArray[Any]]:
        """Each output for ``rows`` records, whole tiles of them; raises what the library raises, and `BadResult`."""
        if self._binding is None:
            return self._unbound(fed, rows)
        made = [np.empty((rows, *array.shape[1:]), array.dtype) for array in self._outputs]
        for start in range(0, rows, self._wiring.tile):
            piece = slice(start, start + self._wiring.tile)
            for array, given in zip(self._inputs, fed, strict=True):
                array[...] = given[piece]
            self._session.run_with_iobinding(self._binding)
            for room, array in zip(made, self._outputs, strict=True):
                room[piece] = array
        return made

    def _unbound(self, fed: Sequence[NDArray[Any]], rows: int) -> list[NDArray[Any]]:
        tile, found = self._wiring.tile, self._wiring.found
        parts: list[list[NDArray[Any]]] = [[np.empty((0, len(one.columns)))] * (not rows) for one in found]
        for start in range(0, rows, tile):
            given = {
                feed.name: array[start : start + tile] for feed, array in zip(self._wiring.feeds, fed, strict=True)
            }
            outputs = self._session.run([one.name for one in found], given)
            for one, own, output in zip(found, parts, outputs, strict=True):
                own.append(one.checked(output, tile, self._stage))
        return [np.concatenate(own) for own in parts]


def _library() -> Any:
    # Its own builds tell their maker what they run, from a thread that starts with the import: plants do not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _loaded() -> Runtime:
    _library()
    return Runtime()
