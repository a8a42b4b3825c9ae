"""Claims of direct delivery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zope.interface import implementer

from ..envelope import PendingEvent
from ..events.dispatcher import EVENT_RETRY_DELAY
from ..interfaces import IMailClaim
from ..sending.wrapped_claim import WrappedClaim

__all__ = ['DirectClaim']

TICKET_RESOLUTION = 0.001
"""Seconds by which due events may look due later: a ticket's time has milliseconds."""


@implementer(IMailClaim)
class DirectClaim(WrappedClaim):
    """A claim that has the queue scanned when one of its events is due again.

    ``scan(at)``: called with the time of the scan, in epoch seconds. ``throttled()``: called when
    it is released because the mail was throttled. ``clock``: epoch seconds.
    """

    def __init__(
        self,
        claim: IMailClaim,
        scan: Callable[[float], None],
        throttled: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(claim)
        self._scan = scan
        self._throttled = throttled
        self._clock = clock
        self._reporting = False
        self.envelope = claim.envelope
        self.todo = claim.todo
        self.interrupted = claim.interrupted

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        self._claim.mark_ambiguous(recipients)

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._claim.settle(events, retry_at=retry_at, report=report)
        self._reporting = report

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._claim.retry_events(events, due)
        self._scan(due + TICKET_RESOLUTION)

    def release(self) -> None:
        self._claim.release()
        if self._reporting:
            # The dispatcher's backlog was full, or an acknowledged event could not be written.
            self._scan(self._clock() + EVENT_RETRY_DELAY)

    def put_back(self) -> None:
        """Release the claim of a mail that was throttled."""
        self.release()
        self._throttled()
