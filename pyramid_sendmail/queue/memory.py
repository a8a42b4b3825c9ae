"""A queue in memory: for direct delivery without a Maildir, and for tests.

It keeps the whole contract of IScannableQueue except durability: its mail is lost with the process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from zope.interface import implementer

from ..envelope import Envelope, PendingEvent
from ..interfaces import IBrowsableQueue, IMailClaim, IScannableQueue, IStagedMail
from .browsing import MailDetails, MailInfo, MailState, QueueStats
from .history import attempt_lines
from .in_doubt import in_doubt_event, needs_decision
from .memory_browser import MemoryBrowser
from .memory_store import Mail, MemoryStore
from .ticket import State, Ticket, alternate, at_once, ticket_for

__all__ = ['MemoryQueue']

log = logging.getLogger(__name__)


@implementer(IScannableQueue, IBrowsableQueue)
class MemoryQueue:
    """See IScannableQueue.

    ``failed``: the envelopes of dead letters, in order. Without ``keep_failed`` a dead letter is
    dropped when its events have been handled.
    """

    def __init__(self, *, keep_failed: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.keep_failed = keep_failed
        self._store = MemoryStore(clock)
        self._browser = MemoryBrowser(self._store)

    def __len__(self) -> int:
        """How many mails wait for delivery."""
        with self._store.locked() as mails:
            return sum(mail.state in ('new', 'deferred') for mail in mails.values())

    @property
    def failed(self) -> list[Envelope]:
        with self._store.locked() as mails:
            return [
                mail.envelope for mail in mails.values() if mail.state == 'failed' and not mail.held
            ]

    def put(self, envelopes: Sequence[Envelope]) -> MemoryStagedMail:
        return MemoryStagedMail(self._store, tuple(envelopes))

    def scan(
        self,
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Ticket]], None] | None = None,
    ) -> tuple[list[Ticket], float | None]:
        states = ('new',) if fresh else ('done', 'new', 'deferred')
        with self._store.locked() as mails:
            waiting = [
                (mail.ticket, now if all_events and mail.state == 'done' else mail.due_at(now))
                for mail in mails.values()
                if mail.state in states
            ]
        due = sorted(
            (ticket for ticket, due in waiting if due <= now), key=lambda ticket: ticket.order
        )
        done, new, cur = (
            [ticket for ticket in due if ticket.state == state]
            for state in ('done', 'new', 'deferred')
        )
        tickets = [*done, *alternate(new, cur)][:limit]
        return tickets, min((due for _, due in waiting if due > now), default=None)

    def next_page(self, limit: int) -> list[Ticket]:
        return []

    def claim(self, ticket: Ticket, *, settled: bool = False) -> MemoryClaim | None:
        now = self._store.now()
        with self._store.locked() as mails:
            mail = mails.get(ticket.key)
            if mail is None or mail.claimed or mail.ticket != ticket:
                return None
            claim = MemoryClaim(self._store, mail, now, keep_failed=self.keep_failed)
            if (settled and claim.todo) or (mail.state == 'new' and mail.due_at(now) > now):
                return None
            mail.claimed = True
            # A wrong clock must not make the age of a mail negative.
            mail.since = min(mail.since, now)
            return claim

    def check_writable(self) -> None:
        """Memory can always be written."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def sync(self) -> None:
        """Nothing survives the process anyway."""

    def purge_failed(self, before: float, *, limit: int = 1_000) -> int:
        with self._store.locked() as mails:
            old = [
                mail
                for mail in mails.values()
                if mail.state == 'failed'
                and not (mail.claimed or mail.needs_decision or mail.held)
                and mail.failed_at < before
            ][:limit]
            for mail in old:
                del mails[mail.envelope.id]
        for mail in old:
            log.info('%s: removed, older than mail.keep_failed', mail.envelope.message_id)
        return len(old)

    def wait(self, timeout: float) -> bool:
        return self._store.wait(timeout)

    def wake(self) -> None:
        self._store.wake()

    def close(self) -> None:
        """There is nothing to close."""

    def mails(self, state: MailState | None = None) -> Iterator[MailInfo]:
        return self._browser.mails(state)

    def get(self, id: str) -> MailDetails | None:
        return self._browser.get(id)

    def retry(self, mail: MailInfo) -> bool:
        return self._browser.retry(mail)

    def hold(self, mail: MailInfo, reason: str = '') -> bool:
        return self._browser.hold(mail, reason)

    def release(self, mail: MailInfo) -> bool:
        return self._browser.release(mail)

    def drop(self, mail: MailInfo) -> bool:
        return self._browser.drop(mail)

    def stats(self) -> QueueStats:
        return self._browser.stats()


