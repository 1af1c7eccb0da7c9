"""``tidemill status``: what a live run says of itself."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Final
from urllib.parse import urlsplit

from tidemill.app.exit_codes import ExitCode
from tidemill.app.standard_streams import write_out
from tidemill.errors import InputError, OutsideError
from tidemill.printable import lines_printable

__all__ = ["status"]

_WAIT_S: Final = 10
"""A run whose event loop is held says so after two."""
_MOST: Final = 1 << 20
"""Bytes of an answer that are read."""


def status(url: str) -> ExitCode:
    """Print whether the run progresses, what limits it, and how its edges are.

    Raises `InputError` for what is no address, `OutsideError` when no run answers there.
    """
    asked = _page(url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a run is asked itself, never a proxy
    try:
        with opener.open(asked, timeout=_WAIT_S) as answer:
            code, text, by = answer.status, answer.read(_MOST), answer.headers.get("X-Tidemill")
    except urllib.error.HTTPError as error:
        with error:
            code, text, by = error.code, error.read(_MOST), error.headers.get("X-Tidemill")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise OutsideError(
            f"no run answers at {asked}: {getattr(why, 'strerror', None) or why or type(why).__name__}."
        ) from None
    if code not in (200, 503) or by != "run":
        raise OutsideError(f"what answers at {asked} is no run of tidemill: it says {code}.")
    write_out(lines_printable(text.decode("utf-8", "replace")))  # whoever answers may be anybody
    return ExitCode.DONE if code == 200 else ExitCode.FAILED


def _page(url: str) -> str:
    """The page of health at an address."""
    given = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in url
    except ValueError:
        usable = False
    if not usable:
        shown = "what was given, a login in it," if "@" in url else repr(url)
        raise InputError(f"{shown} is no address of a run; give one such as http://127.0.0.1:9464.")
    return f"{parts.scheme}://{parts.netloc}/healthz?verbose"
