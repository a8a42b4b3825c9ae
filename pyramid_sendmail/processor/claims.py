"""Claims of due mail, one by one, for those who send it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Hashable, Iterator

from ..exceptions import DamagedMail, QueueError
from ..interfaces import IMailClaim, IMailEventDispatcher, IScannableQueue
from ..queue.history import printable
from ..queue.ticket import Ticket
from ..sending.outcome import report_settled
from .run import Run
from .tracked_claim import TrackedClaim, dispatch_damaged

__all__ = ['Claimer', 'DueClaims']

log = logging.getLogger(__name__)

SINGLE_FILE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EIO})
"""Errors of one file that say nothing about the other files."""

SYNC_MAILS = 100
"""Mails from a delivery to the sync of the folder that it left, at most."""


class Claimer:
    """Claims mail for a run. ``clock``: epoch seconds."""

    def __init__(
        self,
        run: Run,
        queue: IScannableQueue,
        dispatcher: IMailEventDispatcher,
        clock: Callable[[], float],
    ) -> None:
        self.run = run
        self.clock = clock
        self._queue = queue
        self._dispatcher = dispatcher

    def claim(self, ticket: Ticket, *, settled: bool = False) -> TrackedClaim | None:
        """Return a claim, or None. A damaged file becomes an error event; a file that cannot be
        read stays where it is, and the other mail is sent."""
        try:
            claim = self._queue.claim(ticket, settled=settled)
            return None if claim is None else TrackedClaim(claim, self.run, ticket)
        except DamagedMail as error:
            dispatch_damaged(error, self._dispatcher, now=self.clock())
        except QueueError as error:
            if error.errno not in SINGLE_FILE_ERRNOS:
                raise
            if self.run.first_time(ticket):
                name = printable(ticket.order)
                log.error('%s cannot be claimed and stays in the queue: %s', name, error)
        except Exception:
            if self.run.first_time(ticket):
                log.exception(
                    '%s cannot be claimed and stays in the queue', printable(ticket.order)
                )
        return None

    def settle_without_relay(self) -> None:
        """Dispatch or move the mails in the active queue that have nothing left to send."""
        for ticket in self.run.active_queue.not_yet_examined():
            claim = self.claim(ticket, settled=True)
            if claim is not None:
                report_settled(claim, self._dispatcher)


PASSED_OVER = 1_000
"""Mails that are put back, for each one that is sent, to find one of another sender."""


class DueClaims(Iterator[IMailClaim]):
    """Claims due mail one by one for a worker. Never waits.

    It ends when no mail is left, the breaker opens, or there is no permit; and goes on when there
    is mail again. ``worker``: identifies the worker.
    """

    def __init__(self, claimer: Claimer, worker: Hashable) -> None:
        self._claimer = claimer
        self._run = claimer.run
        self._worker = worker

    def __next__(self) -> IMailClaim:
        run, queue, passed_over = self._run, self._run.active_queue, 0
        while run.breaker.allows(self._worker):
            ticket = queue.pop(self._worker)
            if ticket is None:
                break
            if queue.should_request_refill():
                run.wake()
            if run.unsynced >= SYNC_MAILS:
                run.request_sync()
            claim = None
            try:
                claim = self._claimer.claim(ticket)
            finally:
                if not _will_be_sent(claim, self._claimer.clock()):
                    queue.refund(ticket)
            if claim is None:
                queue.note_contention(ticket)
            elif passed_over < PASSED_OVER and self._comes_later(claim):
                passed_over += 1
                claim.put_back()
            else:
                return claim
        raise StopIteration

    def _comes_later(self, claim: IMailClaim) -> bool:
        """Whether mail of another sender is to be tried before: all that was tried of this one was
        throttled."""
        return (
            not self._run.throttle.passes(claim.envelope.sender)
            and self._run.active_queue.has_unthrottled
            and _will_be_sent(claim, self._claimer.clock())
        )


def _will_be_sent(claim: IMailClaim | None, now: float) -> bool:
    """Return whether the mail of this claim will be sent: not if it is only settled."""
    if claim is None or not claim.todo or claim.interrupted:
        return False
    expires: float | None = claim.envelope.expires
    return expires is None or now < expires
