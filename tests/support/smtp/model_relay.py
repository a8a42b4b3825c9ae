"""A model of a relay, without a socket: bytes in, replies out, and it knows who has had what.

It conforms to RFC 5321, 2920, 3030 and 2033 where ``answer`` does not say otherwise, and notes
where a client does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ['Answer', 'ModelRelay', 'RelaySession', 'Traits']

_SENDER = re.compile(r'MAIL FROM:<from@([0-9]+)\.example\.org>(?: |$)')

_RECIPIENT = re.compile(r'RCPT TO:<([^>]+)>(?: |$)')


class Answer(NamedTuple):
    """What the relay does instead of its usual reply.

    ``reply``: the bytes of the reply; b'': none. ``then``: '' to go on, 'close', or 'silent' to
    neither read nor reply any more. ``takes``: without a positive reply to a text, the relay has
    the mail all the same.
    """

    reply: bytes
    then: str = ''
    takes: bool = False

    @property
    def code(self) -> int:
        """The code of the last line; 0 without a reply."""
        last = self.reply.rstrip(b'\r\n').rpartition(b'\n')[2][:3]
        return int(last) if last.isdigit() else 0


FULL = Answer(b'452 4.5.3 too many mails in this session\r\n')

CROWDED = Answer(b'452 4.5.3 too many recipients\r\n')

Choose = Callable[['RelaySession', str, str], Answer | None]
"""Called with the verb and its recipient or ''; None for the usual reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What kind of relay it is.

    ``max_transactions``: of one session; then ``full`` is the reply to MAIL. ``max_recipients``: of
    one transaction; then ``crowded`` is the reply to RCPT. 0: no limit. ``refuses_behind_dot``:
    503 to a MAIL that came together with the end of a text, as from Haraka. ``empty_text``: DATA
    without a recipient is answered 354 (RFC 2920, 3.1).
    """

    lmtp: bool = False
    extensions: tuple[str, ...] = ('PIPELINING', '8BITMIME')
    max_transactions: int = 0
    full: Answer = FULL
    max_recipients: int = 0
    crowded: Answer = CROWDED
    refuses_behind_dot: bool = False
    empty_text: bool = False


@dataclass(slots=True)
class ModelRelay:
    """A relay over all of its sessions.

    ``texts``: the text of each mail, by its number: the sender is from@NUMBER.example.org.
    ``had``: how often the relay took a mail for a recipient. ``faults``: what a client did wrong.
    """

    traits: Traits
    texts: Mapping[int, bytes]
    answer: Choose
    had: Counter[tuple[int, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def session(self) -> RelaySession:
        """Return a new session, which has sent its greeting."""
        return RelaySession(self)


class RelaySession:
    """One session.

    ``receive`` takes bytes, ``take_output`` returns what was sent since. ``state``: 'command',
    'text', 'chunk', 'closed' or 'silent'.
    """

    def __init__(self, relay: ModelRelay) -> None:
        self.relay = relay
        self.state = 'command'
        self.number = -1
        self.transactions = 0
        self._traits = relay.traits
        self._pipelining = 'PIPELINING' in relay.traits.extensions
        self._buffer = bytearray()
        self._output = bytearray()
        self._held = False  # a transaction
        self._chunk_refused = False
        self._recipients: list[str] = []
        self._chunk = 0
        self._early = False
        self._greeted = False
        self._challenged = False
        self._due = 0  # responses
        self._say('greeting', b'220 relay.example.org\r\n')

    def take_output(self) -> bytes:
        """Return what the relay has sent."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes) -> None:
        """Read bytes of the client, and act on what is complete."""
        self._buffer += data
        while self._step():
            pass

    def interrupt(self, answer: Answer) -> None:
        """Say something unasked, and close."""
        if self.state not in ('closed', 'silent'):
            self._output += answer.reply
            self.state = 'closed'

    def fault(self, text: str) -> None:
        """Note what the client did wrong."""
        self.relay.faults.append(text)

    def _step(self) -> bool:
        buffer = self._buffer
        if self.state == 'command':
            end = buffer.find(b'\r\n')
            if end < 0:
                return False
            line = bytes(buffer[:end]).decode()
            del buffer[: end + 2]
            self._command(line)
            return True
        if self.state == 'text':
            end = -2 if buffer.startswith(b'.\r\n') else buffer.find(b'\r\n.\r\n')
            if end == -1:
                return False
            text = bytes(buffer[: end + 2])
            del buffer[: end + 5]
            self._end_of_text(re.sub(rb'(?m)^\.', b'', text), '.')
            return True
        if self.state == 'chunk' and len(buffer) >= self._chunk:
            text = bytes(buffer[: self._chunk])
            del buffer[: self._chunk]
            self._end_of_text(text, 'BDAT')
            return True
        return False

    def _command(self, line: str) -> None:
        verb = line.partition(' ')[0]
        if self._challenged:
            self._authenticate()
        elif verb in ('MAIL', 'RCPT', 'DATA', 'BDAT', 'RSET') and not self._greeted:
            self.fault(f'{verb} before EHLO')
            self._say(verb, b'503 5.5.1 EHLO first\r\n')
        else:
            handler = getattr(self, f'_on_{verb.lower()}', None)
            if handler is None:
                self.fault(f'no command: {line!r}')
                self._say('', b'500 5.5.2 what?\r\n')
            else:
                handler(line)

    def _say(
        self, verb: str, usual: bytes, *, recipient: str = '', limit: Answer | None = None
    ) -> Answer:
        """Reply, and return what was done."""
        if self.state in ('closed', 'silent'):
            return Answer(b'')
        # A limit is a limit, and no positive answer lifts it.
        answer = self.relay.answer(self, verb, recipient) if limit is None else limit
        answer = answer or Answer(usual)
        self._output += answer.reply
        if answer.then == 'close' or answer.code == 421:
            self.state = 'closed'
        elif answer.then == 'silent':
            self.state = 'silent'
        return answer

    def _on_ehlo(self, line: str) -> None:
        self._reset()
        lines = ['250-relay.example.org', *(f'250-{each}' for each in self._traits.extensions)]
        lines.append('250 HELP')
        answer = self._say(line.partition(' ')[0], '\r\n'.join([*lines, '']).encode())
        self._greeted = answer.code // 100 == 2
        if (line[:4] == 'LHLO') is not self._traits.lmtp:
            self.fault(f'{line[:4]} to the other protocol')

    _on_lhlo = _on_ehlo

    def _on_helo(self, line: str) -> None:
        self._greeted = self._say('HELO', b'250 relay.example.org\r\n').code == 250

    def _on_starttls(self, line: str) -> None:
        answer = self._say('STARTTLS', b'220 go ahead\r\n')
        if answer.code == 220:
            self._greeted = False
            if self._buffer:
                self.fault('bytes behind STARTTLS')

    def _on_auth(self, line: str) -> None:
        mechanism, _, response = line.partition(' ')[2].partition(' ')
        self._due = 2 if mechanism == 'LOGIN' else 0 if response else 1
        self._authenticate()

    def _authenticate(self) -> None:
        answer = self._say(
            'AUTH', b'334 VXNlcm5hbWU6\r\n' if self._due else b'235 2.7.0 welcome\r\n'
        )
        self._challenged = answer.code == 334
        self._due = max(0, self._due - 1)

    def _on_rset(self, line: str) -> None:
        self._say('RSET', b'250 2.0.0 ok\r\n')
        self._reset()

    def _reset(self) -> None:
        self._held = self._chunk_refused = False
        self._recipients = []

    def _on_mail(self, line: str) -> None:
        found = _SENDER.match(line)
        early, self._early = self._early, False
        if self._held or self._chunk_refused:
            self.fault('MAIL inside a transaction')
            self._say('', b'503 5.5.1 nested MAIL\r\n')
            return
        if found is None:
            self.fault(f'no MAIL: {line!r}')
            self._say('', b'501 5.5.4 what?\r\n')
            return
        number = int(found[1])
        self.number = number
        limit = None
        if early and self._traits.refuses_behind_dot:
            limit = Answer(b'503 5.5.1 sender already specified\r\n')
        elif 0 < self._traits.max_transactions <= self.transactions:
            limit = self._traits.full
        if self._say('MAIL', b'250 2.1.0 ok\r\n', limit=limit).code // 100 == 2:
            self._held, self._recipients = True, []
            self.transactions += 1

    def _on_rcpt(self, line: str) -> None:
        found = _RECIPIENT.match(line)
        if found is None:
            self.fault(f'no RCPT: {line!r}')
            self._say('', b'501 5.5.4 what?\r\n')
            return
        recipient = found[1]
        if not self._held:
            if not self._pipelining:
                self.fault('RCPT without MAIL')
            self._say('', b'503 5.5.1 MAIL first\r\n')
            return
        crowded = 0 < self._traits.max_recipients <= len(self._recipients)
        limit = self._traits.crowded if crowded else None
        answer = self._say('RCPT', b'250 2.1.5 ok\r\n', recipient=recipient, limit=limit)
        if answer.code // 100 == 2:
            self._recipients.append(recipient)

    def _on_data(self, line: str) -> None:
        if self._recipients:
            answer = self._say('DATA', b'354 go on\r\n')
        else:
            if not self._pipelining:
                self.fault('DATA without a recipient')
            empty = self._traits.empty_text and self._held and not self._traits.lmtp
            answer = self._say('', b'354 go on\r\n' if empty else b'503 5.5.1 RCPT first\r\n')
        if answer.code // 100 == 3 and self.state == 'command':
            self.state = 'text'
            if self._buffer:
                self.fault('bytes behind DATA before its reply')

    def _on_bdat(self, line: str) -> None:
        _, size, last = line.split(' ')
        if 'CHUNKING' not in self._traits.extensions or last != 'LAST':
            self.fault(f'a chunk: {line!r}')
        self._chunk, self.state = int(size), 'chunk'

    def _end_of_text(self, text: bytes, verb: str) -> None:
        self.state = 'command'
        recipients = self._recipients
        self._early = bool(self._buffer)
        if not recipients:
            if verb == '.' and text:
                self.fault('a text without recipients')
            self._held = False
            self._chunk_refused = verb == 'BDAT'
            self._say('', b'554 5.5.1 no valid recipients\r\n')
            return
        if text != self.relay.texts[self.number]:
            self.fault(f'another text than that of mail {self.number}')
        self._reset()
        refused = takes = False
        for place, recipient in enumerate(recipients):
            # After the end the last decision counts for the recipients that are left.
            if (self._traits.lmtp or place == 0) and self.state == 'command':
                answer = self._say(verb, b'250 2.0.0 taken\r\n', recipient=recipient)
                refused = refused or answer.code >= 400
                takes = answer.takes or answer.code // 100 == 2
            if takes:
                self.relay.had[self.number, recipient] += 1
        self._chunk_refused = verb == 'BDAT' and refused

    def _on_quit(self, line: str) -> None:
        self._say('QUIT', b'221 2.0.0 bye\r\n')
        if self._buffer:
            self.fault('bytes behind QUIT')
        self.state = 'closed'
