"""Kernels made machine code by Numba."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from tidemill.errors import MissingExtra

__all__ = ["Packed", "intrinsics", "machine_code", "with_helpers"]

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
        helpers = intrinsics()
        for module in sources:
            scope = with_helpers(module, helpers)
            for name, (fn, arguments) in module.KERNELS.items():
                signature = types.void(*(kinds[letter] for letter in arguments))
                made = numba.cfunc(signature, error_model="numpy")(_in_scope(fn, scope))
                code = bytes(made._library._get_compiled_object())
                packed.append({"name": name, "symbol": made._wrapper_name, "code": code})
    finally:
        numba.config.SLP_VECTORIZE = before
    return packed


def with_helpers(module: ModuleType, helpers: dict[str, Any]) -> dict[str, Any]:
    """What functions of the module see when compiled; its own helpers are added to those there are."""
    numba: Any = importlib.import_module("numba")
    scope = {**vars(module), **helpers}
    for fn in module.HELPERS:
        made = numba.njit(error_model="numpy", forceinline=True)(_in_scope(fn, scope))
        scope[fn.__name__] = helpers[fn.__name__] = made
    return scope


def intrinsics() -> dict[str, Any]:
    """What stands in place of functions of `folds` that do nothing where interpreted."""
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

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def settled(_typing: Any, _x: Any) -> Any:
        def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType()])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.arithmetic.fence.f64")
            return builder.call(function, arguments)

        return types.float64(types.float64), code

    return {"prefetch": prefetch, "settled": settled}


def _in_scope(fn: Callable[..., Any], scope: dict[str, Any]) -> Callable[..., Any]:
    """The function, calling compiled helpers where the source calls plain ones."""
    return FunctionType(fn.__code__, scope, fn.__name__)
