"""Reading ahead: the files that come next are asked for while one is sent.

A short queue is in the system's memory. Of a long one much has left it by the time that its turn
comes, and to wait for the disk once a mail costs more than the mail.
"""

from __future__ import annotations

from collections.abc import Iterable

from .maildir.filename import FOLDER_OF
from .maildir.files import Store
from .maildir.large_text import LARGE
from .maildir.scan import Listing
from .ticket import Ticket

__all__ = ['ReadAhead']

_SLOW = 0.000_1
"""Seconds from which on it was the disk that a file was read from."""

_FILES = 64
"""Files that are asked for in one go; where fewer wait they are in memory anyway."""


class ReadAhead:
    """Has the system read what comes next in the listings, once a file had to be waited for.

    A hint: nothing comes of it but time, whatever has become of the files. So no lock is needed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listings: dict[str, Listing] = {}
        self._asked: dict[str, str] = {}

    def expect(self, listings: Iterable[Listing]) -> None:
        """These are what is taken now, each in its order."""
        self._asked = {}
        self._listings = {listing.folder: listing for listing in listings}

    def took(self, ticket: Ticket, seconds: float) -> None:
        """So long did it take to read the file of this one."""
        folder, name = FOLDER_OF[ticket.state], ticket.order
        listing = self._listings.get(folder)
        if seconds < _SLOW or listing is None or name < self._asked.get(folder, ''):
            return
        names = listing.behind(name, _FILES)
        if len(names) == _FILES:
            self._asked[folder] = names[-1]
            for each in names:
                self._store.begin_read(self._store.path(folder, each), LARGE)
