"""What travels for a call: functions, arguments, values, errors. One parcel an item, so that each can fail alone.

Plain pickle does it where it can (about 1 us); cloudpickle takes what is of ``__main__``, a notebook or a closure, by
value. A class sent by value and back is the same class again. User code runs here, in the methods by which objects
pickle themselves: whatever it raises, ``sys.exit()`` too, belongs to its own call. Only Ctrl-C passes.
"""

from __future__ import annotations

import pickle
import traceback
import types
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidemill.by_value import dumps, dumps_by_value, parts_by_value, size_by_value
from tidemill.errors import BadResult, CallError, RemoteError
from tidemill.lanes.culprits import culprit, describe, first_culprit
from tidemill.lanes.framing import Discarded
from tidemill.lanes.parcels import Parcel, pack, pack_arguments, unpack

__all__ = [
    "MAX_BYTES",
    "Answer",
    "Parcel",
    "dumps_arguments",
    "dumps_call",
    "dumps_error",
    "dumps_function",
    "dumps_value",
    "loads",
    "loads_error",
    "named",
]

loads = unpack

MAX_BYTES: Final = 1 << 30
"""Of one parcel: a gigabyte through a socket is a mistake, and frames have a limit."""
_MOST_ERROR: Final = 16 << 20
"""Bytes of an exception, packed: it is read on the loop's thread, and no arena brings it."""
_MOST_TEXT: Final = 1 << 20
"""Letters of its message, and of its traceback."""


@dataclass(slots=True)
class Answer:
    """What a lane sent back for one item: a value, or the error it ended with."""

    raised: bool
    data: bytes | bytearray | memoryview
    block: memoryview | None = None
    """The value's large buffers; nobody else's memory."""

    def value(self) -> Any:
        """The value; raises the item's own error, or `BadResult` when the value cannot be read here."""
        if isinstance(self.data, Discarded):
            raise BadResult(
                "unreadable_result",
                f"The function ran, but there is no memory in this process for its result ({len(self.data):,} bytes came). Write "
                "it to a file and return the path, or have fewer results at a time.",
            )
        if self.raised:
            raise loads_error(self.data)
        try:
            return unpack(self.data, self.block)
        except BaseException as error:  # noqa: BLE001 - whatever a __setstate__ raises
            raised = BadResult(
                "unreadable_result", f"The function ran, but its result cannot be read here ({describe(error)})."
            )
            raised.__cause__ = _RemoteTraceback(_text(error))  # its frames would keep what its caller has
        raise raised


# -- arguments -------------------------------------------------------------------------------------------


def dumps_function(function: Any) -> bytes:
    """Pickle a function, always by cloudpickle, which knows of modules to be sent by value; raises `CallError`, also for one
    that is too large.
    """
    try:
        data = dumps_by_value(function)
    except BaseException as error:
        told = describe(error)
        parts = parts_by_value(function) if isinstance(function, types.FunctionType) else []
        closed_over = next((found for name, part in parts if (found := culprit(part, name))), "")
        because = f": it closes over {closed_over.rstrip(',')}" if closed_over else ""
        raise CallError(
            f"The call was not made: the function {getattr(function, '__qualname__', function)!r} cannot be sent to a "
            f"lane{because} ({told}). Make what it closes over inside of it, or pass it as an argument."
        ) from error
    if len(data) > MAX_BYTES:
        raise CallError(
            f"The call was not made: {_shown(function)!r} is {len(data):,} bytes when packed, more than "
            f"{MAX_BYTES:,}{_largest_part(function)}. Load that in the lane, by an initializer or inside of the function, or pass "
            "the path of a file."
        )
    return data


def _shown(function: Any) -> str:
    bare = getattr(function, "__wrapped__", function)
    return getattr(bare, "__qualname__", None) or type(bare).__qualname__


def _largest_part(function: Any) -> str:
    """Of what a function, or the methods of a class, close over: the largest, for messages."""
    parts: dict[tuple[str, int], Any] = {}
    bare = getattr(function, "__wrapped__", function)
    for each in vars(bare).values() if isinstance(bare, type) else [bare]:
        if isinstance(each, types.FunctionType):
            parts |= {(name, id(part)): part for name, part in parts_by_value(each)}
    sizes = {known: size_by_value(part) for known, part in parts.items()}
    if not sizes:
        return ""
    largest = max(sizes, key=sizes.__getitem__)
    return f": it closes over {largest[0]}, a {type(parts[largest]).__qualname__} of {sizes[largest]:,} bytes"


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    """Pack the arguments of a call; raises `CallError` that names the one that cannot be sent, and its path."""
    try:
        parcel = pack_arguments(args, kwargs)
    except BaseException as error:
        raise _unsendable(error, named(args, kwargs)) from error
    return parcel if parcel.size <= MAX_BYTES else _refused(parcel)


