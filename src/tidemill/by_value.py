"""Pickles of what another process cannot import: the code of ``__main__``, of a notebook, of closures (by cloudpickle).

Ours is what becomes of classes. One that comes back to the process that it is from stays as it is there: cloudpickle would
make another first, which registers itself where classes of its kind do, and then set all attributes of the old one to what
they were where it was pickled. One that is new to a process has its slots, and the attributes of its members if it is an
enumeration. Bases and metaclasses that came by value do nothing to it: what they did at home came with it. Classes that are
equal stay apart. And ``functools.lru_cache`` and ``cached_property`` travel, with a cache and a lock of their own.

Functions find in their globals what the initializer of their process has stored there (`tidemill.initialized`).

Plain pickle does it where it can, in a fraction of the time: `dumps` sends by value only what has nothing that could be imported.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import pickle
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import cloudpickle

from tidemill.annotations import annotations_as_text
from tidemill.errors import CallError
from tidemill.initialized import initialized_here

__all__ = [
    "PicklerByValue",
    "dumps",
    "dumps_by_value",
    "importing_nothing",
    "names_what_stays_here",
    "parts_by_value",
    "size_by_value",
]

_fill: Final = cloudpickle.cloudpickle._function_setstate
"""Its name is in every pickle that cloudpickle makes of a function."""
_Cached: Final = type(functools.lru_cache(len))
_OF_EVERY_MEMBER: Final = frozenset(("_value_", "_name_", "__objclass__", "_sort_order_"))

_lock: Final = threading.RLock()
_classes: Final[weakref.WeakValueDictionary[str, type]] = weakref.WeakValueDictionary()
"""The classes that were sent or came, by a name that each has in all processes."""
_names: Final[dict[int, str]] = {}
"""Their names, by their ids: a class may be equal to another."""
_foreign: Final[set[str]] = set()
"""The names of those that came from elsewhere."""
_homes: Final[set[str]] = set()
"""The modules of classes and functions that came by value: to import one, to see whether it has them, would run a script again."""


def dumps(value: Any) -> bytes:
    """Pickle a value for another process: plainly, or by value where it is of ``__main__``, of a module that is sent by value,
    or of no module; raises whatever its own methods raise.

    >>> dumps([1, "tide"]) == pickle.dumps([1, "tide"], 5)
    True
    """
    try:
        with importing_nothing():
            data = pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        return dumps_by_value(value)
    return dumps_by_value(value) if names_what_stays_here(data) else data


def names_what_stays_here(data: bytes) -> bool:
    """Whether a plain pickle may name what another process has not, or must not import: its main module is another, and what
    is registered with cloudpickle, as the file of ``tidemill run FILE.py`` is, is to be sent by value.

    >>> names_what_stays_here(pickle.dumps(enum.Enum, 5)), names_what_stays_here(pickle.dumps("__main__", 5))
    (False, True)
    """
    return _MAIN in data or any(map(data.__contains__, map(_as_written, cloudpickle.list_registry_pickle_by_value())))


def _as_written(module: str) -> bytes:
    """The module's name as it stands in a pickle; of a package, as the names of those in it begin."""
    name = module.encode()
    is_whole = len(name) < 256 and not hasattr(sys.modules.get(module), "__path__")
    return b"\x8c%c%b" % (len(name), name) if is_whole else name


_MAIN: Final = _as_written("__main__")


class importing_nothing:  # noqa: N801 - a context manager, as those of contextlib; a generator would take ten times as long
    """While plain pickle looks whether a class or function is where it says: it imports no module of what came by value."""

    def __enter__(self) -> None:
        self._away = [name for name in _homes if name not in sys.modules] if _homes else ()
        for name in self._away:
            sys.modules[name] = None  # type: ignore[assignment] # as Python says that there is none

    def __exit__(self, *_: object) -> None:
        for name in self._away:
            if sys.modules.get(name, self) is None:
                del sys.modules[name]


