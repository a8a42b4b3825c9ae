"""What a client may write, and when, as it is seen at the client's end of a connection.

The rules of RFC 5321, 2920, 3030 and 2033 for the order of commands, replies and texts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ['MAX_UNANSWERED', 'WireRules']

MAX_UNANSWERED = 64
"""Commands without a reply: their replies must fit into the buffers of a connection."""

_GROUP_ENDS = frozenset({'EHLO', 'LHLO', 'HELO', 'STARTTLS', 'AUTH', 'DATA', 'QUIT'})

_REPLY = re.compile(rb'(?:[0-9]{3}-[^\n]*\n)*([0-9]{3})(?: [^\n]*)?\r?\n')


@dataclass(slots=True, kw_only=True)
class _Transaction:
    """What the client knows of the transaction that it writes."""

    number: int
    asked: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    accepted: bool = False


class WireRules:
    """Notes ``faults``: feed it what a client writes, and what it has received.

    ``on_text_end(number, recipients)``: called for the end of each text, with the number of its
    mail and the recipients that may have it: those that are accepted, and by BDAT those that are
    not refused yet.
    """

    def __init__(
        self,
        *,
        pipelining: bool,
        lmtp: bool,
        window: int,
        on_text_end: Callable[[int, list[str]], object],
    ) -> None:
        self.faults: list[str] = []
        self._pipelining = pipelining
        self._lmtp = lmtp
        self._window = window
        self._on_text_end = on_text_end
        self._written = bytearray()
        self._read = bytearray()
        self._unanswered: deque[tuple[str, _Transaction | None, str]] = deque()
        self._transaction: _Transaction | None = None
        self._state = 'command'
        self._chunk = 0
        self._challenged = False
        self._over = False
        self._greeted = False

    @property
    def in_text(self) -> bool:
        """Whether the client is in the middle of a text."""
        return self._state in ('text', 'chunk') or bool(self._written)

    @property
    def awaited(self) -> str:
        """The verb of the next reply."""
        if not self._greeted:
            return 'greeting'
        return self._unanswered[0][0] if self._unanswered else ''

    def sent(self, data: bytes) -> None:
        """Note bytes that the client writes."""
        if self._over and data:
            self._fault(f'{data[:20]!r} behind QUIT')
        if not self._greeted and data:
            self._fault(f'{data[:20]!r} before the greeting')
        self._written += data
        while self._written and self._step():
            pass
        if self._written and self._state == 'command':
            self._fault(f'half a command: {bytes(self._written[:20])!r}')

    def received(self, data: bytes) -> None:
        """Note bytes that the client has received."""
        self._read += data
        while (found := _REPLY.match(self._read)) is not None:
            code = int(found[1])
            del self._read[: found.end()]
            self._on_reply(code)

    def _fault(self, text: str) -> None:
        self.faults.append(text)

    def _step(self) -> bool:
        written = self._written
        if self._state == 'command':
            if self._unanswered and self._unanswered[-1][0] in _GROUP_ENDS:
                self._fault(
                    f'{bytes(written[:20])!r} before the reply to {self._unanswered[-1][0]}'
                )
            end = written.find(b'\r\n')
            if end < 0:
                return False
            line = bytes(written[:end]).decode()
            del written[: end + 2]
            self._on_command(line)
            return True
        transaction = self._transaction
        assert transaction is not None
        recipients = [each for each in transaction.asked if each not in transaction.refused]
        if self._state == 'text':
            end = 0 if written.startswith(b'.\r\n') else written.find(b'\r\n.\r\n') + 2
            if end == 1:
                return False
            if end and not recipients:
                self._fault('a text without accepted recipients')
            del written[: end + 3]
            replies = len(recipients) if self._lmtp else 1
            self._unanswered.extend([('.', transaction, '')] * replies)
        else:
            if len(written) < self._chunk:
                return False
            del written[: self._chunk]
            self._unanswered.append(('BDAT', transaction, ''))
        self._state = 'command'
        if recipients:
            self._on_text_end(transaction.number, recipients)
        return True

    def _on_command(self, line: str) -> None:
        verb, _, rest = line.partition(' ')
        transaction = self._transaction
        recipient = ''
        if self._challenged:
            verb, self._challenged = 'AUTH', False
        elif verb == 'MAIL':
            transaction = self._transaction = _Transaction(
                number=int(rest.partition('from@')[2].partition('.')[0])
            )
        elif verb == 'RCPT':
            assert transaction is not None
            recipient = rest.partition('<')[2].partition('>')[0]
            if not self._pipelining and not transaction.accepted:
                self._fault('RCPT without an accepted MAIL')
            transaction.asked.append(recipient)
        elif verb == 'DATA':
            assert transaction is not None
            if not self._pipelining and not set(transaction.asked) - transaction.refused:
                self._fault('DATA without an accepted recipient')
        elif verb == 'BDAT':
            self._chunk, self._state = int(rest.split(' ')[0]), 'chunk'
            if 1 + sum(each == 'BDAT' for each, _, _ in self._unanswered) > self._window:
                self._fault('more texts than the window')
        elif verb == 'QUIT':
            self._over = True
            if self._unanswered:
                self._fault('QUIT before a reply')
        if not self._pipelining and self._unanswered:
            self._fault(f'{verb} before the reply to {self._unanswered[-1][0]}')
        if verb != 'BDAT':
            self._unanswered.append((verb, transaction, recipient))
        if len(self._unanswered) > MAX_UNANSWERED:
            self._fault('too many commands without a reply')

    def _on_reply(self, code: int) -> None:
        if not self._greeted:
            self._greeted = True
            return
        if not self._unanswered:
            return  # unasked
        verb, transaction, recipient = self._unanswered.popleft()
        if verb == 'MAIL':
            assert transaction is not None
            transaction.accepted = code // 100 == 2
        elif verb == 'RCPT':
            assert transaction is not None
            if code // 100 != 2:
                transaction.refused.add(recipient)
        elif verb == 'DATA' and code // 100 == 3:
            self._state = 'text'
        elif verb == 'AUTH':
            self._challenged = code == 334
