"""Load a queued mail: a small one whole, of a large one the envelope block alone.

The message of a large mail stays in its file, which is open and locked while the mail is claimed.
The file is read twice, block by block: at the claim, to verify it, and when the mail is sent. So
memory grows with the number of connections, not with the size of the mails.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from ...envelope import BLOCK_SIZE, TextTraits, is_crlf
from .files import QueueFiles
from .first_line import check_length, lengths_of
from .format import EnvelopeBlock, decode

__all__ = ['LARGE_FILE', 'FileText', 'load', 'read_mail']

LARGE_FILE = 4 * BLOCK_SIZE
"""Bytes of a file from which on its message is not held in memory."""


def load(
    files: QueueFiles, descriptor: int, data: bytes | None = None
) -> tuple[EnvelopeBlock, FileText | None]:
    """Read and verify an open file. Raises Unreadable and OSError.

    The FileText is None if the envelope holds the message. ``data``: the first LARGE_FILE bytes of
    the file, if they were read already.
    """
    if data is None:
        data = files.read(descriptor, LARGE_FILE)
    if len(data) < LARGE_FILE:
        return decode(data), None
    size, rest = lengths_of(data)
    end = os.fstat(descriptor).st_size
    check_length(end, size, rest)
    if size > LARGE_FILE:
        data = files.read(descriptor, size)
    text = FileText(files, descriptor, at=size, end=end)
    return decode(data[:size], text), text


def read_mail(files: QueueFiles, folder: str, name: str) -> bytes:
    """Read a mail without a lock, but no more of a foreign file than its head.

    Raises Unreadable, ValueError if it is not a plain file, and OSError.
    """
    data = files.read_unlocked(folder, name, LARGE_FILE)
    if len(data) == LARGE_FILE:
        data = files.read_unlocked(folder, name, sum(lengths_of(data)) + 1)
    return data


class FileText:
    """See LargeText. The bytes of a file from ``at`` to ``end``, until ``close``.

    ``block``: how many bytes are read at a time.
    """

    def __init__(
        self, files: QueueFiles, descriptor: int, *, at: int, end: int, block: int = BLOCK_SIZE
    ) -> None:
        self.size = end - at
        self.traits = TextTraits(False, True, False, False)
        """Set by ``verify``."""
        self._files = files
        self._descriptor: int | None = descriptor
        self._at = at
        self._end = end
        self._block = block

    def blocks(self) -> Iterator[bytes]:
        for at in range(self._at, self._end, self._block):
            if self._descriptor is None:
                # By now the same number may be the descriptor of another mail.
                raise OSError(errno.EBADF, 'the claim of this mail has been released')
            size = min(self._block, self._end - at)
            block = self._files.read_at(self._descriptor, size, at)
            if len(block) != size:
                raise OSError(errno.EIO, 'the file of this mail has become shorter')
            yield block

    def read(self) -> bytes:
        return b''.join(self.blocks())

    def close(self) -> None:
        """Read nothing more: the claim that owned the file was released."""
        self._descriptor = None

    def survey(self, update: Callable[[bytes], object]) -> None:
        """See LargeText."""
        is_ascii = has_ascii_head = has_crlf = True
        has_dots, head, before, cut, end = False, True, b'', b'', b'\r\n'
        for block in self.blocks():
            update(block)
            is_ascii = is_ascii and block.isascii()
            if head:
                # The empty line that ends the headers may stand in two blocks.
                before += block
                start, blank, _ = before.partition(b'\r\n\r\n')
                has_ascii_head = has_ascii_head and start.isascii()
                head, before = not blank, before[-3:]
            has_dots = has_dots or b'\r\n.' in end + block
            end = (end + block)[-2:]
            whole = cut + block
            cut = b'\r' if whole.endswith(b'\r') else b''
            has_crlf = has_crlf and is_crlf(whole.removesuffix(cut))
        self.traits = TextTraits(has_crlf and not cut, has_dots, is_ascii, has_ascii_head)
