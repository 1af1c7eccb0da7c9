"""What an ONNX model takes and gives, read from its bytes, without a library and without making it ready to run.

An ONNX file is one protobuf message; of the hundred kinds of field in it, the ten that say the names, types and shapes
of the graph's inputs and outputs are read here, and everything else (nodes, weights) is stepped over. The numbers are
those of ``onnx.proto3`` (ModelProto, GraphProto, ValueInfoProto, TypeProto, TensorShapeProto, TensorProto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.errors import InputError

__all__ = ["Signature", "Tensor", "read_signature"]

_ELEMENTS: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8e4m3fn",
    18: "float8e4m3fnuz",
    19: "float8e5m2",
    20: "float8e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
}
"""Types of elements."""
_EXTERNAL: Final = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    dtype: str | None
    """As NumPy names it, ``"string"`` for text, and as ONNX does what NumPy does not have; None for what is no tensor."""
    shape: tuple[int | None, ...] | None
    """None in it stands for a dimension that is free; None instead of it says nothing of the shape."""

    def __str__(self) -> str:
        if self.dtype is None:
            return f"{self.name}: no tensor"
        if self.shape is None:
            return f"{self.name}: {self.dtype}"
        shown = ", ".join("rows" if place == 0 and n is None else str(n or "any") for place, n in enumerate(self.shape))
        return f"{self.name}: {self.dtype} ({shown}{',' if len(self.shape) == 1 else ''})"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, in its own order; an input that has a value in the model itself is not asked for."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read_signature(model: bytes, source: str) -> Signature:
    """The signature of a model; ``source`` says in messages where it came from. Cost: one step per node and weight.

    Raises `InputError` for what is no ONNX model, or one whose weights lie in another file.
    """
    try:
        graphs = [_message(value) for field, value in _fields(memoryview(model)) if field == 7]
        if graphs:
            return _of_graph(graphs[-1], source)
    except (ValueError, UnicodeDecodeError):
        pass
    raise InputError(f"{source} is not an ONNX model, or not a whole one.")


def _of_graph(graph: memoryview, source: str) -> Signature:
    inputs, outputs, own = [], [], set()
    for field, value in _fields(graph):
        if field == 5:  # a weight
            own.add(_weight(_message(value), source))
        elif field == 15:  # a sparse one: its values carry the name
            own.update(_weight(_message(part), source) for number, part in _fields(_message(value)) if number == 1)
        elif field == 11:
            inputs.append(_tensor(_message(value)))
        elif field == 12:
            outputs.append(_tensor(_message(value)))
    return Signature(tuple(tensor for tensor in inputs if tensor.name not in own), tuple(outputs))


def _weight(tensor: memoryview, source: str) -> str:
    name = ""
    for field, value in _fields(tensor):
        if field == 8:
            name = _text(value)
        elif field == 14 and value == _EXTERNAL:
            raise InputError(f"{source} keeps its weights in another file; save the model as one file.")
    return name


def _tensor(info: memoryview) -> Tensor:
    name, dtype, shape = "", None, None
    for field, value in _fields(info):
        if field == 1:
            name = _text(value)
        elif field == 2:
            for kind, described in _fields(_message(value)):
                if kind == 1:  # a dense tensor
                    dtype, shape = _type(_message(described))
    return Tensor(name, dtype, shape)


def _type(described: memoryview) -> tuple[str | None, tuple[int | None, ...] | None]:
    dtype, shape = None, None
    for field, value in _fields(described):
        if field == 1:
            dtype = _ELEMENTS.get(value, f"type {value}") if isinstance(value, int) else None
        elif field == 2:
            shape = tuple(_size(_message(dimension)) for number, dimension in _fields(_message(value)) if number == 1)
    return dtype, shape


def _size(dimension: memoryview) -> int | None:
    """A dimension; None where it is free: a name, nothing, or -1 as some exporters write."""
    sizes = [value for field, value in _fields(dimension) if field == 1 and isinstance(value, int)]
    return sizes[-1] if sizes and 0 < sizes[-1] < 1 << 63 else None


# -- protobuf ----------------------------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number, and its value: an int, or the bytes of a text or message. Raises ValueError."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > end:
            raise ValueError("cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and at < len(message):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("not a number")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")  # noqa: TRY004 - of the bytes, not of a caller
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
