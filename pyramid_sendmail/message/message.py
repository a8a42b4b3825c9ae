"""What an application writes: a message, and the files that go with it.

Nothing is verified here: ``send`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..envelope import ReadOnlyDict
from .address import Addresses

__all__ = ['Attachment', 'Message']


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message: its content, or the path that ``send`` reads it from.

    ``filename`` is shown to the reader; None means the last part of ``path``. ``data``: bytes, or
    a str, which is encoded in UTF-8. ``content_type`` is guessed from the name if it is None.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The content of a mail, and its recipients.

    Addresses are a string (one address, or several between commas), an
    ``email.headerregistry.Address``, or a list of these. ``text``, ``html`` or both must be given.
    ``headers`` are any other headers, by name; ``tag`` names the kind of mail for the events.

    Lists and dicts are copied, so later changes of them have no effect. Nothing is verified before
    ``send``.
    """

    subject: str = ''
    to: Addresses = ()
    cc: Addresses = ()
    bcc: Addresses = ()
    reply_to: Addresses = ()
    text: str | None = field(default=None, repr=False)
    html: str | None = field(default=None, repr=False)
    sender: Addresses | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, hash=False)
    attachments: Iterable[Attachment] = ()
    tag: str | None = None

    def __post_init__(self) -> None:
        for name in _LIST_FIELDS:
            value = getattr(self, name)
            kind = type(value)
            if kind in _IMMUTABLE:
                continue
            # A list, as is usual, skips the abstract classes, which cost 3 % of a message.
            if kind is list or (
                isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            ):
                object.__setattr__(self, name, tuple(value))
        if type(self.headers) is not ReadOnlyDict and isinstance(self.headers, Mapping):
            object.__setattr__(self, 'headers', ReadOnlyDict(self.headers))


_NO_HEADERS: Mapping[str, str] = ReadOnlyDict()

_LIST_FIELDS = ('to', 'cc', 'bcc', 'reply_to', 'sender', 'attachments')

_IMMUTABLE = frozenset({str, tuple, type(None)})
