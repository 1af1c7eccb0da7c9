"""The only door to ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from tidemill.errors import MissingExtra, PlanError

__all__ = ["Runtime"]

PREFERRED: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")


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

    def session(self, model: bytes, source: str, providers: Sequence[str] | None, stage: str) -> Any:
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
        options.log_severity_level = 3  # errors; its warnings are about the graph, and come once for every lane
        chosen = list(providers or (one for one in PREFERRED if one in available))
        try:
            return library.InferenceSession(model, options, providers=chosen)
        except Exception as error:
            told = str(error).strip().partition("\n")[0]
            raise PlanError(f"{stage}: ONNX Runtime {library.__version__} cannot run {source}: {told}") from error


def _library() -> Any:
    # Its own builds tell their maker what they run, from a thread that starts with the import: plants do not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _loaded() -> Runtime:
    _library()
    return Runtime()
