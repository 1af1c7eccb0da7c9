"""What functions say of their parameters: from Python 3.14 on, to ask may raise where a name stands for nothing at run time."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, ForwardRef

__all__ = ["annotations_as_text", "annotations_of", "signature_of"]

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
        """By parameter, and ``return``; as text where they were written so, or a name stands for nothing, such as one that is
        imported under ``if TYPE_CHECKING``.

        >>> def doubled(frame: "pl.DataFrame") -> "pl.DataFrame": ...
        >>> [text.strip("'") for text in annotations_of(doubled).values()]
        ['pl.DataFrame', 'pl.DataFrame']
        """
        found = get_annotations(fn, format=Format.FORWARDREF)
        return {name: one.__forward_arg__ if isinstance(one, ForwardRef) else one for name, one in found.items()}

    def annotations_as_text(fn: Callable[..., Any]) -> dict[str, str]:
        """The same as text, which can be sent to another process whatever it is."""
        return get_annotations(fn, format=Format.STRING)

    def signature_of(fn: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature:
        """As `inspect.signature`; its annotations perhaps as text."""
        return inspect.signature(fn, follow_wrapped=follow_wrapped, annotation_format=Format.STRING)

else:

    def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
        """By parameter, and ``return``; as text where they were written so.

        >>> def doubled(frame: "pl.DataFrame") -> "pl.DataFrame": ...
        >>> [text.strip("'") for text in annotations_of(doubled).values()]
        ['pl.DataFrame', 'pl.DataFrame']
        """
        return dict(getattr(fn, "__annotations__", {}))

    def annotations_as_text(fn: Callable[..., Any]) -> dict[str, str]:
        """The same as text, which can be sent to another process whatever it is."""
        return {name: str(one) for name, one in annotations_of(fn).items()}

    def signature_of(fn: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature:
        """As `inspect.signature`; its annotations perhaps as text."""
        return inspect.signature(fn, follow_wrapped=follow_wrapped)
