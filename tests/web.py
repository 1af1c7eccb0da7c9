"""Asking a page of a run, whatever it answers."""

from __future__ import annotations

import urllib.error
import urllib.request


def asked(url: str) -> tuple[int, str]:
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
