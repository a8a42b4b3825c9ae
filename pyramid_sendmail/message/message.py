"""What an application writes: a message, and the files that go with it.

Nothing is verified here: ``send`` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar, cast

from ..envelope import ReadOnlyDict
from .address import Addresses

__all__ = ['Attachment', 'Message']


_CALLED_HERE = {
    'recipients': 'write to=, where several are a list',
    'body': 'write text=',
    'extra_headers': 'write headers=',
    'from_': 'write sender=',
    'from_email': 'write sender=',
    'disposition': 'leave it out: a picture that html refers to by its content_id is inline',
    'transfer_encoding': 'leave it out: the encoding is chosen by the content',
}
"""Arguments of other packages, and what to write here."""

_Value = TypeVar('_Value')


def _with_remedies(kind: type[_Value]) -> type[_Value]:
    """Have the constructor say what to write for an argument as pyramid_mailer calls it."""
    construct = cast(Callable[..., None], kind.__init__)

    @wraps(construct)
    def __init__(self: _Value, *arguments: object, **named: object) -> None:
        try:
            construct(self, *arguments, **named)
        except TypeError as error:
            remedies = [f'{name}=: {_CALLED_HERE[name]}' for name in named if name in _CALLED_HERE]
            if not remedies and arguments and kind is Message:
                remedies = ['its arguments have names: Message(subject=..., to=..., text=...)']
            if remedies:
                raise TypeError(f'{kind.__name__}: {"; ".join(remedies)}') from error
            raise

    kind.__init__ = __init__  # type: ignore[assignment]
    return kind


@_with_remedies
@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message: its content, or the path that ``send`` reads it from.

    ``filename`` is shown to the reader; None means the last part of ``path``. ``data``: bytes, or
    a str, which is encoded in UTF-8. ``path``: absolute, or an asset of a package,
    ``myapp:static/logo.png``. ``content_type`` is guessed from the name if it is None.
    ``content_id``: the picture's name in ``<img src="cid:...">``; a file that html does not refer
    to is an ordinary attachment.
    """

    filename: str | None
    data: bytes | str | None = field(default=None, repr=False)
    path: str | os.PathLike[str] | None = None
    content_type: str | None = None
    content_id: str | None = None

    def __post_init__(self) -> None:
        data: object = self.data
        if isinstance(data, bytearray | memoryview):
            object.__setattr__(self, 'data', bytes(data))


@_with_remedies
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The content of a mail, and its recipients.

    Addresses are a string, an ``Address``, or a list, which may also hold pairs of a name and an
    address: ``[('Ann', 'ann@example.org')]``. A string is one address, so that nothing typed into a
    form adds a recipient. ``text``, ``html`` or both must be given. ``headers`` are any other
    headers, by name; those of addresses take what ``to`` takes. ``tag`` names the kind of mail for
    the events.

    None for ``cc``, ``bcc``, ``reply_to``, ``headers`` and ``attachments`` is as good as nothing.
    Lists and dicts are copied, so later changes of them have no effect. Nothing is verified before
    ``send``.
    """

    subject: str = ''
    to: Addresses = ()
    cc: Addresses | None = ()
    bcc: Addresses | None = ()
    reply_to: Addresses | None = ()
    text: str | None = field(default=None, repr=False)
    html: str | None = field(default=None, repr=False)
    sender: Addresses | None = None
    headers: Mapping[str, Addresses] | None = field(default_factory=lambda: _NO_HEADERS, hash=False)
    attachments: Iterable[Attachment] | None = ()
    tag: str | None = None

    def __post_init__(self) -> None:
        for name in _LIST_FIELDS:
            value = getattr(self, name)
            kind = type(value)
            if value is None and name in _OPTIONAL_LISTS:
                object.__setattr__(self, name, ())
            if kind in _IMMUTABLE:
                continue
            # A list, as is usual, skips the abstract classes, which cost 3 % of a message.
            if kind is list or (
                isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            ):
                object.__setattr__(self, name, tuple(value))
        if self.headers is None:
            object.__setattr__(self, 'headers', _NO_HEADERS)
        elif type(self.headers) is not ReadOnlyDict and isinstance(self.headers, Mapping):
            copied = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in self.headers.items()
            }
            object.__setattr__(self, 'headers', ReadOnlyDict(copied))


_NO_HEADERS: Mapping[str, Addresses] = ReadOnlyDict()

_LIST_FIELDS = ('to', 'cc', 'bcc', 'reply_to', 'sender', 'attachments')

_OPTIONAL_LISTS = frozenset({'cc', 'bcc', 'reply_to', 'attachments'})
"""Not ``to``, where None is a recipient that is not known."""

_IMMUTABLE = frozenset({str, tuple, type(None)})
