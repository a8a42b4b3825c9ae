"""ReplyReader: replies from bytes, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Reply
from pyramid_sendmail.mailers.smtp.protocol.replies import (
    MAX_LINE_BYTES,
    MAX_REPLY_LINES,
    ReplyError,
    ReplyReader,
)

SEVERAL = b'250-a\r\n250-\r\n250 b\r\n354\n550 no\n250 b\r\n421-c\r\n421 d\r\n'

EXPECTED = [
    Reply(250, 'a b'),
    Reply(354, ''),
    Reply(550, 'no'),
    Reply(250, 'b'),
    Reply(421, 'c d'),
]


def read(reader: ReplyReader) -> list[Reply]:
    found = []
    while (reply := reader.next_reply()) is not None:
        found.append(reply)
    return found


@given(st.lists(st.integers(0, len(SEVERAL)), max_size=6))
def test_however_they_are_cut(cuts: list[int]) -> None:
    """The same replies come out wherever the bytes are cut, bare LF and no text included."""
    reader = ReplyReader()
    found = []
    ends = sorted({0, *cuts, len(SEVERAL)})
    for start, end in pairwise(ends):
        reader.feed(SEVERAL[start:end])
        found += read(reader)
    assert found == EXPECTED
    assert reader.unread == b''


@pytest.mark.parametrize('length', [MAX_LINE_BYTES - 6, MAX_LINE_BYTES + 2, 3 * MAX_LINE_BYTES])
@pytest.mark.parametrize('end', [b'\r\n', b''])
def test_long_lines(length: int, end: bytes) -> None:
    """A line has at most MAX_LINE_BYTES, ended or not."""
    reader = ReplyReader()
    reader.feed(b'250 ' + b'x' * length + end)
    if length > MAX_LINE_BYTES:
        with pytest.raises(ReplyError, match=f'more than {MAX_LINE_BYTES} bytes'):
            reader.next_reply()
    elif end:
        assert reader.next_reply() == Reply(250, 'x' * length)
    else:
        assert reader.next_reply() is None


def test_many_lines() -> None:
    """A reply has at most MAX_REPLY_LINES lines."""
    reader = ReplyReader()
    reader.feed(b'250-x\r\n' * (MAX_REPLY_LINES - 1) + b'250 x\r\n')
    assert reader.next_reply() is not None
    reader.feed(b'250-x\r\n' * MAX_REPLY_LINES)
    with pytest.raises(ReplyError, match=f'more than {MAX_REPLY_LINES} lines'):
        reader.next_reply()


@pytest.mark.parametrize(
    'line', [b'', b'25', b'250OK', b'600 x', b'150 x', b'HTTP/1.1 400', b'250-a\r\n550 b']
)
def test_no_reply(line: bytes) -> None:
    """What is no reply is an error that shows how it begins."""
    reader = ReplyReader()
    reader.feed(line + b'\r\n')
    with pytest.raises(ReplyError):
        reader.next_reply()


def test_lines_and_secrets() -> None:
    """The lines of EHLO come one by one; secrets and control characters are masked."""
    reader = ReplyReader()
    reader.secrets = ('s3cret',)
    reader.feed(b'250-hello s3cret\r\n250 a\x1b[2Jb\tc\r\n')
    assert reader.next_lines() == (250, ['hello ***', 'a\ufffd[2Jb c'])


def test_what_is_unread() -> None:
    """The first three bytes that were received and not read, for a caller that expects none."""
    reader = ReplyReader()
    assert reader.unread == b''
    reader.feed(b'4')
    assert reader.unread == b'4'
    reader.feed(b'21 bye\r\n25')
    assert reader.unread == b'421'
    assert reader.next_reply() == Reply(421, 'bye')
    assert reader.unread == b'25'
    reader.clear()
    assert reader.unread == b''
