"""Parses a message of bytes within a bound of time and depth.

The standard library's parser asks each part for its type and its boundary; here they are read in
linear time.
"""

from __future__ import annotations

from email.message import Message as AnyMessage
from email.parser import BytesParser
from email.policy import compat32
from functools import partial
from typing import Any

from ..exceptions import MessageError
from .foreign import content_type
from .parameters import parameter

__all__ = ['parse_message']

MAX_DEPTH = 20
"""Parts within parts: the parser looks at each line once for each."""

MAX_LINES = 500_000

MAX_PARTS = 5_000


def parse_message(data: bytes) -> AnyMessage:
    """Return the message that ``data`` holds. Raises MessageError where it exceeds a bound."""
    if data.count(b'\n') + data.count(b'\r') > 2 * MAX_LINES:
        raise MessageError(f'its more than {MAX_LINES} lines are too many to be encoded anew')
    return BytesParser(partial(_BoundedPart, [0]), policy=compat32).parsebytes(data)


class _BoundedPart(AnyMessage):
    """A part that counts itself. ``counter``: the number of parts so far."""

    def __init__(self, counter: list[int], policy: Any = compat32) -> None:
        super().__init__(policy)
        self._counter = counter
        self._depth = 0

    def attach(self, payload: Any) -> None:
        payload._depth = self._depth + 1
        self._counter[0] += 1
        if payload._depth > MAX_DEPTH or self._counter[0] > MAX_PARTS:
            raise MessageError(
                f'its parts are more than {MAX_PARTS}, or nested more than {MAX_DEPTH} deep'
            )
        super().attach(payload)

    def get_content_type(self) -> str:
        return content_type(self)[0]

    def get_content_maintype(self) -> str:
        return content_type(self)[0].partition('/')[0]

    def get_content_subtype(self) -> str:
        return content_type(self)[0].partition('/')[2]

    def get_boundary(self, failobj: Any = None) -> Any:
        return parameter(content_type(self)[1], 'boundary') or failobj
