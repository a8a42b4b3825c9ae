"""Browse and repair a queue on disk: list its mails, read one, retry, hold, release, drop it.

========  =======================  ================================================================
change    from                     one rename, after at most one write in place
========  =======================  ================================================================
retry     ``failed/``, held        letters back to ``T``, then into ``new/``, due now
retry     ``cur/``                 the time of the retry, then a new name in ``cur/``, due now
hold      ``new/``, ``cur/``       into ``failed/``, with a time that never comes in its name
release   held                     the time of the release, as the start of the retry period; then
                                   into ``new/`` if never tried, else ``cur/``, due as it was
drop      all but ``done/``        its history removed, then the mail
========  =======================  ================================================================

A crash between write and rename leaves the mail where it was; the same change completes it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal

from ...exceptions import QueueError
from ..browsing import (
    MailDetails,
    MailInfo,
    MailState,
    QueueStats,
    RecipientInfo,
    listed_states,
)
from ..history import dropped_text, held_line, held_text
from .filename import NEVER, PRIORITY_OF, STATE_OF, FileName, file_name, parse
from .files import QueueFiles
from .format import STATE_AT, EnvelopeBlock, decode
from .history import append_history, read_history, remove_history
from .large_text import load, read_mail
from .users import user_name
from .wakeup import WakeUp

__all__ = ['MaildirBrowser']

log = logging.getLogger(__name__)

_FOLDERS: dict[MailState, str] = {
    'new': 'new',
    'deferred': 'cur',
    'done': 'done',
    'failed': 'failed',
    'held': 'failed',
}

Status = Literal['waiting', 'delivered', 'failed', 'ambiguous']

_STATUS: dict[str, Status] = {
    'T': 'waiting',
    '?': 'ambiguous',
    'd': 'delivered',
    'f': 'failed',
}

_READS = 3
"""How often a file is read before it counts as damaged: a processor may write its marks while it
is read without a claim."""

_OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of a file that is damaged or another user's; the rest of the queue can be read."""


