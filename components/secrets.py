"""What is secret stays out of everything that is written: settings refuse it, messages and tags lose it.

A secret is known by its form (a password inside an address, a key of a known make) or by its place: the value of an
environment variable whose name says so.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

MASK = "***"

SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|AUTH_STRING|(?:ACCESS|API|PRIVATE|SIGNING)_KEY")
_LEAST = 8  # characters: a shorter value would take ordinary words with it
_FORMS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#@'\"]+)@"  # https://user:password@host
    r"|\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"  # GitHub, GitLab
    r"|(?<=[?&])(?:token|access_token|api_key|sig|signature|password|x-amz-signature)=[^&\s'\"]+",
    re.IGNORECASE,
)


def _environment() -> list[str]:
    """Values of variables whose name says secret, the longest first: one may contain another."""
    values = {
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name.upper()) and not name.upper().endswith("_FILE") and len(value) >= _LEAST
    }
    for value in list(values):
        user, separator, password = value.partition(":")
        if separator and user and len(password) >= _LEAST:
            values.add(password)
    return sorted(values, key=len, reverse=True)


def contains_secret(text: str) -> bool:
    """Whether a secret stands in the text."""
    return redact(text) != text


def redact(text: str) -> str:
    """The text with every secret replaced by `***`."""
    for value in _environment():
        text = text.replace(value, MASK)
    return _FORMS.sub(lambda found: f"{found['scheme']}{MASK}@" if found["scheme"] else MASK, text)


def redact_values(value: Any) -> Any:
    """A JSON-able value with every secret in its texts replaced."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(inner) for inner in value]
    return value


class RedactingFilter(logging.Filter):
    """Takes secrets out of a handler's records."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, ()
        return True


def split_userinfo(url: str) -> tuple[str, str | None, str | None]:
    """An address without its user and password, the user, the password.

    >>> split_userinfo("https://ann:pw@host:5000/x")
    ('https://host:5000/x', 'ann', 'pw')
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None, None
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
    return bare, unquote(user) or None, unquote(password) or None
