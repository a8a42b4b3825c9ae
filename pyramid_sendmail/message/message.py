"""The message: what an application writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType

from .address import Addresses
from .attachment import Attachment

__all__ = ['Message']


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What an application wants to say, and to whom.

    Addresses are a string (one, or several between commas), an
    ``email.headerregistry.Address``, or a list of these. ``text``, ``html`` or both must be given.
    ``headers`` are any others, by name; ``tag`` names the kind of mail for the events.

    Nothing is checked before ``send``; whatever lists and dicts were given are copied here.
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
        for name, kind in zip(_MANY, map(type, _many(self)), strict=True):
            if kind in _FIXED:
                continue
            value = getattr(self, name)
            if kind is list or (
                isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            ):
                object.__setattr__(self, name, tuple(value))
        if type(self.headers) is not MappingProxyType and isinstance(self.headers, Mapping):
            object.__setattr__(self, 'headers', MappingProxyType(dict(self.headers)))


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


_MANY = ('to', 'cc', 'bcc', 'reply_to', 'sender', 'attachments')
"""What a Message may be given as a list."""

_many = attrgetter(*_MANY)


_FIXED = frozenset({str, tuple, type(None)})
"""Types of that which nobody can change, and which need not be copied."""
