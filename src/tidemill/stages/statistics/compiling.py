"""Kernels made machine code by Numba."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from tidemill.errors import MissingExtra

__all__ = ["Packed", "machine_code"]

Packed = list[dict[str, Any]]
"""Per kernel: ``name``, ``symbol`` in the object code, ``code``."""


def machine_code(sources: Sequence[ModuleType]) -> Packed:
    """Every kernel of the modules, compiled; raises `MissingExtra` without Numba."""
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        raise MissingExtra("numba", "fast", "Compiled kernels") from None
    types = numba.types
    kinds = {
        "n": types.int64,
        "i": types.CPointer(types.int32),
        "q": types.CPointer(types.int64),
        "d": types.CPointer(types.float64),
        "b": types.CPointer(types.uint8),
        "w": types.CPointer(types.int64),
    }
    # Eight equal operations side by side become vector instructions; their order, and so each bit, stays.
    before, numba.config.SLP_VECTORIZE = numba.config.SLP_VECTORIZE, 1
    packed = []
    try:
        helpers: dict[str, Any] = {"prefetch": _prefetch()}
        for module in sources:
            scope = {**vars(module), **helpers}
            for fn in module.HELPERS:
                made = numba.njit(error_model="numpy", forceinline=True)(_in_scope(fn, scope))
                scope[fn.__name__] = helpers[fn.__name__] = made
            for name, (fn, arguments) in module.KERNELS.items():
                signature = types.void(*(kinds[letter] for letter in arguments))
                made = numba.cfunc(signature, error_model="numpy")(_in_scope(fn, scope))
                code = bytes(made._library._get_compiled_object())
                packed.append({"name": name, "symbol": made._wrapper_name, "code": code})
    finally:
        numba.config.SLP_VECTORIZE = before
    return packed


def _prefetch() -> Any:
    """The processor's own instruction in place of `folds.prefetch`."""
    ir: Any = importlib.import_module("llvmlite.ir")
    extending: Any = importlib.import_module("numba.extending")
    cgutils: Any = importlib.import_module("numba.core.cgutils")
    types: Any = importlib.import_module("numba").types

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def prefetch(_typing: Any, array: Any, _at: Any) -> Any:
        def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
            place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
            builder.call(function, [place, word(0), word(3), word(1)])  # to be read, kept near, as data
            return context.get_dummy_value()

        return types.void(array, types.int64), code

    return prefetch


def _in_scope(fn: Callable[..., Any], scope: dict[str, Any]) -> Callable[..., Any]:
    """The function, calling compiled helpers where the source calls plain ones."""
    return FunctionType(fn.__code__, scope, fn.__name__)
