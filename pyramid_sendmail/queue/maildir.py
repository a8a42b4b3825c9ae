"""The queue on disk: a Maildir with two more folders (``new``, ``cur``, ``done``, ``failed``).

The folder is a mail's state, its file's name the schedule, and every change of state one atomic
rename. A claim is a lock on the file itself, which a crash releases at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from heapq import nsmallest
from math import inf

from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import DamagedMail
from ..interfaces import IMailQueue
from .claim import MaildirClaim
from .format import STATE_AT, Block, Unreadable, decode
from .history import DeadLetters
from .legacy import adopt
from .names import Schedule, Ticket, in_turn, parse, schedule_of
from .put import MaildirPut
from .recovery import recover, set_aside
from .store import Store
from .stored import load
from .trigger import Trigger

__all__ = ['MaildirQueue']

_SCHEDULED = 50_000
"""Files of mail for later that are remembered; of further ones the time in the name is believed."""


@implementer(IMailQueue)
class MaildirQueue:
    """See IMailQueue.

    ``path``: an absolute path. ``sync``: False leaves out every fsync. ``group``: see Permissions.
    ``in_doubt``: 'hold' or 'send'. ``hold_ambiguous``: sync the mark that a final dot is about to
    leave. ``longest``: the longest delay of the retry policy in seconds: a retry later than that
    is due now, since a clock must have been wrong.
    """

    def __init__(
        self,
        path: str,
        *,
        sync: bool = True,
        group: bool = False,
        in_doubt: str = 'hold',
        hold_ambiguous: bool = False,
        longest: float = 3 * 24 * 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._in_doubt = in_doubt
        self._hold_ambiguous = hold_ambiguous
        self._longest = longest
        self._clock = clock
        self._store = Store(path, sync=sync, group=group)
        self._trigger = Trigger(f'{path}/trigger', self._store.permissions.file)
        self._scheduled: set[tuple[str, int]] = set()
        self._dead = DeadLetters(self._store)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'

    def put(self, envelopes: Sequence[Envelope]) -> MaildirPut:
        put = MaildirPut(self._store, self._trigger, envelopes)
        put.write()
        return put

    def look(
        self, now: float, *, limit: int = 20_000, fresh: bool = False, all_events: bool = False
    ) -> tuple[list[Ticket], float | None]:
        try:
            if fresh:
                return self._scan('new', now, limit)
            recover(self._store, publish_doubtful=self._in_doubt == 'send', clock=self._clock)
            done, done_next = self._scan('done', inf if all_events else now, limit)
            new, new_next = self._scan('new', now, limit)
            cur, cur_next = self._scan('cur', now, limit)
        except FileNotFoundError:
            # What is there is found by the next look, which is now.
            self._store.prepare()
            return [], now
        except OSError as error:
            raise self._store.error('cannot be read', error) from error
        tickets = [*done, *in_turn(new, cur)][:limit]
        times = [time for time in (done_next, new_next, cur_next) if time is not None]
        return tickets, min(times, default=None)

    def _scan(self, folder: str, now: float, limit: int) -> tuple[list[Ticket], float | None]:
        later: list[float] = []

        def due() -> Iterator[str]:
            soonest = float('inf')
            with os.scandir(f'{self.path}/{folder}') as entries:
                for entry in entries:
                    name = entry.name
                    schedule = parse(name)
                    if schedule is None:
                        if not name.startswith('.'):
                            yield name
                    elif schedule.due <= now or self._clock_was_wrong(folder, entry, schedule, now):
                        yield name
                    else:
                        soonest = min(soonest, schedule.due)
            if soonest < float('inf'):
                later.append(soonest)

        names = nsmallest(limit, due())
        return [Ticket(folder, name) for name in names], later[0] if later else None

    def _clock_was_wrong(
        self, folder: str, entry: os.DirEntry[str], schedule: Schedule, now: float
    ) -> bool:
        """Whether a time to come is one that we have set, not the user, and no retry policy."""
        if folder == 'new' and not schedule.attempt:
            return self._unasked(entry)
        return schedule.attempt > 0 and schedule.due > now + self._longest + 1

    def _unasked(self, entry: os.DirEntry[str]) -> bool:
        """Whether nobody has asked for the time in the name of a new mail. Each file is opened
        once; its number tells it from another that a person has put in its place."""
        file = entry.name, entry.inode()
        if file in self._scheduled or len(self._scheduled) >= _SCHEDULED:
            return False
        try:
            with open(entry.path, 'rb') as opened:
                unasked = not decode(opened.read()).envelope.not_before
        except (OSError, Unreadable):
            return False
        if not unasked:
            self._scheduled.add(file)
        return unasked

    def claim(self, ticket: Ticket, *, settled: bool = False) -> MaildirClaim | None:
        path = self._store.path(ticket.folder, ticket.name)
        try:
            try:
                descriptor = self._store.open(path)
            except ValueError as error:
                self._aside(ticket, str(error), b'')
                return None
            if descriptor is None:
                return None
            claim: MaildirClaim | None = None
            try:
                claim = self._claim(ticket, descriptor, settled)
            finally:
                if claim is None:
                    self._store.close(descriptor)
            return claim
        except OSError as error:
            raise self._store.error('cannot be claimed from', error) from error

    def _claim(self, ticket: Ticket, descriptor: int, settled: bool) -> MaildirClaim | None:
        now = self._clock()
        try:
            block, text = load(self._store, descriptor)
        except Unreadable as error:
            data = self._store.read(descriptor)
            adopted = adopt(self._store, ticket, data, now)
            if adopted is not None:
                return self.claim(adopted, settled=settled)
            self._aside(ticket, str(error), data)
            return None
        folder, name = ticket.folder, ticket.name
        schedule = parse(name) or _schedule(block)
        attempt = max([schedule.attempt, *(entry.attempt for entry in block.entries)])
        if folder == 'new' and schedule.attempt:
            # Nothing of ours puts such a name there: a person has moved it from failed/.
            if settled:
                return None
            block.start_over(now)
            self._store.write(descriptor, block.changing(), STATE_AT)
            schedule, attempt = replace(schedule, attempt=0), 0
        # Where a clock was wrong: neither a time that never comes nor an age that never counts.
        block.since = min(block.since, now)
        if block.retry_at > now + self._longest + 1:
            block.retry_at = now
        claim = MaildirClaim(
            self._store,
            descriptor,
            block,
            folder,
            name,
            attempt=attempt,
            now=now,
            hold=self._hold_ambiguous,
            text=text,
        )
        if settled and claim.todo:
            return None
        claim.rename(folder, schedule.name)
        if not attempt and schedule.due > now and block.envelope.not_before > now:
            # It came under a foreign name, which did not tell that its time has not come.
            return None
        if claim.todo:
            claim.begin()
        return claim

    def _aside(self, ticket: Ticket, reason: str, raw: bytes) -> None:
        name = set_aside(self._store, ticket.folder, ticket.name, reason)
        if name is not None:
            raise DamagedMail(name, reason, raw)

    def check(self) -> None:
        self._store.prove_writable()

    def prepare(self) -> None:
        self._store.prepare()
        self._store.sweep()
        self._store.prove_writable()
        self._store.prove_locks()
        try:
            self._trigger.listen()
        except OSError as error:
            raise self._store.error('cannot be waited for', error) from error

    def sync(self) -> None:
        """Make what was delivered and removed survive a power cut."""
        for folder in ('new', 'cur'):
            self._store.sync_folder(folder)

    def expire(self, before: float, *, limit: int = 1_000) -> int:
        try:
            return self._dead.expire(before, limit)
        except OSError as error:
            raise self._store.error('cannot be rid of old dead letters', error) from error

    def wait(self, timeout: float) -> bool:
        return self._trigger.wait(timeout)

    def wake(self) -> None:
        self._trigger.wake()

    def close(self) -> None:
        self._trigger.close()


def _schedule(block: Block) -> Schedule:
    """For a mail of ours under a foreign name: ``attempt`` as if it came from ``failed/``."""
    attempt = max((entry.attempt for entry in block.entries), default=0)
    due = block.retry_at if attempt else block.envelope.due
    return schedule_of(block.envelope, due=due, attempt=attempt)