class MaildirBrowser:
    """See IBrowsableQueue."""

    def __init__(self, files: QueueFiles, wake_up: WakeUp, clock: Callable[[], float]) -> None:
        self._files = files
        self._wake_up = wake_up
        self._clock = clock

    def mails(self, state: MailState | None = None) -> Iterator[MailInfo]:
        return self._listed(listed_states(state))

    def get(self, id: str) -> MailDetails | None:
        # A processor may move the mail from a folder not yet looked into to one already done.
        for _ in range(_READS):
            info = self._find(id)
            if info is None:
                return None
            details = self._details(info)
            if details is not None:
                return details
        return None

    def retry(self, mail: MailInfo) -> bool:
        if mail.state not in ('failed', 'held', 'deferred'):
            return False
        now = self._clock()
        with self._claimed(mail) as claimed:
            if claimed is None:
                return False
            descriptor, block = claimed
            if mail.state == 'deferred':
                block.retry_at = now
                folder, attempt = 'cur', mail.attempt
            else:
                block.start_over(now)
                folder, attempt = 'new', 0
            self._files.write(descriptor, block.mutable_part(), STATE_AT)
            schedule = file_name(block.envelope, due=now, attempt=attempt)
            if not self._move(mail, folder, schedule):
                return False
            log.info('%s: due now, by request', block.envelope.message_id)
        self._wake_up.notify()
        return True

    def hold(self, mail: MailInfo, reason: str = '') -> bool:
        if mail.state not in ('new', 'deferred'):
            return False
        with self._claimed(mail) as claimed:
            if claimed is None:
                return False
            _, block = claimed
            schedule = file_name(block.envelope, due=NEVER, attempt=mail.attempt)
            if not self._move(mail, 'failed', schedule):
                return False
            line = held_line(reason, at=self._clock())
            append_history(self._files, block.envelope.id, [line])
            log.info('%s: %s', block.envelope.message_id, held_text(reason))
        return True

    def release(self, mail: MailInfo) -> bool:
        if mail.state != 'held':
            return False
        with self._claimed(mail) as claimed:
            if claimed is None:
                return False
            descriptor, block = claimed
            # The claim of a mail that was never tried knows by it that there is a history, too.
            block.since = self._clock()
            self._files.write(descriptor, block.mutable_part(), STATE_AT)
            folder, due = 'new', block.envelope.due
            if mail.attempt:
                # Pending events do not wait for the retry.
                folder, due = 'cur', block.retry_at
                if block.pending_events():
                    due = block.envelope.queued_at
            schedule = file_name(block.envelope, due=due, attempt=mail.attempt)
            if not self._move(mail, folder, schedule):
                return False
            log.info('%s: released, and sent when it is due', block.envelope.message_id)
        self._wake_up.notify()
        return True

    def drop(self, mail: MailInfo) -> bool:
        if mail.state == 'done':
            return False
        with self._claimed(mail) as claimed:
            if claimed is None:
                return False
            _, block = claimed
            folder = _FOLDERS[mail.state]
            try:
                # The history first: after a crash, nothing would remove one without a mail.
                self._files.lstat(folder, mail.key)
                remove_history(self._files, block.envelope)
                self._files.unlink(folder, mail.key)
            except FileNotFoundError:
                # A person has moved it since it was opened.
                return False
            self._files.sync_folder(folder)
            log.warning('%s: %s', block.envelope.message_id, dropped_text(_unsent(block)))
        return True

    def stats(self) -> QueueStats:
        counts: dict[MailState, int] = dict.fromkeys(_FOLDERS, 0)
        now = self._clock()
        oldest: float | None = None
        for folder in dict.fromkeys(_FOLDERS.values()):
            for name in self._names(folder):
                info = _info(folder, name)
                counts[info.state] += 1
                # The name of a foreign file says no time.
                own = info.priority != ''
                if own and info.state in ('new', 'deferred') and info.due <= now:
                    oldest = info.due if oldest is None else min(oldest, info.due)
        return QueueStats(counts=counts, oldest_due=oldest)

    def count_waiting(self, limit: int | None = None) -> tuple[int, float | None] | None:
        """See IMonitoredQueue."""
        count, oldest = 0, inf
        for folder in ('new', 'cur'):
            for name in self._streamed(folder):
                if name.startswith('.'):
                    continue
                count += 1
                if limit is not None and count > limit:
                    return None
                schedule = parse(name)
                if schedule is not None:
                    oldest = min(oldest, schedule.due)
        return count, oldest if oldest <= self._clock() else None

    def _streamed(self, folder: str) -> Iterator[str]:
        """Iterate over the names in a folder without reading it as a whole."""
        try:
            self._files.folders.refresh()
            with self._files.entries(folder) as entries:
                for entry in entries:
                    yield entry.name
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._files.error('cannot be read', error) from error

    def _listed(self, wanted: tuple[MailState, ...]) -> Iterator[MailInfo]:
        for folder in dict.fromkeys(_FOLDERS[each] for each in wanted):
            names = sorted(self._names(folder))
            for each in wanted:
                if _FOLDERS[each] == folder:
                    yield from (
                        info for name in names if (info := _info(folder, name)).state == each
                    )

    def _names(self, folder: str) -> list[str]:
        try:
            self._files.folders.refresh()
            names = self._files.names(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._files.error('cannot be read', error) from error
        return [name for name in names if not name.startswith('.')]

    def _find(self, id: str) -> MailInfo | None:
        for folder in dict.fromkeys(_FOLDERS.values()):
            for name in self._names(folder):
                info = _info(folder, name)
                if info.id == id:
                    return info
        return None

    def _details(self, info: MailInfo) -> MailDetails | None:
        """Return None if the file has gone or moved meanwhile."""
        reason = ''
        for _ in range(_READS):
            try:
                block = decode(read_mail(self._files, _FOLDERS[info.state], info.key))
            except FileNotFoundError:
                return None
            except ValueError as error:
                reason = str(error)
                continue
            except OSError as error:
                if error.errno not in _OF_ONE_FILE:
                    raise self._files.error('cannot be read', error) from error
                reason = f'user {user_name(os.geteuid())} cannot read it: {error.strerror}'
                continue
            return MailDetails(
                info=info,
                envelope=block.envelope,
                recipients=_recipients(block, info.attempt),
                pending_events=len(block.pending_events()),
                history=read_history(self._files, block.envelope.id),
            )
        return MailDetails(
            info=info,
            envelope=None,
            recipients={},
            pending_events=0,
            history=read_history(self._files, info.key),
            damaged=reason,
        )

    @contextmanager
    def _claimed(self, mail: MailInfo) -> Iterator[tuple[int, EnvelopeBlock] | None]:
        """Claim the file of a mail, and give it with what it says; None if that is not possible.

        Raises QueueError if this user may not use the queue, and for what the body cannot do.
        """
        folder = _FOLDERS.get(mail.state)
        # A MailInfo may come from a web page: it must name its own mail, and no other file.
        hidden = mail.key.startswith('.') or '/' in mail.key
        if folder is None or hidden or _info(folder, mail.key) != mail:
            yield None
            return
        descriptor = None
        try:
            if not self._exists():
                yield None
                return
            self._files.folders.ready()
            try:
                descriptor = self._files.open(folder, mail.key)
                if descriptor is None:
                    yield None
                    return
                block, text = load(self._files, descriptor)
            except ValueError:
                # Not a plain file, or not a mail of this queue: a processor moves it to failed/.
                yield None
                return
            try:
                yield descriptor, block
            finally:
                if text is not None:
                    text.close()
        except QueueError:
            raise
        except OSError as error:
            raise self._files.error('cannot be changed', error) from error
        finally:
            if descriptor is not None:
                self._files.close(descriptor)

    def _exists(self) -> bool:
        """Whether there is a queue: a change makes none. Raises OSError."""
        try:
            os.lstat(self._files.root)
        except FileNotFoundError:
            return False
        return True

    def _move(self, mail: MailInfo, folder: str, schedule: FileName) -> bool:
        """Return False if a person has moved the file since it was opened. Raises OSError."""
        source = _FOLDERS[mail.state]
        if not self._files.rename(source, mail.key, folder, schedule.text):
            return False
        for each in dict.fromkeys((folder, source)):
            self._files.sync_folder(each)
        return True


def _info(folder: str, name: str) -> MailInfo:
    state: MailState = STATE_OF[folder]
    schedule = parse(name)
    if schedule is None:
        return MailInfo(id=name, state=state, key=name)
    if folder == 'failed' and schedule.due >= NEVER:
        state = 'held'
    return MailInfo(
        id=schedule.id,
        state=state,
        priority=PRIORITY_OF[schedule.priority],
        due=schedule.due if state in ('new', 'deferred') else 0.0,
        attempt=schedule.attempt,
        key=name,
    )


def _recipients(block: EnvelopeBlock, attempt: int) -> dict[str, RecipientInfo]:
    found = {}
    marks = zip(block.envelope.recipients, block.letters, block.pointers, strict=True)
    for recipient, letter, pointer in marks:
        entry = block.entries[pointer] if pointer < len(block.entries) else None
        if letter == 'T' and entry is not None and entry.attempt != attempt:
            entry = None  # that of another recipient, from before the mail was started over
        reply = entry.reply if entry is not None else None
        reason = ''
        if entry is not None and letter not in 'dD':
            reason = str(reply or '') if entry.reason is None else entry.reason
        found[recipient] = RecipientInfo(
            status=_STATUS.get(letter) or _STATUS[letter.lower()], reply=reply, reason=reason
        )
    return found


def _unsent(block: EnvelopeBlock) -> list[str]:
    pairs = zip(block.envelope.recipients, block.letters, strict=True)
    return [recipient for recipient, letter in pairs if letter not in 'dD']
