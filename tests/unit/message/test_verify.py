"""The last check of the bytes: no header that was not given, and short lines of 7 bits."""

from __future__ import annotations

import pytest

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message.verify import verify


def test_nothing_but_what_was_given() -> None:
    """A header that was not given, and a line that is too long or not ASCII, are refused."""
    good = b'A: b\r\nC: d\r\n\r\nx\r\n'
    verify(good, ['A', 'C'])
    with pytest.raises(MessageError, match='not those that were given'):
        verify(good, ['A'])
    for bad in (b'\0', b'\r', b'\n', b'\xe9', b'x' * 999):
        with pytest.raises(MessageError, match='7 bits'):
            verify(good + bad, ['A', 'C'])


@pytest.mark.parametrize(
    'raw',
    [
        b'',
        b'\r\nA: b\r\n\r\nbody\r\n',
        b' A: b\r\n\r\nbody\r\n',
        b'A: b\r\nC\r\n\r\nbody\r\n',
        b'A: b\nC: d\r\n\r\nbody\r\n',
        b'A: b\r\nB: c\r\nC: d\r\n\r\nbody\r\n',
        b'A: b\r\nC: d\rX: e\r\n\r\nbody\r\n',
        b'A: b\r\nC: d\r\n\r\nbo\rdy\n\r\n',
        b'A: b\r\nC: d\r\n\r\nbo\r\r\ndy\n\r\n',
        b'A: b\r\nC: d\r\n\r\nbody',
    ],
)
def test_smuggled_headers_are_refused(raw: bytes) -> None:
    """A header that is hidden, empty, without a name or smuggled in, and a line without a whole
    CRLF, are refused."""
    with pytest.raises(MessageError):
        verify(raw, ['A', 'C'])


@pytest.mark.parametrize('length', [1, 997, 998, 999, 1000, 1998, 5000])
def test_a_long_line_is_found_anywhere(length: int) -> None:
    """A line of 998 bytes is accepted, one of 999 refused, anywhere (RFC 5322, 2.1.1)."""
    for before in (0, 1, 500, 996, 997, 998):
        raw = b'A: b\r\n\r\n' + b'x' * before + b'\r\n' + b'y' * length + b'\r\nz\r\n'
        if length <= 998:
            verify(raw, ['A'])
        else:
            with pytest.raises(MessageError):
                verify(raw, ['A'])
