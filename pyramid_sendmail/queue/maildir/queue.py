"""The queue on disk: a Maildir with two more folders (``new``, ``cur``, ``done``, ``failed``).

The folder is a mail's state, its file's name the schedule, and every change of state one atomic
rename. A claim is a lock on the file itself, which a crash releases at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from math import inf

from zope.interface import implementer

from ...envelope import Envelope
from ...exceptions import DamagedMail
from ...interfaces import IScannableQueue
from ..ahead import ReadAhead
from ..ticket import Ticket, alternate
from .claim import MaildirClaim
from .filename import FOLDER_OF, LENGTH, Schedule, parse, schedule_of, time_text
from .files import Store
from .format import STATE_AT, Block, Unreadable, decode
from .history import DeadLetters
from .large_text import LARGE, load
from .legacy import adopt
from .recovery import recover, set_aside
from .scan import Listing
from .staging import StagedMail
from .wakeup import Trigger

__all__ = ['MaildirQueue']

_SCHEDULED = 50_000
"""Files of mail for later that are remembered; of further ones the time in the name is believed."""

_OPENED = 5_000
"""How many of them are opened at one look; the others have to wait for the next."""

_KEPT = 40_000
"""Names of a folder that a look keeps, so that a million mails are not listed for each few that
have left: some 4 MB."""

_EARLY = 5_000
"""Mails handed out before a look has come to its end: enough to send until then."""


@implementer(IScannableQueue)
class MaildirQueue:
    """See IScannableQueue.

    ``path``: an absolute path. ``sync``: False leaves out every fsync. ``group``: see Permissions.
    ``in_doubt``: 'hold' or 'send'. ``hold_ambiguous``: sync the mark that a final dot is about to
    leave. ``longest``: the longest delay of the retry policy in seconds: a retry later than that
    is due now, since a clock must have been wrong. ``patience``: seconds after which a look hands
    out what it has found so far.
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
        patience: float = 0.25,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._in_doubt = in_doubt
        self._hold_ambiguous = hold_ambiguous
        self._longest = longest
        self._clock = clock
        self._store = Store(path, sync=sync, group=group)
        self._trigger = Trigger(f'{path}/trigger', self._store.permissions.file)
        self._scheduled: set[int] = set()
        self._patience = patience
        self._rest: Iterator[Ticket] = iter(())
        self._lock = threading.Lock()
        self._dead = DeadLetters(self._store)
        self._ahead = ReadAhead(self._store)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'

    def put(self, envelopes: Sequence[Envelope]) -> StagedMail:
        put = StagedMail(self._store, self._trigger, envelopes)
        put.write()
        return put

    def scan(
        self,
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Ticket]], None] | None = None,
    ) -> tuple[list[Ticket], float | None]:
        try:
            return self._look(now, limit, fresh, all_events, on_first_page)
        except FileNotFoundError:
            # What is there is found by the next look, which is now.
            self._store.prepare()
            return [], now
        except OSError as error:
            raise self._store.error('cannot be read', error) from error

    def _look(
        self,
        now: float,
        limit: int,
        fresh: bool,
        all_events: bool,
        on_first_page: Callable[[list[Ticket]], None] | None,
    ) -> tuple[list[Ticket], float | None]:
        kept = max(limit, _KEPT)
        done = Listing(self.path, 'done', limit=limit)
        new, cur = (Listing(self.path, folder, limit=kept) for folder in ('new', 'cur'))
        promptly = time.monotonic() + self._patience

        def pause() -> None:
            nonlocal on_first_page
            if on_first_page is not None and (new or cur) and time.monotonic() >= promptly:
                on_first_page([*islice(alternate(new, cur), min(limit, _EARLY))])
                on_first_page = None

        # Who looks by a time that has passed is told of nothing wrong that is not wrong now.
        here = max(now, self._clock())
        wrong = here + self._longest + 1
        doubts: dict[str, int] = {}
        if not fresh:
            with self._lock:
                self._rest = iter(())
            self._ahead.expect(())
            recover(self._store, publish_doubtful=self._in_doubt == 'send', clock=self._clock)
            done.read(inf if all_events else now, wrong=wrong, pause=pause)
        new.read(now, wrong=wrong, pause=pause, doubt=partial(self._doubt, doubts, time_text(here)))
        if not fresh:
            cur.read(now, wrong=wrong, pause=pause)
        self._ask(doubts, new, pause)
        order = chain(done, alternate(new, cur))
        tickets = list(islice(order, limit))
        if not fresh:
            with self._lock:
                self._rest = order
            self._ahead.expect((new, cur))
        times = [listing.next_due for listing in (done, new, cur)]
        if len(doubts) >= _OPENED:
            times.append(now)
        return tickets, min((time for time in times if time is not None), default=None)

    def next_page(self, limit: int) -> list[Ticket]:
        with self._lock:
            return list(islice(self._rest, limit))

    def _doubt(self, doubts: dict[str, int], here: str, entry: os.DirEntry[str]) -> bool:
        """Whether the time to come of a new mail may be one that nobody has asked for: the file
        has to be opened, once; its number tells it from another that a person has put in its
        place."""
        if len(self._scheduled) >= _SCHEDULED or len(doubts) >= _OPENED:
            return False
        name = entry.name
        file = hash((name, entry.inode()))
        if file in self._scheduled or name[2:17] <= here:
            return False
        doubts[name] = file
        return True

    def _ask(self, doubts: dict[str, int], new: Listing, pause: Callable[[], None]) -> None:
        """Add to ``new`` those of whose times nobody has asked for: a clock was wrong."""
        for name, file in doubts.items():
            pause()
            try:
                with open(self._store.path('new', name), 'rb') as opened:
                    unasked = not decode(opened.read()).envelope.not_before
            except (OSError, Unreadable):
                new.later(name)
                continue
            if unasked:
                new.add(name)
            else:
                new.later(name)
                self._scheduled.add(file)

    def claim(self, ticket: Ticket, *, settled: bool = False) -> MaildirClaim | None:
        path = self._store.path(FOLDER_OF[ticket.state], ticket.order)
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
                # That of an ancestor's file is another file's.
                if claim is None or not claim.has(descriptor):
                    self._store.close(descriptor)
            return claim
        except OSError as error:
            raise self._store.error('cannot be claimed from', error) from error

    def _claim(self, ticket: Ticket, descriptor: int, settled: bool) -> MaildirClaim | None:
        now, began = self._clock(), time.perf_counter()
        try:
            data = self._store.read(descriptor, LARGE)
            self._ahead.took(ticket, time.perf_counter() - began)
            block, text = load(self._store, descriptor, data)
        except Unreadable as error:
            data = self._store.read(descriptor)
            adopted = adopt(self._store, ticket, data, now)
            if adopted is not None:
                return self.claim(adopted, settled=settled)
            self._aside(ticket, str(error), data)
            return None
        folder, name = FOLDER_OF[ticket.state], ticket.order
        schedule, renamed = parse(name), len(name) != LENGTH
        if schedule is None:
            schedule, renamed = _schedule(block), True
        attempt = schedule.attempt
        if block.entries:
            attempt = max(attempt, *(entry.attempt for entry in block.entries))
        if folder == 'new' and schedule.attempt:
            # Nothing of ours puts such a name there: a person has moved it from failed/.
            if settled:
                return None
            block.start_over(now)
            self._store.write(descriptor, block.changing(), STATE_AT)
            schedule, attempt, renamed = schedule._replace(attempt=0), 0, True
        # Where a clock was wrong: neither a time that never comes nor an age that never counts.
        if block.since > now:
            block.since = now
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
        if renamed:
            claim.rename(folder, schedule.name)
        if not attempt and schedule.due > now and block.envelope.not_before > now:
            # It came under a foreign name, which did not tell that its time has not come.
            return None
        if claim.todo:
            claim.begin()
        return claim

    def _aside(self, ticket: Ticket, reason: str, raw: bytes) -> None:
        name = set_aside(self._store, FOLDER_OF[ticket.state], ticket.order, reason)
        if name is not None:
            raise DamagedMail(name, reason, raw)

    def check_writable(self) -> None:
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

    def purge_failed(self, before: float, *, limit: int = 1_000) -> int:
        try:
            return self._dead.purge_failed(before, limit)
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
