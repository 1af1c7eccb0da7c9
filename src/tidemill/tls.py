"""TLS: whom to trust, and what to show of oneself."""

from __future__ import annotations

import os
import ssl
from typing import Final

from tidemill import files
from tidemill.errors import InputError, PlanError
from tidemill.secret import SecretText

__all__ = ["client_context", "no_tls", "passphrase", "server_context"]

PathLike = str | os.PathLike[str]

_NOT_GIVEN: Final = b"not a question"
"""Instead of a passphrase: without any, OpenSSL would ask at the terminal."""
_LONGEST: Final = 1_024
"""Bytes of a passphrase, of OpenSSL's."""


def passphrase(text: str | None, of: str) -> SecretText | None:
    """The option ``cert_password`` of a source or a sink."""
    if text == "":
        raise PlanError(f"cert_password= of {of} is empty; leave it out for a private key without a passphrase.")
    return None if text is None else SecretText(text, f"cert_password= of {of}")


def client_context(
    ca: PathLike | None = None,
    cert: PathLike | None = None,
    cert_key: PathLike | None = None,
    cert_password: SecretText | None = None,
) -> ssl.SSLContext:
    """Trust the certificates in ``ca`` and no others (default: those that the system trusts), with host names checked;
    show ``cert``, whose private key is in the same file or in ``cert_key``, and is opened by ``cert_password`` if it has a
    passphrase. Blocks for a moment.

    Raises `PlanError` for a ``cert_key`` or ``cert_password`` without ``cert``, `InputError` for a file that cannot be used.
    """
    _require_certificate(cert, cert_key, cert_password)
    made = ssl.create_default_context()
    if ca is not None:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which trusts nobody yet
    for option, path in (("ca", ca), ("cert", cert), ("cert_key", cert_key)):
        if path is not None and not files.absolute(path).is_file():
            raise InputError(f"there is no file {path} ({option}=).")
    if ca is not None:
        _trust(made, ca)
    if cert is not None:
        _load(made, cert, cert_key, cert_password)
    return made


def server_context(
    cert: PathLike | None = None,
    cert_key: PathLike | None = None,
    cert_password: SecretText | None = None,
    ca: PathLike | None = None,
) -> ssl.SSLContext | None:
    """Show ``cert``, as in `client_context`, to whoever connects, and with ``ca`` have them show one that it has signed; None
    without ``cert``. Blocks for a moment.

    Raises `PlanError` for a ``cert_key`` or ``cert_password`` without ``cert``, `InputError` for a file that cannot be used.
    """
    _require_certificate(cert, cert_key, cert_password)
    if cert is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(made, cert, cert_key, cert_password)
    if ca is not None:
        made.verify_mode = ssl.CERT_REQUIRED
        _trust(made, ca)
    return made


def _require_certificate(cert: PathLike | None, cert_key: PathLike | None, cert_password: SecretText | None) -> None:
    if cert is None and cert_key is not None:
        raise PlanError("cert_key= is the private key of the certificate cert=, which is not given.")
    if cert is None and cert_password is not None:
        raise PlanError("cert_password= is for the private key of the certificate cert=, which is not given.")


def _load(made: ssl.SSLContext, cert: PathLike, cert_key: PathLike | None, cert_password: SecretText | None) -> None:
    key = files.absolute(cert_key) if cert_key is not None else None
    given = _NOT_GIVEN if cert_password is None else cert_password.resolved().encode("utf-8", "surrogateescape")
    if len(given) > _LONGEST:
        raise InputError(f"cert_password= has more than {_LONGEST} bytes, which no private key's passphrase has.")
    asked = False

    def password() -> bytes:
        nonlocal asked
        asked = True
        return given

    try:
        made.load_cert_chain(files.absolute(cert), key, password)
    except (ssl.SSLError, OSError) as error:
        where = cert if cert_key in (None, cert) else f"{cert} (cert=) and {cert_key} (cert_key=)"
        why = _said(error)
        if asked:
            why = (
                "cert_password= is wrong"
                if cert_password
                else "the key has a passphrase, and there is no cert_password="
            )
        raise InputError(f"{where} cannot be used as a certificate with its private key: {why}.") from None


def _trust(made: ssl.SSLContext, ca: PathLike) -> None:
    try:
        made.load_verify_locations(files.absolute(ca))
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"{ca} (ca=) holds no certificates in PEM form that can be read: {_said(error)}.") from None


def no_tls(server: object, error: ssl.SSLError) -> str:
    """What is told when TLS with a server does not come about, without a full stop."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return (
            f"{server} shows a certificate that is not trusted: {why}. Give ca= the certificate of who has signed it, and the "
            "name that is in it in the address"
        )
    said = (error.reason or str(error)).replace("_", " ").lower()
    return f"{server} refuses TLS: {said}; is this its port for TLS, and does it want a cert=?"


def _said(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).rstrip(".")
