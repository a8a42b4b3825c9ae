"""What a commit hands over to the sending thread of direct delivery."""

from __future__ import annotations

import threading
from typing import NamedTuple

from ..queue.ticket import Ticket

__all__ = ['HandedOver']


class HandedOver(NamedTuple):
    """The mail of one transaction. ``size``: its bytes that are nowhere but in memory. ``since``:
    by the monotonic clock."""

    tickets: tuple[Ticket, ...]
    answered: threading.Event
    size: int
    since: float
