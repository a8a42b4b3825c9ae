"""The text of a mail on its way out, by DATA."""

from __future__ import annotations

from collections.abc import Iterator

from ....envelope import Envelope
from .dot_stuffing import stuffed, stuffed_text

__all__ = ['OutgoingText']

LAST_BYTES = 16_384
"""The final dot leaves with so many bytes of the text: one packet for a small mail."""


class OutgoingText:
    """``at_end``: only the part with the final dot is left.

    The constructor and ``next_part`` raise what reading the text raises.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._parts: Iterator[bytes] = iter(())
        self._following: bytes | None = None
        if envelope.size <= LAST_BYTES:
            self._part = stuffed_text(envelope)
        else:
            self._parts = stuffed(envelope.blocks(), has_dots=envelope.has_dots)
            self._part = next(self._parts)
            self._look_ahead()

    @property
    def at_end(self) -> bool:
        return self._following is None

    def next_part(self) -> bytes:
        """Return the next part of the text."""
        part = self._part
        if self._following is not None:
            self._part = self._following
            self._look_ahead()
        return part

    def _look_ahead(self) -> None:
        self._following = next(self._parts, None)
        if self._following is None and len(self._part) > LAST_BYTES:
            self._part, self._following = self._part[:-LAST_BYTES], self._part[-LAST_BYTES:]
            self._parts = iter(())
