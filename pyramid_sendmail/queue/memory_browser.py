"""Browse and repair a queue in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .browsing import (
    STATES,
    MailDetails,
    MailInfo,
    MailState,
    QueueStats,
    RecipientInfo,
    listed_states,
)
from .history import dropped_text, held_line, held_text
from .memory_store import Mail, MemoryStore

__all__ = ['MemoryBrowser']

log = logging.getLogger(__name__)

Status = Literal['waiting', 'delivered', 'failed']

_STATUS: dict[str, Status] = {'T': 'waiting', 'd': 'delivered', 'f': 'failed'}


class MemoryBrowser:
    """See IBrowsableQueue."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def mails(self, state: MailState | None = None) -> Iterator[MailInfo]:
        wanted = listed_states(state)
        with self._store.locked() as mails:
            found = [_info(mail) for mail in mails.values()]
        listed = (info for info in found if info.state in wanted)
        return iter(sorted(listed, key=lambda info: (STATES.index(info.state), info.key)))

    def get(self, id: str) -> MailDetails | None:
        with self._store.locked() as mails:
            mail = mails.get(id)
            return None if mail is None else _details(mail)

    def retry(self, mail: MailInfo) -> bool:
        with self._changing(mail, 'failed', 'held', 'deferred') as found:
            if found is None:
                return False
            found.due = now = self._store.now()
            found.retry_at = 0.0
            if mail.state != 'deferred':
                found.letters = {
                    to: 'T' if letter == 'f' else letter for to, letter in found.letters.items()
                }
                # As on disk: an error is no longer the end of its recipients.
                found.pending_events = [
                    event for event in found.pending_events if event.kind != 'error'
                ]
                found.state, found.held, found.needs_decision = 'new', False, False
                found.since, found.attempt = now, 0
            log.info('%s: due now, by request', found.envelope.message_id)
        self._store.wake()
        return True

    def hold(self, mail: MailInfo, reason: str = '') -> bool:
        with self._changing(mail, 'new', 'deferred') as found:
            if found is None:
                return False
            found.state, found.held = 'failed', True
            found.add_history([held_line(reason, at=self._store.now())])
            log.info('%s: %s', found.envelope.message_id, held_text(reason))
        return True

    def release(self, mail: MailInfo) -> bool:
        with self._changing(mail, 'held') as found:
            if found is None:
                return False
            found.state, found.held = 'deferred' if found.attempt else 'new', False
            found.since = self._store.now()
            log.info('%s: released, and sent when it is due', found.envelope.message_id)
        self._store.wake()
        return True

    def drop(self, mail: MailInfo) -> bool:
        with self._changing(mail, 'new', 'deferred', 'failed', 'held') as found:
            if found is None:
                return False
            unsent = [to for to, letter in found.letters.items() if letter != 'd']
            self._store.remove(found)
            log.warning('%s: %s', found.envelope.message_id, dropped_text(unsent))
        return True

    def stats(self) -> QueueStats:
        counts: dict[MailState, int] = dict.fromkeys(STATES, 0)
        now = self._store.now()
        overdue = []
        for info in self.mails():
            counts[info.state] += 1
            if info.state in ('new', 'deferred') and info.due <= now:
                overdue.append(info.due)
        return QueueStats(counts=counts, oldest_due=min(overdue, default=None))

    @contextmanager
    def _changing(self, mail: MailInfo, *states: MailState) -> Iterator[Mail | None]:
        """Give the mail, locked, if it is as it was listed, in one of these states, and free."""
        with self._store.locked() as mails:
            found = mails.get(mail.id)
            free = found is not None and not found.claimed and _info(found) == mail
            yield found if free and mail.state in states else None


def _info(mail: Mail) -> MailInfo:
    ticket = mail.ticket
    state: MailState = 'held' if mail.held else ticket.state
    return MailInfo(
        id=mail.envelope.id,
        state=state,
        priority=mail.envelope.priority,
        due=ticket.due if state in ('new', 'deferred') else 0.0,
        attempt=mail.attempt,
        key=ticket.order,
    )


def _details(mail: Mail) -> MailDetails:
    recipients = {}
    for recipient, letter in mail.letters.items():
        event = mail.latest.get(recipient)
        reason = '' if event is None or letter == 'd' else event.reason
        recipients[recipient] = RecipientInfo(
            status=_STATUS[letter],
            reply=None if event is None else event.reply,
            reason=reason,
        )
    return MailDetails(
        info=_info(mail),
        envelope=mail.envelope,
        recipients=recipients,
        pending_events=len(mail.pending_events),
        history=tuple(mail.history),
    )
