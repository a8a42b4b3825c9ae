"""A message as bytes, before it has an envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .address import Mailbox, comparison_key

__all__ = ['MIME_VERSION', 'Frozen', 'unique_addresses']


@dataclass(slots=True)
class Frozen:
    """A message as bytes, and what it says about its envelope."""

    raw: bytes
    message_id: str
    sender: str
    recipients: tuple[str, ...]
    subject: str
    tag: str | None
    unverified: bytes
    """The headers and parts that contain application data: ``verify`` reads them."""
    names: list[str]
    """The names of the headers in ``unverified``."""
    eight_bit: bool = False
    """Whether the body holds signed content that is not ASCII, and has to leave as it is."""


def unique_addresses(found: Sequence[Mailbox]) -> tuple[str, ...]:
    """Return the addresses of mailboxes, each once, in their order."""
    if len(found) == 1:
        return (found[0].address,)
    addresses: dict[str, str] = {}
    for mailbox in found:
        addresses.setdefault(comparison_key(mailbox.address), mailbox.address)
    return tuple(addresses.values())


MIME_VERSION = b'MIME-Version: 1.0\r\n'