@implementer(IStagedMail)
class MemoryStagedMail:
    """See IStagedMail. ``size``: the bytes of its mails, which are in memory alone."""

    def __init__(self, store: MemoryStore, envelopes: tuple[Envelope, ...]) -> None:
        self._store = store
        self._envelopes = envelopes
        self._outcome = ''
        self.size = sum(envelope.size for envelope in envelopes)
        self.tickets = tuple(
            ticket_for('new', envelope, due=envelope.due, attempt=0) for envelope in envelopes
        )

    def publish(self) -> None:
        self._end('published', 'new')

    def discard(self) -> None:
        self._outcome = self._outcome or 'discarded'

    def keep_in_doubt(self) -> None:
        if not self._outcome:
            log.critical(
                'in doubt: another resource failed to finish its commit, so it is unknown whether '
                'the transaction of %s committed; nothing was sent',
                ', '.join(f'{mail.message_id} ({mail.id})' for mail in self._envelopes),
            )
        self._end('kept in doubt', 'done')

    def _end(self, outcome: str, state: State) -> None:
        if self._outcome:
            return
        self._outcome = outcome
        mails = []
        for envelope in self._envelopes:
            due = envelope.due if state == 'new' else 0.0
            mail = Mail(envelope, state, due, envelope.queued_at)
            mail.letters = dict.fromkeys(envelope.recipients, 'T' if state == 'new' else 'f')
            if state == 'done':
                mail.needs_decision = True
                mail.pending_events = [
                    in_doubt_event(envelope, 'another resource failed to finish its commit')
                ]
            mails.append(mail)
        self._store.add(mails)


@implementer(IMailClaim)
class MemoryClaim:
    """See IMailClaim."""

    interrupted = ''
    ambiguous: tuple[str, ...] = ()

    def __init__(self, store: MemoryStore, mail: Mail, now: float, *, keep_failed: bool) -> None:
        self._store = store
        self._keep_failed = keep_failed
        self._mail = mail
        self._now = now
        self._held = True
        self._settled = False
        # As on disk: the ids of new events must differ from those of pending ones.
        self.attempt = max([mail.attempt, *(event.attempt for event in mail.pending_events)])
        self.todo: tuple[str, ...] = ()
        if mail.state != 'done' and mail.retry_at <= now:
            self.todo = tuple(to for to, letter in mail.letters.items() if letter == 'T')

    @property
    def envelope(self) -> Envelope:
        return self._mail.envelope

    @property
    def since(self) -> float:
        return self._mail.since

    @property
    def pending_events(self) -> list[PendingEvent]:
        return list(self._mail.pending_events)

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        """Nothing to record: the mail is lost with the process, so no mark would be found."""

    def clear_ambiguous(self) -> None:
        """There is no mark."""

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        mail = self._mail
        if not self._settled:
            self._settled = True
            for event in events:
                letter = {'sent': 'd', 'error': 'f', 'deferred': 'T'}[event.kind]
                mail.letters.update(dict.fromkeys(event.recipients, letter))
                mail.latest.update(dict.fromkeys(event.recipients, event))
            mail.pending_events += [event for event in events if event.kind != 'deferred']
            mail.needs_decision |= any(
                needs_decision(attempt=event.attempt, reply=event.reply, reason=event.reason)
                for event in events
                if event.kind == 'error'
            )
            mail.add_history(attempt_lines(events, at=self._now))
            mail.retry_at = retry_at or 0.0
            self.attempt += 1
            mail.attempt = self.attempt
            if not report:
                mail.pending_events = []
        self._save()

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        handled = {event.id for event in events}
        self._mail.pending_events = [
            event for event in self._mail.pending_events if event.id not in handled
        ]
        self._save()

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        failed = {event.id for event in events}
        mail = self._mail
        mail.pending_events = [
            event._replace(tries=event.tries + 1) if event.id in failed else event
            for event in mail.pending_events
        ]
        mail.due = min(due, mail.retry_at) if mail.retry_at else due
        self.release()

    def release(self) -> None:
        # Only once: another claim may hold the mail by now.
        if self._held:
            self._held = self._mail.claimed = False

    def _save(self) -> None:
        mail = self._mail
        now = at_once(mail.envelope.queued_at, self._now)
        letters = mail.letters.values()
        if 'T' in letters:
            mail.state = 'deferred'
            mail.due = now if mail.pending_events else mail.retry_at
        elif mail.pending_events:
            mail.state, mail.due = 'done', now
        elif 'f' in letters and self._keep_failed:
            mail.state, mail.due, mail.failed_at = 'failed', mail.since, self._store.now()
        else:
            self._store.remove(mail)
        if not mail.pending_events:
            self.release()
