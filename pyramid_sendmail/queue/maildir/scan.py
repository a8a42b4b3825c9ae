"""A folder read once: which names are due, in order, in bounded memory and without one ``stat``.

With a million files each costs about a microsecond, most of it to read the folder. So times are
compared as the text that they are in the name, and of what is due only a name that may be among the
first is kept.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice

from ..ticket import Ticket
from .filename import is_ours, ticket_of, time_text

__all__ = ['Listing']

_BLOCK = 1_000
"""Files read between two calls of ``pause``."""

_ABOVE = '\U0010ffff'
"""No file's name is later in the order."""


class Listing:
    """The first names in a folder that are due, at most ``limit``, and the time of the next one."""

    def __init__(self, root: str, folder: str, *, limit: int) -> None:
        self._path = f'{root}/{folder}'
        self.folder = folder
        self._limit = limit
        self._names: list[str] = []
        self._bound = _ABOVE
        self._next = _ABOVE

    def __bool__(self) -> bool:
        """Whether anything is due."""
        return bool(self._names)

    def __iter__(self) -> Iterator[Ticket]:
        """What is due, in order."""
        self._shorten()
        return (ticket_of(self.folder, name) for name in self._names)

    def behind(self, name: str, count: int) -> list[str]:
        """So many of the names that come next."""
        at = bisect_right(self._names, name)
        return self._names[at : at + count]

    @property
    def next_due(self) -> float | None:
        """When the next one is due, in epoch seconds."""
        return None if self._next == _ABOVE else int(self._next) / 1000

    def read(
        self,
        now: float,
        *,
        wrong: float,
        pause: Callable[[], None],
        doubt: Callable[[os.DirEntry[str]], bool] = lambda entry: False,
    ) -> None:
        """Read the folder. Raises OSError.

        A retry with a time later than ``wrong`` is due. ``doubt``: whether the time to come of a
        mail that was never tried is in question; the caller then says ``add`` or ``later``.
        ``pause`` is called now and then.
        """
        latest, too_late = time_text(now), time_text(wrong)
        with os.scandir(self._path) as entries:
            while block := list(islice(entries, _BLOCK)):
                for entry in block:
                    name = entry.name
                    # Of what is due, foreign names too: they are adopted, or put aside.
                    if (time := name[2:17]) > latest and is_ours(name):
                        if name[18:22] == '0000':
                            if not doubt(entry):
                                self.later(name)
                            continue
                        if time <= too_late:
                            self.later(name)
                            continue
                    if name < self._bound:
                        self.add(name)
                pause()

    def add(self, name: str) -> None:
        """A name that is due."""
        if not name.startswith('.'):
            self._names.append(name)
            # Seldom, so that it costs little, and often enough for the memory.
            if len(self._names) > self._limit + self._limit // 4:
                self._shorten()

    def later(self, name: str) -> None:
        """A name of ours that is not due."""
        if (time := name[2:17]) < self._next:
            self._next = time

    def _shorten(self) -> None:
        self._names.sort()
        if 0 < self._limit <= len(self._names):
            del self._names[self._limit :]
            self._bound = self._names[-1]
