"""Scan the folders: what is due, in order, in bounded memory and without a ``stat`` for each file.

With a million files each of them costs about a microsecond, most of it to read the folder. So due
times are compared as the text that they are in the name, and only names that may be among the first
are kept.

Files that come next are read ahead while one is sent: a long queue is not in the system's memory,
and waiting for the disk once a mail costs more than sending the mail.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from math import inf
from typing import NamedTuple

from ...threads import after_fork
from ..ticket import LATEST_EVENT, Ticket, alternate, time_text
from .filename import FOLDER_OF, match_name, ticket_of
from .files import QueueFiles
from .format import decode
from .large_text import LARGE_FILE, read_mail

__all__ = ['FolderScan', 'ReadAhead', 'ScanLimits', 'Scanner']

log = logging.getLogger(__name__)

_PAUSE_INTERVAL = 1_000
"""Files read between two calls of ``pause``."""

_LEFT_NAMES = 50_000
"""Files that are left out of scans, at most."""

_REJECTED = '.rejected-'
"""How zope.sendmail and repoze.sendmail name mail that their relay has refused for good."""

_LAST = '\U0010ffff'
"""Sorts after every file name."""


class ScanLimits(NamedTuple):
    """How much a scan keeps and opens."""

    names: int = 40_000
    """Names of a folder that a full scan keeps for ``next_page``, some 4 MB, so that a million
    mails are not listed anew for every few that were sent."""
    first_page: int = 5_000
    """Mails on the first page of a long scan: enough to send until the scan ends."""
    first_page_after: float = 0.25
    """Seconds after which a scan hands out its first page."""
    opened: int = 5_000
    """Files of mail for later that one scan opens to verify their times."""
    verified: int = 50_000
    """Files of mail for later that are remembered as verified. For more than that, the time in the
    name is believed."""


class Scanner:
    """Scans the folders of a queue.

    ``recover``: called before a full scan. ``longest``: the longest delay of the retry policy in
    seconds; a retry later than that is due now, since a wrong clock must have written its time.
    """

    def __init__(
        self,
        files: QueueFiles,
        *,
        limits: ScanLimits,
        longest: float,
        clock: Callable[[], float],
        recover: Callable[[], object],
    ) -> None:
        self._files = files
        self._limits = limits
        self._longest = longest
        self._clock = clock
        self._recover = recover
        self._verified: set[int] = set()
        self._left: set[str] = set()
        self._rejected_logged = False
        self._rest: Iterator[Ticket] = iter(())
        self.read_ahead = ReadAhead(files)
        after_fork(self._reset)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()

    def scan(
        self,
        now: float,
        *,
        limit: int,
        fresh: bool,
        all_events: bool,
        on_first_page: Callable[[list[Ticket]], None] | None,
    ) -> tuple[list[Ticket], float | None]:
        """See IScannableQueue. Raises OSError."""
        files, kept = self._files, max(limit, self._limits.names)
        done = FolderScan(files, 'done', limit=limit, left=self._left)
        new, cur = (
            FolderScan(files, folder, limit=kept, left=self._left) for folder in ('new', 'cur')
        )
        first_page_at = time.monotonic() + self._limits.first_page_after

        def pause() -> None:
            nonlocal on_first_page
            if on_first_page is not None and (new or cur) and time.monotonic() >= first_page_at:
                on_first_page([*islice(alternate(new, cur), min(limit, self._limits.first_page))])
                on_first_page = None

        # A caller may scan for a time in the past, which says nothing about the clock.
        here = max(now, self._clock())
        latest_retry = here + self._longest + 1
        suspects: dict[str, int] = {}
        if not fresh:
            with self._lock:
                self._rest = iter(())
            self.read_ahead.begin(())
            self._recover()
            done.read(inf if all_events else now, latest_retry=here + LATEST_EVENT, pause=pause)
        is_suspect = partial(self._is_suspect, suspects, time_text(here))
        new.read(now, latest_retry=latest_retry, pause=pause, is_suspect=is_suspect)
        if not fresh:
            cur.read(now, latest_retry=latest_retry, pause=pause)
            self._log_rejected(new.rejected + cur.rejected)
        self._verify(suspects, new, pause)
        order = chain(done, alternate(new, cur))
        tickets = list(islice(order, limit))
        if not fresh:
            with self._lock:
                self._rest = order
            self.read_ahead.begin((new, cur))
        times = [scan.next_due for scan in (done, new, cur)]
        if len(suspects) >= self._limits.opened:
            times.append(now)
        return tickets, min((time for time in times if time is not None), default=None)

    def next_page(self, limit: int) -> list[Ticket]:
        """See IScannableQueue."""
        with self._lock:
            return list(islice(self._rest, limit))

    def leave(self, name: str) -> bool:
        """Leave a file out of all further scans; return False if it is left out already."""
        if name in self._left:
            return False
        if len(self._left) < _LEFT_NAMES:
            self._left.add(name)
        return True

    def _log_rejected(self, count: int) -> None:
        if count and not self._rejected_logged:
            self._rejected_logged = True
            log.warning(
                'queue %s: %d mails that the relay of zope.sendmail or repoze.sendmail has refused '
                'for good stay in new/ and cur/ and are not sent: rename %s* without %s to send '
                'one again, or remove it',
                self._files.root,
                count,
                _REJECTED,
                _REJECTED,
            )

    def _is_suspect(self, suspects: dict[str, int], here: str, entry: os.DirEntry[str]) -> bool:
        """Whether a new mail's time in the future may come from a wrong clock.

        Its file has to be opened once to see whether the user asked for that time. The inode tells
        the file from another one that a person put in its place.
        """
        if len(self._verified) >= self._limits.verified or len(suspects) >= self._limits.opened:
            return False
        name = entry.name
        file = hash((name, entry.inode()))
        if file in self._verified or name[2:17] <= here:
            return False
        suspects[name] = file
        return True

    def _verify(self, suspects: dict[str, int], new: FolderScan, pause: Callable[[], None]) -> None:
        """Open the suspects: those whose time the user did not ask for are due now."""
        for name, file in suspects.items():
            pause()
            try:
                asked_for = decode(read_mail(self._files, 'new', name)).envelope.not_before
            except (OSError, ValueError):
                new.add_later(name)
                continue
            if asked_for:
                new.add_later(name)
                self._verified.add(file)
            else:
                new.add_due(name)


class FolderScan:
    """The first names in a folder that are due, at most ``limit``, and the time of the next one.

    ``left``: names that are left out.
    """

    def __init__(
        self, files: QueueFiles, folder: str, *, limit: int, left: Container[str] = ()
    ) -> None:
        self._files = files
        self._left = left
        self.folder = folder
        self._limit = limit
        self._names: list[str] = []
        self._bound = _LAST
        self._next = _LAST
        self.rejected = 0
        """How many mails the relay of an ancestor has refused. See _REJECTED."""

    def __bool__(self) -> bool:
        """True if anything is due."""
        return bool(self._names)

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over what is due, in order."""
        self._shorten()
        return (ticket_of(self.folder, name) for name in self._names)

    def names_after(self, name: str, count: int) -> list[str]:
        """Return at most ``count`` of the names that come after a name."""
        at = bisect_right(self._names, name)
        return self._names[at : at + count]

    @property
    def next_due(self) -> float | None:
        """When the next mail of those not yet due is due, in epoch seconds."""
        return None if self._next == _LAST else int(self._next) / 1000

    def read(
        self,
        now: float,
        *,
        latest_retry: float,
        pause: Callable[[], None],
        is_suspect: Callable[[os.DirEntry[str]], bool] = lambda entry: False,
    ) -> None:
        """Read the folder. Raises OSError.

        A retry, or an event, later than ``latest_retry`` is due: a wrong clock has written it.
        ``is_suspect(entry)``: True if the time of a new mail has to be looked up in its file; the
        caller then calls ``add_due`` or ``add_later``. ``pause`` is called now and then.
        """
        latest, too_late = time_text(now), time_text(latest_retry)
        with self._files.entries(self.folder) as entries:
            while block := list(islice(entries, _PAUSE_INTERVAL)):
                for entry in block:
                    name = entry.name
                    # Foreign names are due as well: a claim adopts them, or moves them to failed/.
                    if (time := name[2:17]) > latest and match_name(name):
                        if name[18:22] == '0000' and self.folder != 'done':
                            if not is_suspect(entry):
                                self.add_later(name)
                            continue
                        if time <= too_late:
                            self.add_later(name)
                            continue
                    if name < self._bound:
                        self.add_due(name)
                pause()

    def add_due(self, name: str) -> None:
        """Add a name that is due."""
        if name.startswith('.'):
            self.rejected += name.startswith(_REJECTED)
        elif name not in self._left:
            self._names.append(name)
            # Seldom enough to be cheap, and often enough to bound the memory.
            if len(self._names) > self._limit + self._limit // 4:
                self._shorten()

    def add_later(self, name: str) -> None:
        """Note the time of a name of ours that is not due."""
        if (time := name[2:17]) < self._next:
            self._next = time

    def _shorten(self) -> None:
        self._names.sort()
        if 0 < self._limit <= len(self._names):
            del self._names[self._limit :]
            self._bound = self._names[-1]


