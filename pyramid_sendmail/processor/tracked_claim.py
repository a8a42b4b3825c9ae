"""Claims as those use them that send the mail of a queue processor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zope.interface import implementer

from ..envelope import Envelope, PendingEvent
from ..exceptions import DamagedMail
from ..interfaces import IMailClaim, IMailEventDispatcher
from ..queue.history import printable
from ..queue.ticket import Ticket
from ..sending.wrapped_claim import WrappedClaim
from .run import Run

__all__ = ['DamagedClaim', 'TrackedClaim', 'dispatch_damaged']


@implementer(IMailClaim)
class TrackedClaim(WrappedClaim):
    """A claim that reports to its run when the mail or an event is due again, and when it
    is released without an attempt or with an event that was not dispatched."""

    __slots__ = (
        *('_event_pending', '_run', '_settled', '_ticket'),
        *('envelope', 'interrupted', 'mark_ambiguous', 'todo'),
    )

    def __init__(self, claim: IMailClaim, run: Run, ticket: Ticket) -> None:
        super().__init__(claim)
        self._run = run
        self._ticket = ticket
        self._settled = False
        self._event_pending = bool(claim.pending_events)
        # Constant, and read several times for each mail.
        self.envelope = claim.envelope
        self.todo = claim.todo
        self.interrupted = claim.interrupted
        self.mark_ambiguous = claim.mark_ambiguous

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._settled = True
        self._claim.settle(events, retry_at=retry_at, report=report)
        self._event_pending = report
        if retry_at is not None:
            self._run.due_again(retry_at)

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._claim.retry_events(events, due)
        self._run.due_again(due)

    def put_back(self) -> None:
        """Release the claim of a mail that was throttled."""
        self._settled = True  # its ticket is not to be scanned for
        self.release()
        self._run.put_back(self._ticket)

    def release(self) -> None:
        self._claim.release()
        if self._event_pending:
            self._run.event_rejected()
        if self.todo and not self._settled:
            self._run.claim_released(self._ticket)


@implementer(IMailClaim)
class DamagedClaim:
    """Stands for a damaged file, which is in ``failed/`` already: no method does anything."""

    todo: tuple[str, ...] = ()
    attempt = 0
    interrupted = ''
    ambiguous: tuple[str, ...] = ()
    pending_events: Sequence[PendingEvent] = ()

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.since = envelope.queued_at

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        """A damaged file is never sent."""

    def clear_ambiguous(self) -> None:
        """A damaged file is never ambiguous."""

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        """A damaged file is never attempted."""

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        """There is no mail to record this in."""

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        """The event is dispatched once; the log and ``failed/`` keep the rest."""

    def release(self) -> None:
        """There is no lock."""


def dispatch_damaged(error: DamagedMail, dispatcher: IMailEventDispatcher, *, now: float) -> None:
    """Dispatch the error event of a damaged file. ``now``: epoch seconds."""
    envelope = Envelope(
        id=printable(error.name),
        message_id=printable(error.name),
        sender='',
        recipients=(),
        raw=error.raw,
        queued_at=now,
    )
    event = PendingEvent(
        id=f'{printable(error.name)}-0-error-0',
        kind='error',
        recipients=(),
        attempt=0,
        mailer='',
        reason=f'damaged: {error.reason}',
    )
    dispatcher.dispatch(DamagedClaim(envelope), [event])