def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by what messages call them."""
    return {f"argument {name}": value for name, value in (*enumerate(args), *kwargs.items())}


def dumps_arguments(value: Any, where: dict[str, Any], depth: int = 0) -> Parcel:
    """Pack what a call needs, with bytes so deep in it; raises `CallError` that names the one of ``where`` that cannot be sent,
    and its path."""
    try:
        parcel = pack(value, depth)
    except BaseException as error:
        raise _unsendable(error, where) from error
    return parcel if parcel.size <= MAX_BYTES else _refused(parcel)


def _unsendable(error: BaseException, where: dict[str, Any]) -> CallError:
    told = describe(error)
    path = first_culprit(where, "its arguments")
    return CallError(
        f"The call was not made: {path} cannot be sent to a lane ({told}). Pass what it was made from instead, and make "
        "it inside the function."
    )


def _refused(parcel: Parcel) -> Parcel:
    raise CallError(
        f"The call was not made: its arguments are {parcel.size:,} bytes when packed, more than {MAX_BYTES:,}. Pass the "
        "path of a file instead, or call with parts."
    )


# -- values ----------------------------------------------------------------------------------------------


def dumps_value(value: Any) -> Parcel:
    """Pack what a function returned; raises `BadResult`."""
    try:
        parcel = pack(value)
    except BaseException as error:
        told = describe(error)
        path = culprit(value, "the result") or "the result"
        raise BadResult("unpicklable_result", f"The function ran, but {path} cannot be sent back ({told}).") from error
    if parcel.size > MAX_BYTES:
        raise BadResult(
            "large_result",
            f"The function ran, but its result is {parcel.size:,} bytes when packed, more than {MAX_BYTES:,}. Write it "
            "to a file and return the path.",
        )
    return parcel


# -- errors ----------------------------------------------------------------------------------------------


class _Raised(msgspec.Struct, array_like=True):
    type_name: str
    message: str
    text: str
    pickled: bytes | None


class _RemoteTraceback(Exception):
    """Never raised: the cause of what is; shows where it happened, mostly in the lane, as part of the traceback here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Raised).decode


def dumps_error(error: BaseException) -> bytes:
    """Pickle an error with its traceback's text; one that cannot be pickled, or is very large, travels as text alone."""
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - the user's __str__
        message = "(its message cannot be shown)"
    name = _sendable(type(error).__qualname__)
    return _encode(_Raised(name, _shortened(message), _shortened(_text(error)), _dumped(error)))


def _shortened(text: str) -> str:
    """Its two ends, where it is longer than anybody reads: the parent holds it on the loop's thread."""
    if len(text) > _MOST_TEXT:
        left_out = f"\n[{len(text) - _MOST_TEXT:,} characters left out]\n"
        text = f"{text[: _MOST_TEXT // 2]}{left_out}{text[-_MOST_TEXT // 2 :]}"
    return _sendable(text)


def _text(error: BaseException) -> str:
    """Its traceback."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - what the user's class has put into it
        return f"{type(error).__qualname__}: its traceback cannot be shown\n"


def _sendable(text: str) -> str:
    """With half surrogates, which a file's name may have, as they are written in source code."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _dumped(error: BaseException) -> bytes | None:
    """None for what must not be raised in another process, or would not arrive."""
    if not isinstance(error, Exception) or isinstance(error, (StopIteration, StopAsyncIteration)):
        return None  # sys.exit() in a function must not end the application
    try:
        data = dumps(error)
        if len(data) > _MOST_ERROR:
            return None
        pickle.loads(data)  # noqa: S301 - what we just made: many an exception pickles and does not come back
    except BaseException as raised:  # noqa: BLE001 - the error's own methods
        describe(raised)
        return None
    return data


def loads_error(data: bytes | bytearray | memoryview) -> Exception:
    """The error, with the lane's traceback as its cause; a `RemoteError` stands for one that cannot travel."""
    raised = _decode(data)
    error: Exception | None = None
    if raised.pickled is not None:
        try:
            loaded = pickle.loads(raised.pickled)  # noqa: S301 - our own lane's bytes
        except BaseException as reading:  # noqa: BLE001 - its module may not be importable here
            describe(reading)
            loaded = None
        error = loaded if isinstance(loaded, Exception) else None
    if error is None:
        error = RemoteError(
            raised.type_name,
            f"The function raised {raised.type_name}: {raised.message} (it cannot be sent here as it is)",
        )
    error.__cause__ = _RemoteTraceback(raised.text)
    return error
