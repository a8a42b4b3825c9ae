"""A queued mail as it is read: a small one whole, of a large one the envelope block alone.

The message of a large one stays in its file, which is open and locked as long as the mail is
claimed. It is read twice, block by block: when it is claimed, to see that it is whole, and when it
is sent. So memory is a matter of connections, not of what their mails hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from ...envelope import BLOCK_SIZE, is_crlf
from ...threads import blocking
from .files import Store
from .format import Block, decode, lengths_of

__all__ = ['LARGE', 'StoredText', 'load']

LARGE = 4 * BLOCK_SIZE
"""Octets of a file from which on its message is not held in memory."""


def load(
    store: Store, descriptor: int, data: bytes | None = None
) -> tuple[Block, StoredText | None]:
    """Read an open file, of whose octets the first, LARGE at most, may be there already, and see
    that it is whole; the text is None where the envelope holds it. Raises Unreadable and OSError.
    """
    if data is None:
        data = store.read(descriptor, LARGE)
    if len(data) < LARGE:
        return decode(data), None
    size, _ = lengths_of(data)
    if size > LARGE:
        data = store.read(descriptor, size)
    text = StoredText(store, descriptor, at=size, end=os.fstat(descriptor).st_size)
    with blocking():
        return decode(data[:size], text), text


class StoredText:
    """See Text. The octets of a file from one place to another, until ``close``.

    ``block``: how many are read at a time.
    """

    def __init__(
        self, store: Store, descriptor: int, *, at: int, end: int, block: int = BLOCK_SIZE
    ) -> None:
        self.size = end - at
        self.is_ascii = True
        self.has_ascii_head = True
        self.has_crlf = True
        self._store = store
        self._descriptor: int | None = descriptor
        self._at = at
        self._end = end
        self._block = block

    def blocks(self) -> Iterator[bytes]:
        for at in range(self._at, self._end, self._block):
            if self._descriptor is None:
                # The same number may be another mail's by now.
                raise OSError(errno.EBADF, 'the claim of this mail has been released')
            octets = min(self._block, self._end - at)
            block = self._store.read_at(self._descriptor, octets, at)
            if len(block) != octets:
                raise OSError(errno.EIO, 'the file of this mail has become shorter')
            yield block

    def read(self) -> bytes:
        return b''.join(self.blocks())

    def close(self) -> None:
        """The file is not ours any more."""
        self._descriptor = None

    def survey(self, see: Callable[[bytes], object]) -> None:
        """See LargeText."""
        head, before, cut = True, b'', b''
        for block in self.blocks():
            see(block)
            self.is_ascii = self.is_ascii and block.isascii()
            if head:
                # What ends the headers may be cut in two.
                before += block
                start, blank, _ = before.partition(b'\r\n\r\n')
                self.has_ascii_head = self.has_ascii_head and start.isascii()
                head, before = not blank, before[-3:]
            whole = cut + block
            cut = b'\r' if whole.endswith(b'\r') else b''
            self.has_crlf = self.has_crlf and is_crlf(whole.removesuffix(cut))
        self.has_crlf = self.has_crlf and not cut
