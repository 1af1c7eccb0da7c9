"""What travels for a call: functions, arguments, values, errors. One parcel an item, so that each can fail alone.

Plain pickle does it where it can (about 1 us); cloudpickle takes what is of ``__main__``, a notebook or a closure, by
value. A class sent by value and back is the same class again. User code runs here, in the methods by which objects
pickle themselves: whatever it raises, ``sys.exit()`` too, belongs to its own call. Only Ctrl-C passes.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import traceback
import types
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidemill.errors import BadResult, CallError, RemoteError
from tidemill.lanes.by_value import dumps_by_value
from tidemill.lanes.parcels import Parcel, pack, pack_arguments, unpack

__all__ = [
    "Answer",
    "Parcel",
    "dumps",
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


@dataclass(slots=True)
class Answer:
    """What a lane sent back for one item: a value, or the error it ended with."""

    raised: bool
    data: bytes | bytearray | memoryview
    block: memoryview | None = None
    """The value's large buffers; nobody else's memory."""

    def value(self) -> Any:
        """The value; raises the item's own error, or `BadResult` when the value cannot be read here."""
        if self.raised:
            raise loads_error(self.data)
        try:
            return unpack(self.data, self.block)
        except BaseException as error:  # noqa: BLE001 - whatever a __setstate__ raises
            raised = BadResult(
                "unreadable_result", f"The function ran, but its result cannot be read here ({_describe(error)})."
            )
            raised.__cause__ = _RemoteTraceback(_text(error))  # its frames would keep what its caller has
        raise raised


def dumps(value: Any) -> bytes:
    """Pickle a value; raises whatever its own methods raise."""
    try:
        data = pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        return dumps_by_value(value)
    if b"__main__" in data:  # by name, and the other side has another main module
        return dumps_by_value(value)
    return data


def _describe(error: BaseException) -> str:
    """For messages. Lets Ctrl-C pass, which is nobody's error."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    return f"{type(error).__name__}: {error}"


# -- arguments -------------------------------------------------------------------------------------------


def dumps_function(function: Any) -> bytes:
    """Pickle a function, always by cloudpickle, which knows of modules to be sent by value; raises `CallError`."""
    try:
        return dumps_by_value(function)
    except BaseException as error:
        told = _describe(error)
        closed_over = next((found for name, part in _captured(function) if (found := _culprit(part, name))), "")
        because = f": it closes over {closed_over.rstrip(',')}" if closed_over else ""
        raise CallError(
            f"The call was not made: the function {getattr(function, '__qualname__', function)!r} cannot be sent to a "
            f"lane{because} ({told}). Make what it closes over inside of it, or pass it as an argument."
        ) from error


def _captured(function: Any) -> list[tuple[str, Any]]:
    """What a function has of where it was defined, by name."""
    if not isinstance(function, types.FunctionType):
        return []
    try:
        captured = inspect.getclosurevars(function)
    except ValueError:  # one of them has no value yet
        return []
    return [*captured.nonlocals.items(), *captured.globals.items()]


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
    told = _describe(error)
    path = next((found for name, part in where.items() if (found := _culprit(part, name))), "its arguments")
    return CallError(
        f"The call was not made: {path} cannot be sent to a lane ({told}). Pass what it was made from instead, and make "
        "it inside the function."
    )


def _refused(parcel: Parcel) -> Parcel:
    raise CallError(
        f"The call was not made: its arguments are {parcel.size:,} bytes when packed, more than {MAX_BYTES:,}. Pass the "
        "path of a file instead, or call with parts."
    )


def _can_be_pickled(value: Any) -> bool:
    try:
        pack(value)
    except BaseException as error:  # noqa: BLE001 - see above
        _describe(error)
        return False
    return True


def _culprit(value: Any, path: str, depth: int = 4) -> str | None:
    """The path to the smallest part that cannot be pickled, with its type; None when all of it can."""
    if _can_be_pickled(value):
        return None
    parts: list[tuple[str, Any]] = []
    if depth and type(value) is dict:
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif depth and type(value) in {list, tuple}:
        parts = [(f"{path}[{number}]", part) for number, part in enumerate(value)]
    elif depth and isinstance(value, types.MethodType):
        parts = [(f"{path}.__self__", value.__self__)]
    elif depth and isinstance(value, functools.partial):
        parts = [(f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords")]
    elif depth and _is_pickled_by_parts(value):
        parts = [(f"{path}.{name}", part) for name, part in vars(value).items()]
    for name, part in parts:
        found = _culprit(part, name, depth - 1)
        if found:
            return found
    return f"{path}, a {type(value).__qualname__},"


def _is_pickled_by_parts(value: Any) -> bool:
    """Whether pickle takes the attributes of an object, and nothing that its class says instead."""
    kind = type(value)
    return isinstance(getattr(value, "__dict__", None), dict) and all(
        getattr(kind, name) is getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )


# -- values ----------------------------------------------------------------------------------------------


def dumps_value(value: Any) -> Parcel:
    """Pack what a function returned; raises `BadResult`."""
    try:
        parcel = pack(value)
    except BaseException as error:
        told = _describe(error)
        path = _culprit(value, "the result") or "the result"
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
    """Pickle an error with its traceback's text; one that cannot be pickled travels as text alone."""
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - the user's __str__
        message = "(its message cannot be shown)"
    name = _sendable(type(error).__qualname__)
    return _encode(_Raised(name, _sendable(message), _sendable(_text(error)), _dumped(error)))


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
        pickle.loads(data)  # noqa: S301 - what we just made: many an exception pickles and does not come back
    except BaseException as raised:  # noqa: BLE001 - the error's own methods
        _describe(raised)
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
            _describe(reading)
            loaded = None
        error = loaded if isinstance(loaded, Exception) else None
    if error is None:
        error = RemoteError(
            raised.type_name,
            f"The function raised {raised.type_name}: {raised.message} (it cannot be sent here as it is)",
        )
    error.__cause__ = _RemoteTraceback(raised.text)
    return error
