"""The text of a setting, as an ini file or Python code gives it."""

from __future__ import annotations

import os

from pyramid.exceptions import ConfigurationError

__all__ = ['text_of']

_SWITCHES = (
    *('mail.tls', 'mail.ssl', 'mail.direct_wait'),
    *('mail.rate', 'mail.keep_failed', 'mail.queue_sync', 'mail.processor'),  # False means 'off'
)
"""The settings for which Python code may give True or False."""

_BYTE_ORDER_MARK = '\ufeff'


def text_of(name: str, value: object) -> str:
    """Return a value as an ini file would have it; '' for None."""
    if value is None:
        return ''
    if isinstance(value, bool) and name in _SWITCHES:
        return 'true' if value else 'off'
    if isinstance(value, str):
        # Of a member of an Enum, too, which writes itself otherwise.
        text = str.__str__(value).removeprefix(_BYTE_ORDER_MARK)
        # An ini file is stripped already. In Python code the blanks of a password are meant.
        return text if name == 'mail.password' else text.strip()
    if isinstance(value, list | tuple):
        return ' '.join(text_of(name, item) for item in value)
    if isinstance(value, int | float | os.PathLike) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f'{name} is of the type {type(value).__name__}: give it as a str')