_DISK_READ_TIME = 0.000_1
"""Seconds: a file that takes longer to read was not in the system's memory."""

_READAHEAD_FILES = 64
"""Files that are read ahead at a time. If fewer wait, they are in memory anyway."""


class ReadAhead:
    """Have the system read the files that come next, once the read of a file was slow.

    At 1,000,000 files every second read waited for the disk without it. It is a hint: if the files
    have changed meanwhile, only time is lost, so it needs no lock.
    """

    def __init__(self, files: QueueFiles) -> None:
        self._files = files
        self._scans: dict[str, FolderScan] = {}
        self._requested: dict[str, str] = {}

    def begin(self, scans: Iterable[FolderScan]) -> None:
        """Set the scans whose names are claimed from now on, each in its order."""
        self._requested = {}
        self._scans = {scan.folder: scan for scan in scans}

    def file_read(self, ticket: Ticket, seconds: float) -> None:
        """Note how long the read of a file took, and read ahead if that was long."""
        folder, name = FOLDER_OF[ticket.state], ticket.order
        scan = self._scans.get(folder)
        if seconds < _DISK_READ_TIME or scan is None or name < self._requested.get(folder, ''):
            return
        names = scan.names_after(name, _READAHEAD_FILES)
        if len(names) == _READAHEAD_FILES:
            self._requested[folder] = names[-1]
            for each in names:
                self._files.begin_read(folder, each, LARGE_FILE)
