"""A queue in memory: for direct delivery without a Maildir, and for tests.

It keeps the whole contract of IScannableQueue but its durability: what it holds is gone with the
process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from zope.interface import implementer

from ..envelope import Envelope, PendingEvent
from ..interfaces import IMailClaim, IScannableQueue, IStagedMail
from .maildir.filename import schedule_of, ticket_of
from .maildir.history import doubtful
from .ticket import Ticket, alternate

__all__ = ['MemoryQueue']

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Mail:
    """A mail and where it stands."""

    envelope: Envelope
    folder: str
    due: float
    since: float
    attempt: int = 0
    retry_at: float = 0.0
    claimed: bool = False
    failed_at: float = 0.0
    doubtful: bool = False
    """Whether only a person can tell what became of it."""
    letters: dict[str, str] = field(default_factory=dict)
    pending_events: list[PendingEvent] = field(default_factory=list)

    @property
    def wanted_at(self) -> float:
        """When it is due; a new mail at once, unless the user has asked for a later time."""
        return self.envelope.not_before if self.folder == 'new' else self.due

    @property
    def ticket(self) -> Ticket:
        schedule = schedule_of(self.envelope, due=self.due, attempt=self.attempt)
        return ticket_of(self.folder, schedule.name)


@implementer(IScannableQueue)
class MemoryQueue:
    """See IScannableQueue. ``failed`` holds the envelopes of dead letters, in order; without
    ``keep_failed`` they are let go once their events are told."""

    def __init__(self, *, keep_failed: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.keep_failed = keep_failed
        self._clock = clock
        self._pid = os.getpid()
        self._mails: dict[str, Mail] = {}
        self._lock = threading.RLock()
        self._woken = threading.Event()

    def __len__(self) -> int:
        """How many mails wait for delivery."""
        with self._held() as mails:
            return sum(mail.folder in ('new', 'cur') for mail in mails.values())

    @property
    def failed(self) -> list[Envelope]:
        with self._held() as mails:
            return [mail.envelope for mail in mails.values() if mail.folder == 'failed']

    def put(self, envelopes: Sequence[Envelope]) -> MemoryPut:
        return MemoryPut(self, tuple(envelopes))

    def scan(
        self,
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Ticket]], None] | None = None,
    ) -> tuple[list[Ticket], float | None]:
        folders = ('new',) if fresh else ('done', 'new', 'cur')
        with self._held() as mails:
            waiting = [
                (mail.ticket, now if all_events and mail.folder == 'done' else mail.wanted_at)
                for mail in mails.values()
                if mail.folder in folders
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
        now = self._clock()
        with self._held() as mails:
            mail = mails.get(ticket.key)
            if mail is None or mail.claimed or mail.ticket != ticket:
                return None
            claim = MemoryClaim(self, mail, now)
            if (settled and claim.todo) or (mail.folder == 'new' and mail.wanted_at > now):
                return None
            mail.claimed = True
            # Where a clock was wrong: no age that never counts.
            mail.since = min(mail.since, now)
            return claim

    def check_writable(self) -> None:
        """Memory can always be written."""

    def prepare(self) -> None:
        """Nothing to make."""

    def sync(self) -> None:
        """Nothing survives anyway."""

    def purge_failed(self, before: float, *, limit: int = 1_000) -> int:
        with self._held() as mails:
            old = [
                mail
                for mail in mails.values()
                if mail.folder == 'failed'
                and not mail.claimed
                and not mail.doubtful
                and mail.failed_at < before
            ][:limit]
            for mail in old:
                del mails[mail.envelope.id]
        for mail in old:
            log.info('%s: removed, older than mail.keep_failed', mail.envelope.message_id)
        return len(old)

    def wait(self, timeout: float) -> bool:
        woken = self._woken.wait(max(timeout, 0.0))
        if woken:
            self._woken.clear()
        return woken

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        """Nothing to give up."""

    def now(self) -> float:
        return self._clock()

    def add(self, added: Iterable[Mail]) -> None:
        with self._held() as mails:
            mails.update({mail.envelope.id: mail for mail in added})
        self._woken.set()

    def remove(self, mail: Mail) -> None:
        with self._held() as mails:
            mails.pop(mail.envelope.id, None)

    @contextmanager
    def _held(self) -> Iterator[dict[str, Mail]]:
        """The mails, locked. In a forked child there are none: what its parent holds is the
        parent's to send, and the lock may be held for ever."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._mails, self._lock, self._woken = {}, threading.RLock(), threading.Event()
        with self._lock:
            yield self._mails


