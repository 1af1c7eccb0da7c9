"""Secrets that a server was shown, taken out of what it says."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

__all__ = ["Hidden"]

_SHORTEST: Final = 4
"""Characters below which a text keeps nothing secret, and stands in many a word."""
_SHOWN: Final = "***"


class Hidden:
    """Replaces each of these texts, and what is behind its first word, in every form in which a server may repeat it.

    >>> Hidden(["Bearer s3cret/token"]).hide('{"error": "s3cret%2Ftoken and s3cret/token are no Bearer tokens"}')
    '{"error": "*** and *** are no Bearer tokens"}'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for part in (secret, secret.partition(" ")[2]) for form in _forms(part)}
        self._forms = sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)

    def hide(self, said: str) -> str:
        for form in self._forms:
            said = said.replace(form, _SHOWN)
        return said


def _forms(secret: str) -> Iterator[str]:
    # A header beyond Latin letters goes as UTF-8.
    as_sent = secret.encode("latin-1", "replace").decode("utf-8", "replace")
    for text in {secret, as_sent}:
        yield from (text, quote(text, safe=""), quote(text), quote_plus(text), html.escape(text))
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        yield base64.b64encode(text.encode("utf-8", "replace")).decode()
