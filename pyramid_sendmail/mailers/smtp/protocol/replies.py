"""Replies of a relay, read from its bytes (RFC 5321, 4.2)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from ....envelope import Reply

__all__ = ['ReplyError', 'ReplyReader', 'reply_text']

MAX_LINE_BYTES = 4_096
"""Bytes in one line of a reply; RFC 5321, 4.5.3.1.5 allows 512."""

MAX_REPLY_LINES = 256
"""Lines in one reply, so that a relay can neither fill the memory nor go on for ever."""

MAX_REPLY_CHARACTERS = 4_096
"""Characters that are kept of a reply, which goes into logs, events and the queue."""

MAX_CACHED_REPLIES = 64
"""Replies of one line that are cached: the first of a connection, which are the common ones."""

_LINE_TOO_LONG = f"a line of the relay's reply has more than {MAX_LINE_BYTES} bytes"

_REPLY_LINE = re.compile(rb'([2-5][0-9]{2})(?:([ -])(.*))?', re.DOTALL)


class ReplyError(ValueError):
    """What the relay sent is no reply."""


class ReplyReader:
    """Cuts what a relay sends into replies.

    ``secrets``: strings that are masked in the texts.
    """

    def __init__(self) -> None:
        self.secrets: tuple[str, ...] = ()
        self._lines: deque[bytes] = deque()
        self._partial_line = b''
        self._texts: list[str] = []
        """The lines of a reply that is not complete yet."""
        self._code = b''
        self._cached_replies: dict[bytes, Reply] = {}

    @property
    def unread(self) -> bytes:
        """The first three bytes, at most, of what was received and not read yet."""
        return (self._lines[0] + b'\n')[:3] if self._lines else self._partial_line[:3]

    def feed(self, data: bytes) -> None:
        """Take bytes that the relay sent."""
        *lines, self._partial_line = (self._partial_line + data).split(b'\n')
        self._lines.extend(lines)

    def clear(self) -> None:
        """Forget what was received and not read."""
        self._lines.clear()
        self._partial_line = b''
        self._texts = []
        self._code = b''

    def next_reply(self) -> Reply | None:
        """Return the next reply, or None if it is not complete yet. Raises ReplyError."""
        lines = self._lines
        if lines and not self._texts:
            # Nearly every reply is one line, and the same for each mail.
            first = lines[0]
            reply = self._cached_replies.get(first)
            if reply is not None:
                lines.popleft()
                return reply
            found = self.next_lines()
            if found is None:
                return None
            reply = Reply(found[0], reply_text(found[1]))
            if len(found[1]) == 1 and len(self._cached_replies) < MAX_CACHED_REPLIES:
                self._cached_replies[first] = reply
            return reply
        found = self.next_lines()
        return None if found is None else Reply(found[0], reply_text(found[1]))

    def reply_of_line(self, line: bytes) -> Reply | None:
        """Return the reply that is this line, without its LF, where nothing is unread. Raises
        ReplyError."""
        reply = self._cached_replies.get(line)
        if reply is None:
            self._lines.append(line)
            reply = self.next_reply()
        return reply

    def next_lines(self) -> tuple[int, list[str]] | None:
        """Return code and the text of each line of the next reply, or None. Raises ReplyError."""
        while self._lines:
            line = self._lines.popleft()
            if len(line) >= MAX_LINE_BYTES:
                raise ReplyError(_LINE_TOO_LONG)
            line = line.removesuffix(b'\r')
            match = _REPLY_LINE.fullmatch(line)
            if match is None:
                raise ReplyError(f'not an SMTP reply: it begins {line[:4]!r}')
            code, mark, text = match.groups()
            if self._texts and code != self._code:
                raise ReplyError('the lines of one reply have different codes')
            self._code = code
            self._texts.append(self._printable(text))
            if mark != b'-':
                texts, self._texts = self._texts, []
                return int(code), texts
            if len(self._texts) >= MAX_REPLY_LINES:
                raise ReplyError(f"the relay's reply has more than {MAX_REPLY_LINES} lines")
        if len(self._partial_line) >= MAX_LINE_BYTES:
            raise ReplyError(_LINE_TOO_LONG)
        return None

    def _printable(self, text: bytes | None) -> str:
        """Return a line's text with secrets masked and control characters replaced."""
        words = (text or b'').decode('utf-8', 'replace')
        for secret in self.secrets:
            words = words.replace(secret, '***')
        return (words if words.isprintable() else _without_controls(words)).strip()


def reply_text(lines: Iterable[str]) -> str:
    """Return the lines of a reply as one text, of MAX_REPLY_CHARACTERS at most."""
    return ' '.join(filter(None, lines))[:MAX_REPLY_CHARACTERS]


def _without_controls(text: str) -> str:
    """Replace white space, Unicode line ends included, by blanks, and other characters that are
    not printable (cursor movements, changes of the writing direction) by a mark."""
    return ''.join(
        ' ' if letter.isspace() else letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}'
        for letter in text
    )
