"""Files of the queue whose first line is true of what was changed in them, and of version 1."""

from __future__ import annotations

import re
from hashlib import sha256

from pyramid_sendmail.envelope import traits_of
from pyramid_sendmail.queue.maildir.first_line import FIRST, FIRST_LENGTH, first_line

__all__ = ['block_end', 'version_1', 'with_checksums']

_OLD = FIRST + b'1 '


def block_end(data: bytes) -> int:
    """Return where the lines of the envelope end."""
    match = re.match(b'(?:(?:X-Envelope| ).*\n)*', data)
    assert match is not None
    return match.end()


def with_checksums(data: bytes) -> bytes:
    """Have the first line say what is true of the rest, as if the file had been made so. A file
    without clear parts stays as it is."""
    parts = _parts(data)
    if parts is None:
        return data
    end, fixed, recipients = parts
    if data.startswith(_OLD):
        return _old_line(data, end, fixed, recipients) + data[data.index(b'\r\n') + 2 :]
    line = first_line(end, fixed, b'\n'.join(recipients), data[end:], traits_of(data[end:]))
    return line + data[data.index(b'\r\n') + 2 :]


def version_1(data: bytes) -> bytes:
    """Return a file as version 1 of the format had it: it differs in the first line."""
    parts = _parts(data)
    assert parts is not None
    end, fixed, recipients = parts
    return _old_line(data, end, fixed, recipients) + data[FIRST_LENGTH:]


def _parts(data: bytes) -> tuple[int, bytes, list[bytes]] | None:
    """Return where the block ends, its fixed lines, and the recipients."""
    end = block_end(data)
    to = re.compile(b'\r\n(?=X-Envelope-To: )').search(data, 0, end)
    slot = [*re.compile(b'X-Envelope-Outcome: .*\r\n').finditer(data, 0, end)]
    if to is None or not slot:
        return None
    recipients = re.findall(b'X-Envelope-To: .{7} (.+)\r\n', data[to.end() : end])
    try:
        b''.join(recipients).decode()
    except UnicodeDecodeError:
        return None
    return end, data[slot[-1].end() : to.end()], recipients


def _old_line(data: bytes, end: int, fixed: bytes, recipients: list[bytes]) -> bytes:
    lengths = b'1 %08d %012d ' % (end, len(data) - end)
    digest = sha256(lengths + fixed + b'\n'.join(recipients) + data[end:])
    return FIRST + lengths + digest.hexdigest().encode() + b'\r\n'
