"""Texts of the user's in which ``${env:NAME}`` and ``${file:PATH}`` stand for what is kept elsewhere: passwords, tokens."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

from tidemill import files
from tidemill.errors import InputError, PlanError

__all__ = ["SecretText", "refers"]

_REFERENCE: Final = re.compile(r"\$\{(env|file):([^{}]+)\}")
_LIKE_ONE: Final = re.compile(r"\$\{\w*:")
_LIMIT: Final = 64 << 10
"""Bytes of a file that is taken for a secret."""
_SHORT: Final = 4
"""Characters below which a value keeps nothing secret, and stands in many a word."""
_SEPARATORS: Final = re.compile(r"([\s'\\])")
_FIRST_TOKEN: Final = 0xE000
"""Of the characters that Unicode leaves to programs: no address has one."""
_log = logging.getLogger("tidemill")


def refers(text: str) -> bool:
    """Whether there is a reference in it, or what was meant to be one.

    >>> refers("mqtt://${env:BROKER}"), refers("${evn:BROKER}"), refers("pa$$word"), refers("${HOME}")
    (True, True, False, False)
    """
    return "${" in text and _LIKE_ONE.search(text) is not None


class SecretText:
    """An option as it was written. What it refers to is looked up by `resolved` and `in_url`, at each call, and kept nowhere:
    who holds a `SecretText`, shows, pickles or saves it has the references alone. Nor is a secret that was written out shown.

    ``option`` names it in messages: ``"password= of MQTT"``. Raises `PlanError` for a reference that is none.

    >>> import os
    >>> os.environ["PLANT_PASSWORD"] = "a/b c"
    >>> url = SecretText("mqtts://mill:${env:PLANT_PASSWORD}@broker.plant", "the address of MQTT")
    >>> url
    SecretText(the address of MQTT, refers to ${env:PLANT_PASSWORD})
    >>> url.in_url()
    'mqtts://mill:a%2Fb%20c@broker.plant'
    """

    def __init__(self, text: str, option: str) -> None:
        if len(_LIKE_ONE.findall(text)) != len(_REFERENCE.findall(text)):
            raise PlanError(
                f"{option} refers to something in a way that is not known; write ${{env:NAME}} for a variable of the "
                "environment, ${file:PATH} for the content of a file."
            )
        self._text = text
        self.option = option

    def __repr__(self) -> str:
        references = ", ".join(match[0] for match in _REFERENCE.finditer(self._text))
        return f"SecretText({self.option}, {f'refers to {references}' if references else 'not shown'})"

    @property
    def refers(self) -> bool:
        """Whether anything of it is kept elsewhere."""
        return _REFERENCE.search(self._text) is not None

    @property
    def whole(self) -> bool:
        """Whether all of it is one reference, so that nothing is known of it before it is looked up."""
        return _REFERENCE.fullmatch(self._text) is not None

    # -- without a look ----------------------------------------------------------------------------------

    def standing_in(self, stand_in: str) -> str:
        """The text with ``stand_in`` for each reference, to see whether the rest is well formed."""
        return _REFERENCE.sub(lambda _: stand_in, self._text)

    def shown(self, show: Callable[[str], str]) -> str:
        """What ``show`` leaves of it, references as they were written: what they hold cannot confuse ``show``."""
        references: list[str] = []

        def token(match: re.Match[str]) -> str:
            references.append(match[0])
            return chr(_FIRST_TOKEN + len(references) - 1)

        if self.whole:
            return self._text
        left = show(_REFERENCE.sub(token, self._text))
        for number, reference in enumerate(references):
            left = left.replace(chr(_FIRST_TOKEN + number), reference)
        return left

    def parted(self, at: str, *, behind: str) -> tuple[str, str]:
        """The text before and after the first ``at`` that is behind ``behind``, if that is there; marks in references are none.

        >>> SecretText("mqtt://mill:${file:/run/mqtt}@broker/plant/{sensor}", "").parted("/", behind="://")
        ('mqtt://mill:${file:/run/mqtt}@broker', 'plant/{sensor}')
        """
        covered = _REFERENCE.sub(lambda match: "$" * len(match[0]), self._text)
        start = covered.find(behind)
        place = covered.find(at, start + len(behind) if start >= 0 else 0)
        return (self._text, "") if place < 0 else (self._text[:place], self._text[place + len(at) :])

    # -- looked up ---------------------------------------------------------------------------------------

    def check(self) -> str:
        """`resolved`, at start: a file that all may read is warned of."""
        text = self.resolved()
        for kind, name in self._references():
            if kind == "file" and files.is_readable_by_all(name):
                told = "%s: every user of this machine may read %s; take that away with: chmod o-r %s"
                _log.warning(told, self.option, name, name, extra={"option": self.option})
        return text

    def resolved(self) -> str:
        """The text with what it refers to. Reads files: blocks for a moment. Raises `InputError`."""
        return self._with(lambda value: value)

    def in_url(self) -> str:
        """The same for a URL, of which each reference is one part, encoded here; or it is the whole URL, as it is."""
        return self.resolved() if self.whole else self._with(lambda value: quote(value, safe=""))

    def in_words(self) -> str:
        """The same for words as libpq reads them, ``name=value``, where each reference is in one value."""
        return self.resolved() if self.whole else self._with(lambda value: _SEPARATORS.sub(r"\\\1", value))

    def hidden(self, said: str) -> str:
        """What somebody else has said, such as a server, with references in place of what they stand for."""
        for kind, name in self._references():
            try:
                value = self._looked_up(kind, name)
            except InputError:
                continue
            if len(value) < _SHORT:
                continue
            for form in {value, quote(value, safe=""), _SEPARATORS.sub(r"\\\1", value)}:
                said = said.replace(form, f"${{{kind}:{name}}}")
        return said

    def _with(self, form: Callable[[str], str]) -> str:
        return _REFERENCE.sub(lambda match: form(self._looked_up(match[1], match[2])), self._text)

    def _references(self) -> Iterator[tuple[str, str]]:
        return ((match[1], match[2]) for match in _REFERENCE.finditer(self._text))

    def _looked_up(self, kind: str, name: str) -> str:
        value = self._variable(name) if kind == "env" else self._content(name)
        if not value:
            raise InputError(f"{self.option} refers to ${{{kind}:{name}}}, which is empty.")
        if "\0" in value or "\n" in value or "\r" in value:
            raise InputError(f"{self.option} refers to ${{{kind}:{name}}}, which has more than one line.")
        return value

    def _variable(self, name: str) -> str:
        value = os.environ.get(name)
        if value is None:
            raise InputError(
                f"{self.option} refers to ${{env:{name}}}, and the environment has no {name}; set it where the run is started."
            )
        return value

    def _content(self, name: str) -> str:
        place = files.absolute(name)
        try:
            data = files.head(place, _LIMIT + 1)
            text = data.decode()
        except InputError as error:
            raise InputError(f"{self.option} refers to ${{file:{name}}}, and {error}") from None
        except UnicodeDecodeError:
            raise InputError(f"{self.option} refers to ${{file:{name}}}, which is not UTF-8 text.") from None
        if len(data) > _LIMIT:
            raise InputError(f"{self.option} refers to ${{file:{name}}}, which is longer than {_LIMIT} bytes.")
        return text.removesuffix("\n").removesuffix("\r")
