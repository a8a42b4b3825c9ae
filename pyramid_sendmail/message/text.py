"""What is text: a str, or a subclass of str that is the text it shows."""

from __future__ import annotations

from enum import Enum

from ..exceptions import MessageError

__all__ = ['plain_text']


def plain_text(value: object, where: str, shown: str) -> str:
    """Return the text of a str or of a subclass, as a str itself.

    The methods of a subclass may differ: markupsafe.Markup escapes what it is joined with, and the
    ``str()`` of an Enum names its class. A translation string is an id until it is translated, and
    a lazy string is another text than its ``str()``: both are refused. ``shown``: the value for the
    text of the MessageError, and ``where`` the argument that it names.
    """
    if type(value) is str:
        return value
    if not isinstance(value, str):
        raise MessageError(f'{where}: {shown} is not a string; {_remedy(value)}')
    text = str.__str__(value)
    # That of Pyramid (translationstring) and that of Zope (zope.i18nmessageid).
    if hasattr(value, 'domain') and hasattr(value, 'mapping'):
        raise MessageError(
            f'{where}: {shown} is a translation string, which nothing translates here; give '
            'request.localizer.translate() of it'
        )
    if not isinstance(value, Enum) and str(value) != text:
        raise MessageError(
            f'{where}: {shown} is a {type(value).__name__} whose str() is another text; give str() '
            'of it'
        )
    return text


def _remedy(value: object) -> str:
    if callable(getattr(value, 'render', None)):
        return 'call its render()'
    kind = type(value)
    is_textual = kind.__str__ is not object.__str__ and kind.__module__ != 'builtins'
    # A lazy string of another library, or a path; not None, a number or bytes.
    return 'give str() of it' if is_textual else 'give a str'
