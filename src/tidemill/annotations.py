"""What functions say of their parameters: from Python 3.14 on, to ask may raise where a name stands for nothing at run time."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, ForwardRef

__all__ = ["annotations_of", "signature_of"]

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def _asked(fn: Callable[..., Any]) -> Mapping[str, Any]:
        return get_annotations(fn, format=Format.FORWARDREF)

    def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
        """The signature of a function, its annotations perhaps as names."""
        return inspect.signature(fn, annotation_format=Format.FORWARDREF)

else:

    def _asked(fn: Callable[..., Any]) -> Mapping[str, Any]:
        return getattr(fn, "__annotations__", {})

    def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
        """The signature of a function, its annotations perhaps as names."""
        return inspect.signature(fn)


def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """By parameter, and ``return``; as text where they were written so, or a name stands for nothing, such as one that is imported
    under ``if TYPE_CHECKING``.

    >>> def doubled(frame: "pl.DataFrame") -> "pl.DataFrame": ...
    >>> [text.strip("'") for text in annotations_of(doubled).values()]
    ['pl.DataFrame', 'pl.DataFrame']
    """
    return {name: one.__forward_arg__ if isinstance(one, ForwardRef) else one for name, one in _asked(fn).items()}
