"""`Model`: an ONNX model over columns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Schema
from tidemill.stages.base import Load, OnError, Stage
from tidemill.stages.model_wiring import Wiring, all_of, named, wired
from tidemill.stages.numbers import NUMERIC
from tidemill.stages.onnx_runtime import Calls, Runtime
from tidemill.stages.onnx_signature import read_signature
from tidemill.stages.options import whole_number
from tidemill.stages.state import StageState
from tidemill.stages.tables import path_of

__all__ = ["Model"]


class Model(Stage):
    """An ONNX model, run by ONNX Runtime in the lanes: columns in, columns out, one row per record.

    ``model``      path of the ``.onnx`` file, one file with its weights in it, or its bytes
    ``inputs``     the columns that the model sees, float, int or bool. A list for a model of one input, which gets them
                   side by side, shape ``(rows, len(inputs))``; for several, a dict of their names,
                   ``{"x": ["mean", "std"], "age": "age_days"}``. An input of more dimensions is filled in C order
    ``outputs``    the names of the new columns, in the order in which the model gives them: an output of shape
                   ``(rows,)`` or ``(rows, 1)`` is one column, ``(rows, k)`` is k. A dict picks outputs by name,
                   ``{"probability": ["ok", "worn"]}``. Numbers become float, bools stay bool, strings text
    ``tile``       records of each call, the last ones padded by zeros, so that a record gets the same bits whatever
                   batch it came in: 256, or the number that the model was exported for
    ``providers``  what runs it, in order of preference; by default the GPU (``"CUDAExecutionProvider"``) where the
                   installed ONNX Runtime is built for one, else the processor (``"CPUExecutionProvider"``)

    Values are cast to the type of the input. A missing reading is NaN, which most models hand through; an input of
    integers or bools has no NaN, so that a record whose value is missing, not whole or out of range fails, as one on
    which the model raises does: ``on_error`` says what becomes of it. NaN is not replaced: do so in the model, or before
    it. Each record must be computed by itself; `tidemill check` finds models that look at other rows.

    The model is read once, when the pipeline is checked, and travels with the plan: a lane that replaces a dead one runs
    the same bytes. A live run watches the file, and takes a new one that can serve for all lanes behind one record; a run
    over a recording keeps the one that it began with. Raises `PlanError` for inputs or outputs that it does not have, of another number of columns or
    another type, naming what it has; `InputError` for a file that is missing or no ONNX; `MissingExtra` without the
    library. One thread in each lane; cost per record as the model's, and some 20 us a tile.

    >>> Model("scorer.onnx", inputs=["value_mean_50", "value_std_50"], outputs=["score"])
    Model('scorer.onnx')
    """

    runs_user_code: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        inputs: Sequence[str] | Mapping[str, str | Sequence[str]],
        outputs: Sequence[str] | Mapping[str, str | Sequence[str]],
        *,
        tile: int | None = None,
        providers: Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error, deadline_s=deadline_s)
        self.path = path_of(model, option="model= of Model")
        if self.path is None and not isinstance(model, bytes):
            raise PlanError(
                f"{self.name} needs a model: the path of an .onnx file, or its bytes; it was given {type(model).__name__}."
            )
        if tile is not None:
            must = "be a number of records, 1 or more"
            tile = whole_number(tile, name=f"{self.name}: tile", must=must, least=1)
        self.inputs = named(inputs, "inputs", self.name)
        self.outputs = named(outputs, "outputs", self.name)
        self.tile = tile
        self.providers = (providers,) if isinstance(providers, str) else tuple(providers) if providers else None
        self._runtime = Runtime()
        self._source = "the model"
        self._model: bytes | None = None
        self._wiring: Wiring | None = None
        self._calls: Calls | None = None
        if isinstance(model, bytes):
            self._read(model, self._source)

    def describe(self) -> str:
        path = getattr(self, "path", None)
        return f"Model({path.rpartition('/')[2]!r})" if path else "Model"

    # -- in the parent -----------------------------------------------------------------------------------

    def prepared(self, load: Load) -> Self:
        if self.path is None:
            return self
        loaded = copy.copy(self)
        source, model = load.file(self.path)
        loaded._read(model, source)
        return loaded

    def _read(self, model: bytes, source: str) -> None:
        self._wiring = wired(read_signature(model, source), self.inputs, self.outputs, self.tile, self.name)
        self._model, self._source = model, source

    def bind(self, schema: Schema) -> Schema:
        for column in all_of(self.inputs):
            schema.require(column, stage=self.name, kinds=NUMERIC)
        if self._wiring is None:
            return schema.adding(Field(column, None) for column in all_of(self.outputs))
        return schema.adding(self._wiring.fields)

    def reads(self) -> frozenset[str]:
        return frozenset(all_of(self.inputs))

    # -- in a lane ---------------------------------------------------------------------------------------

    def opened(self) -> Self:
        if self._model is None:
            raise PlanError(f"{self.name}: its model has not been loaded; prepare the plan first.")
        lane = super().opened()
        assert self._wiring is not None
        lane._calls = self._runtime.opened(self._model, self._source, self.providers, self._wiring, self.name)
        lane._model = None  # the library has its own copy
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        wiring, calls, rows = self._wiring, self._calls, len(batch)
        assert wiring is not None
        assert calls is not None
        whole = -(-rows // wiring.tile) * wiring.tile
        given = calls.run([feed.array(batch, whole, self.name) for feed in wiring.feeds], whole)
        made: dict[str, Column] = {}
        for found, output in zip(wiring.found, given, strict=True):
            made |= found.columns_of(output, rows)
        return batch.with_columns(made)
