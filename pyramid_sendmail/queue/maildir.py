"""The queue on disk: a Maildir with two more folders (``new``, ``cur``, ``done``, ``failed``).

The folder is a mail's state, its file's name the schedule, and every change of state one atomic
rename. A claim is a lock on the file itself, which a crash releases at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from itertools import zip_longest

from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import DamagedMail
from ..interfaces import IMailQueue
from .claim import MaildirClaim
from .format import Block, Unreadable, decode
from .legacy import adopt
from .names import Schedule, Ticket, parse, schedule_of
from .put import MaildirPut
from .recovery import recover, set_aside
from .store import Store
from .trigger import Trigger

__all__ = ['MaildirQueue']


@implementer(IMailQueue)
class MaildirQueue:
    """See IMailQueue.

    ``path``: an absolute path. ``sync``: False leaves out every fsync. ``in_doubt``: 'hold' or
    'send'. ``hold_ambiguous``: sync the mark that a final dot is about to leave. ``longest``: the
    longest delay of the retry policy in seconds: a retry later than that is due now, since a clock
    must have been wrong.
    """

    def __init__(
        self,
        path: str,
        *,
        sync: bool = True,
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
        self._store = Store(path, sync=sync)
        self._trigger = Trigger(f'{path}/trigger')

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'

    def put(self, envelopes: Sequence[Envelope]) -> MaildirPut:
        put = MaildirPut(self._store, self._trigger, envelopes)
        put.write()
        return put

    def look(
        self, now: float, *, limit: int = 20_000, fresh: bool = False
    ) -> tuple[list[Ticket], float | None]:
        try:
            if fresh:
                return self._scan('new', now, limit)
            recover(
                self._store, publish_doubtful=self._in_doubt == 'send', clock=self._clock
            )
            done, done_next = self._scan('done', now, limit)
            new, new_next = self._scan('new', now, limit)
            cur, cur_next = self._scan('cur', now, limit)
        except FileNotFoundError:
            self._store.prepare()
            return [], None
        except OSError as error:
            raise self._store.error('cannot be read', error) from error
        both = zip_longest(new, cur)
        tickets = [*done, *(ticket for pair in both for ticket in pair if ticket)][:limit]
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
                    elif schedule.due <= now or self._clock_was_wrong(folder, schedule, now):
                        yield name
                    else:
                        soonest = min(soonest, schedule.due)
            if soonest < float('inf'):
                later.append(soonest)

        names = nsmallest(limit, due())
        return [Ticket(folder, name) for name in names], later[0] if later else None

    def _clock_was_wrong(self, folder: str, schedule: Schedule, now: float) -> bool:
        return folder != 'new' and schedule.due > now + self._longest + 1

    def claim(self, ticket: Ticket, *, settled: bool = False) -> MaildirClaim | None:
        path = self._store.path(ticket.folder, ticket.name)
        try:
            try:
                descriptor = self._store.open(path)
            except ValueError as error:
                raise self._aside(ticket, str(error), b'') from error
            if descriptor is None:
                return None
            try:
                return self._claim(ticket, descriptor, settled)
            except BaseException:
                self._store.close(descriptor)
                raise
        except OSError as error:
            raise self._store.error('cannot be claimed from', error) from error

    def _claim(self, ticket: Ticket, descriptor: int, settled: bool) -> MaildirClaim | None:
        now = self._clock()
        data = self._store.read(descriptor)
        try:
            block = decode(data)
        except Unreadable as error:
            if adopt(self._store, ticket, data, now):
                self._store.close(descriptor)
                return None
            raise self._aside(ticket, str(error), data) from error
        schedule = parse(ticket.name)
        attempt = max([schedule.attempt if schedule else 0, *_attempts(block)])
        if ticket.folder == 'new' and block.state == 'C' and (attempt or 'F' in block.letters):
            _start_over(block, now)
            attempt = 0
        if block.retry_at > now + self._longest + 1:
            block.retry_at = now
        claim = MaildirClaim(
            self._store,
            descriptor,
            block,
            ticket.folder,
            ticket.name,
            attempt=attempt,
            now=now,
            hold=self._hold_ambiguous,
        )
        if schedule is None:
            # Ours, under a name that a mail program or a person gave it.
            proper = schedule_of(block.envelope, due=block.envelope.due, attempt=attempt)
            claim.rename(ticket.folder, proper.name)
        if settled and claim.todo:
            claim.release()
            return None
        if claim.todo:
            claim.begin()
        return claim

    def _aside(self, ticket: Ticket, reason: str, raw: bytes) -> DamagedMail:
        name = set_aside(self._store, ticket.folder, ticket.name, reason)
        return DamagedMail(name, reason, raw)

    def check(self) -> None:
        self._store.prove_writable()

    def prepare(self) -> None:
        self._store.prepare()
        self._store.prove_writable()
        self._store.prove_locks()
        self._trigger.listen()

    def sync(self) -> None:
        """Make what was delivered and removed survive a power cut."""
        for folder in ('new', 'cur'):
            self._store.sync_folder(folder)

    def wait(self, timeout: float) -> bool:
        return self._trigger.wait(timeout)

    def wake(self) -> None:
        self._trigger.wake()

    def close(self) -> None:
        self._trigger.close()


def _attempts(block: Block) -> list[int]:
    return [entry.attempt for entry in block.entries]


def _start_over(block: Block, now: float) -> None:
    """A person moved it from ``failed/`` into ``new/``: its failed recipients are tried again."""
    block.letters = ['T' if letter in 'fF?' else letter for letter in block.letters]
    block.entries, block.pointers = [], [0] * len(block.pointers)
    block.since, block.retry_at = now, 0.0