def dumps_by_value(value: Any) -> bytes:
    """Pickle a value; raises whatever its own methods raise.

    >>> import pickle
    >>> Reading = type("Reading", (), {"scale": 1.0})
    >>> sent = dumps_by_value(Reading)
    >>> Reading.scale = 2.0
    >>> pickle.loads(sent) is Reading, Reading.scale
    (True, 2.0)
    """
    file = io.BytesIO()
    PicklerByValue(file, 5).dump(value)
    return file.getvalue()


def parts_by_value(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What travels with a function, and its names: what it closes over, globals that its code names, also in comprehensions,
    and its defaults. Several may have one name: a class inside of it may name a global as the function does what it closes over.
    """
    parts = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it has no value yet
            parts.append((name, cell.cell_contents))
    names = cloudpickle.cloudpickle._extract_code_globals(function.__code__)
    parts += [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    return parts + _defaults(function)


def _defaults(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Its own: what it says of its signature, and what it says that it wraps, may be anything."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    last_first = list(zip(reversed(names), reversed(function.__defaults__ or ()), strict=False))
    return [*reversed(last_first), *(function.__kwdefaults__ or {}).items()]


def size_by_value(value: Any) -> int:
    """Bytes of that pickle, which is not kept.

    >>> size_by_value("tide") == len(dumps_by_value("tide"))
    True
    """
    counted = _Counted()
    PicklerByValue(counted, 5).dump(value)
    return counted.bytes


class _Counted:
    """A file that keeps nothing of what is written to it."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        return size


class PicklerByValue(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is _Cached and not _is_found(obj):
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if kind is io.TextIOWrapper and obj is not sys.stdout and obj is not sys.stderr:
            raise TypeError("an open file stays in its process")  # cloudpickle would send what is in it
        if kind is functools.cached_property:
            return kind, (obj.func,), {name: value for name, value in vars(obj).items() if name != "lock"}
        try:
            reduced = super().reducer_override(obj)
        except NameError:  # from Python 3.14 on, of an annotation that stands for nothing at run time
            if kind is not types.FunctionType:
                raise
            reduced = super().reducer_override(_annotated_as_text(obj))
        if isinstance(reduced, tuple) and len(reduced) == 6:
            if isinstance(obj, type):
                return _reduced(obj, *reduced)
            if kind is types.FunctionType:
                return _with_globals(obj, *reduced)
        return reduced


def _is_found(function: Any) -> bool:
    """Whether another process finds it by its name."""
    name = function.__module__
    if name == "__main__" or name in cloudpickle.list_registry_pickle_by_value():
        return False
    try:
        found = functools.reduce(getattr, function.__qualname__.split("."), sys.modules[name])
    except (AttributeError, KeyError):
        return False
    return found is function


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


# -- functions -------------------------------------------------------------------------------------------


def _with_globals(sent: types.FunctionType, make: Any, arguments: Any, state: Any, *_: Any) -> tuple[Any, ...]:
    """What cloudpickle has made of a function, for the globals of where it arrives."""
    here = initialized_here.get()
    if here is not None:
        attributes = state[1]
        attributes["__globals__"] = here.going(sent.__globals__.get("__name__"), attributes["__globals__"])
    return make, arguments, state, None, None, _arrived


def _annotated_as_text(function: types.FunctionType) -> types.FunctionType:
    """The same function, whose annotations can be had."""
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function, ("__module__", "__qualname__", "__doc__"))
    del made.__wrapped__  # type: ignore[attr-defined] # unless it has one, which is among its attributes
    vars(made).update(vars(function))
    made.__annotations__ = annotations_as_text(function)
    return made


def _arrived(function: types.FunctionType, state: Any) -> None:
    _fill(function, state)
    _homes.add(str(function.__module__))
    here = initialized_here.get()
    if here is not None:
        here.come(function.__globals__)


# -- classes ---------------------------------------------------------------------------------------------


def _reduced(
    sent: type, make: Callable[..., type], arguments: tuple[Any, ...], state: Any, _: None, __: None, fill: Any
) -> tuple[Any, ...]:
    """What cloudpickle has made of a class, with what it leaves out, and our name for its own, which equal classes share."""
    *parts, _name, extra = arguments
    members: dict[str, dict[str, Any]] = {}
    if isinstance(sent, enum.EnumType):
        parts = [*parts, None, extra]
        named: Mapping[str, Any] = sent.__members__
        parts[3] = {name: member.value for name, member in named.items()}  # aliases and flags of flags too
        for name in named:
            state[0].pop(name, None)
        members = _of_members(sent, named)
    else:
        make = _new_class
        if "__slots__" in vars(sent) and not issubclass(sent, tuple):  # NamedTuple would refuse them
            parts[3]["__slots__"] = vars(sent)["__slots__"]
    return _made, (_name_of(sent), make, *parts), (fill, state, members), None, None, _filled


def _of_members(sent: type, named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the members of an enumeration have beside their names and values."""
    data = vars(sent)["_member_type_"]
    found: dict[str, dict[str, Any]] = {}
    for name, member in named.items():
        if data is not object and "__new_member__" in vars(sent) and data.__eq__(member, member.value) is not True:
            raise TypeError(
                f"{sent.__name__}.{name}, an enumeration's member, is not made of its value; put it into a module"
            )
        more = {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
        if more:
            found[name] = more
    return found


def _name_of(known: type) -> str:
    with _lock:
        return _names.get(id(known)) or _entered(known, uuid.uuid4().hex)


def _entered(known: type, name: str) -> str:
    _classes[name] = known
    _names[id(known)] = name
    weakref.finalize(known, _left, id(known), name).atexit = False
    return name


def _left(number: int, name: str) -> None:
    del _names[number]
    _foreign.discard(name)


def _made(name: str, make: Callable[..., type], *arguments: Any) -> type:
    """The class, which may be known here, else without its attributes."""
    with _lock:
        known = _classes.get(name)
        if known is None:
            try:
                known = make(*arguments)
            except Exception as error:
                raise CallError(
                    f"The class {arguments[1]} cannot be made in another process, where it gets its attributes last "
                    f"({type(error).__name__}: {error}). Put it into a module, which lanes import."
                ) from error
            _foreign.add(_entered(known, name))
            _homes.add(str(known.__module__))
        return known


def _new_class(metaclass: Any, name: str, bases: tuple[Any, ...], namespace: dict[str, Any]) -> type:
    """As by a class statement, but for what metaclasses and bases that travelled by value do to new classes."""
    resolved = types.resolve_bases(bases)
    for base in resolved:
        if issubclass(type(base), metaclass):
            metaclass = type(base)  # of a NamedTuple: what it makes has another
    maker = next(kind for kind in metaclass.__mro__ if issubclass(kind, type) and id(kind) not in _names)
    body = maker.__prepare__(name, resolved)
    body.update(namespace)
    if resolved is not bases:
        body["__orig_bases__"] = bases
    with _without_hooks(resolved):
        made: type = maker.__new__(metaclass, name, resolved, body)
        maker.__init__(made, name, resolved, body)
    return made


@contextlib.contextmanager
def _without_hooks(bases: tuple[type, ...]) -> Iterator[None]:
    """While an ``__init_subclass__`` that travelled by value only goes on to the next."""
    owners = [
        base for first in bases for base in first.__mro__ if "__init_subclass__" in vars(base) and id(base) in _names
    ]
    hooks = [vars(owner)["__init_subclass__"] for owner in owners]
    for owner in owners:
        _set(owner, classmethod(functools.partial(_next_hook, owner)))
    try:
        yield
    finally:
        for owner, hook in zip(owners, hooks, strict=True):
            _set(owner, hook)


def _set(owner: type, hook: Any) -> None:
    type.__setattr__(owner, "__init_subclass__", hook)


def _next_hook(owner: Any, made: type) -> None:
    super(owner, made).__init_subclass__()


def _filled(made: type, state: tuple[Callable[[type, Any], Any], Any, dict[str, dict[str, Any]]]) -> None:
    if _names[id(made)] in _foreign:
        fill, attributes, members = state
        fill(made, attributes)
        for name, more in members.items():
            vars(made.__members__[name]).update(more)  # type: ignore[attr-defined] # an enumeration