@implementer(IStagedMail)
class MemoryPut:
    """See IStagedMail."""

    def __init__(self, queue: MemoryQueue, envelopes: tuple[Envelope, ...]) -> None:
        self._queue = queue
        self._envelopes = envelopes
        self._outcome = ''
        self.tickets = tuple(
            ticket_of('new', schedule_of(envelope, due=envelope.due, attempt=0).name)
            for envelope in envelopes
        )

    def publish(self) -> None:
        self._end('published', 'new')

    def discard(self) -> None:
        self._outcome = self._outcome or 'discarded'

    def keep_in_doubt(self) -> None:
        if not self._outcome:
            log.critical(
                'in doubt: another resource failed to finish its commit, and nobody can tell '
                'whether the transaction of %s took place; nothing was sent',
                ', '.join(f'{mail.message_id} ({mail.id})' for mail in self._envelopes),
            )
        self._end('doubted', 'done')

    def _end(self, outcome: str, folder: str) -> None:
        if self._outcome:
            return
        self._outcome = outcome
        mails = []
        for envelope in self._envelopes:
            due = envelope.due if folder == 'new' else envelope.queued_at
            mail = Mail(envelope, folder, due, envelope.queued_at)
            mail.letters = dict.fromkeys(envelope.recipients, 'T' if folder == 'new' else 'f')
            if folder == 'done':
                mail.doubtful = True
                mail.pending_events = [
                    PendingEvent(
                        id=f'{envelope.id}-0-error-0',
                        kind='error',
                        recipients=envelope.recipients,
                        attempt=0,
                        mailer='',
                        reason='in doubt: nobody can tell whether its transaction committed',
                        permanent=False,
                    )
                ]
            mails.append(mail)
        self._queue.add(mails)


@implementer(IMailClaim)
class MemoryClaim:
    """See IMailClaim."""

    interrupted = ''
    ambiguous: tuple[str, ...] = ()

    def __init__(self, queue: MemoryQueue, mail: Mail, now: float) -> None:
        self._queue = queue
        self._mail = mail
        self._held = True
        self._settled = False
        self.todo: tuple[str, ...] = ()
        if mail.folder != 'done' and mail.retry_at <= now:
            self.todo = tuple(to for to, letter in mail.letters.items() if letter == 'T')

    @property
    def envelope(self) -> Envelope:
        return self._mail.envelope

    @property
    def attempt(self) -> int:
        return self._mail.attempt

    @property
    def since(self) -> float:
        return self._mail.since

    @property
    def pending_events(self) -> list[PendingEvent]:
        return list(self._mail.pending_events)

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        """A process that stops takes the mail with it: no mark would be found."""

    def clear_ambiguous(self) -> None:
        """There is none."""

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        mail = self._mail
        if not self._settled:
            self._settled = True
            for fate in events:
                letter = {'sent': 'd', 'error': 'f', 'deferred': 'T'}[fate.kind]
                mail.letters.update(dict.fromkeys(fate.recipients, letter))
            mail.pending_events += [fate for fate in events if fate.kind != 'deferred']
            mail.doubtful |= any(fate.kind == 'error' and doubtful(fate) for fate in events)
            mail.retry_at = retry_at or 0.0
            mail.attempt += 1
            if not report:
                mail.pending_events = []
        self._rest()

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        told = {fate.id for fate in events}
        self._mail.pending_events = [
            fate for fate in self._mail.pending_events if fate.id not in told
        ]
        self._rest()

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        late = {fate.id for fate in events}
        mail = self._mail
        mail.pending_events = [
            replace(fate, tries=fate.tries + 1) if fate.id in late else fate
            for fate in mail.pending_events
        ]
        mail.due = min(due, mail.retry_at) if mail.retry_at else due
        self.release()

    def release(self) -> None:
        # Once: the mail may be somebody else's by now.
        if self._held:
            self._held = self._mail.claimed = False

    def _rest(self) -> None:
        mail = self._mail
        letters = mail.letters.values()
        if 'T' in letters:
            mail.folder = 'cur'
            mail.due = mail.envelope.queued_at if mail.pending_events else mail.retry_at
        elif mail.pending_events:
            mail.folder, mail.due = 'done', mail.envelope.queued_at
        elif 'f' in letters and self._queue.keep_failed:
            mail.folder, mail.failed_at = 'failed', self._queue.now()
        else:
            self._queue.remove(mail)
        if not mail.pending_events:
            self.release()
