"""One SMTP conversation of a scripted server: strict in what it reads, scripted in what it says."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.smtp.actions import Action, Reply
from tests.support.smtp.authentication import authenticate
from tests.support.smtp.channel import Channel, Gone
from tests.support.smtp.dialogue import Dialogue, ReceivedMessage
from tests.support.smtp.parsers import data_violations, message_id, unstuffed
from tests.support.smtp.replies import (
    ABSENT,
    FINE,
    GO_ON,
    GOODBYE,
    NOBODY,
    NOTHING,
    ORDER,
    PARAMETER,
    READY,
    RECIPIENT_FINE,
    SENDER_FINE,
    SYNTAX,
    TOO_BIG,
    UNKNOWN,
    WHO,
)

if TYPE_CHECKING:
    from tests.support.smtp.server import ScriptedSMTPServer

__all__ = ['Session']

_PATH = r'<((?:"(?:[^"\\]|\\.)*"|[^">])*)>(?: (.+))?'
_MAIL = re.compile(rf'MAIL FROM:{_PATH}', re.IGNORECASE)
_RCPT = re.compile(rf'RCPT TO:{_PATH}', re.IGNORECASE)
_BDAT = re.compile('BDAT ([0-9]{1,9})( LAST)?', re.IGNORECASE)
_CONTROL = re.compile(rb'[\x00-\x1f\x7f]')

# The extension that each parameter of MAIL and RCPT belongs to (RFC 1870, 6152, 6531, 4954, 3461)
_PARAMETERS = {
    'SIZE': 'SIZE',
    'BODY': '8BITMIME',
    'SMTPUTF8': 'SMTPUTF8',
    'AUTH': 'AUTH',
    'RET': 'DSN',
    'ENVID': 'DSN',
    'NOTIFY': 'DSN',
    'ORCPT': 'DSN',
}

# Octets with CRLF (RFC 5321, 4.5.3.1.4; extensions add to MAIL and RCPT)
_COMMAND_LIMIT = 512
_LIMITS = {'MAIL': 1_200, 'RCPT': 1_100}

# Commands that end a group (RFC 2920, 3.1; RFC 3207; RFC 4954)
_LAST_IN_GROUP = frozenset({'EHLO', 'HELO', 'LHLO', 'STARTTLS', 'AUTH', 'DATA', 'QUIT', 'NOOP'})


class Session:
    """What a scripted callable gets: the state of a conversation, to read.

    ``line``: the command being answered. ``data``: the message being answered; ``recipient``: by
    LMTP, for whom.
    """

    def __init__(self, server: ScriptedSMTPServer, connection: int, channel: Channel) -> None:
        self.server = server
        self.connection = connection
        self.channel = channel
        self.tls = False
        self.helo = ''
        self.offered: dict[str, str] = {}
        self.authenticated_as: str | None = None
        self.sender: str | None = None
        self.mail_arguments = ''
        self.recipients: list[str] = []
        self.line = ''
        self.data = b''
        self.recipient = ''
        self._refused = False
        self._spoilt = False
        self._chunks = b''
        self._dialogue = Dialogue(server, self, channel)
        self._commands: dict[str, Callable[[], None]] = {
            'EHLO': self._ehlo,
            'HELO': self._helo,
            'STARTTLS': self._starttls,
            'AUTH': self._auth,
            'MAIL': self._mail,
            'RCPT': self._rcpt,
            'DATA': self._data,
            'BDAT': self._bdat,
            'RSET': self._rset,
            'NOOP': self._noop,
            'QUIT': self._quit,
        }
        if server.lmtp:
            self._commands['LHLO'] = self._ehlo
            del self._commands['EHLO'], self._commands['HELO']

    def run(self) -> None:
        """Converse until the connection ends."""
        try:
            if self.server.tls == 'implicit':
                self._handshake()
            self._dialogue.silence = 'the greeting'
            greeting = Reply(220, (f'{self.server.hostname} ESMTP scripted',))
            self._refused = self._dialogue.perform('connect', '', greeting) >= 400
            while True:
                self._command()
        except Gone:
            pass
        finally:
            self.channel.close()

    def _command(self) -> None:
        self.line = ''
        octets = self._dialogue.read_line('command')
        word = octets.split(b' ', 1)[0].decode('ascii', 'replace').upper()
        self.line = octets.decode('utf-8', 'surrogateescape')
        self.server.note_command(self.connection, word, self.line)
        if len(octets) + 2 > _LIMITS.get(word, _COMMAND_LIMIT):
            self._dialogue.violation(f'{word} of {len(octets) + 2} octets')
        if _CONTROL.search(octets):
            self._dialogue.violation(f'control character in {octets!r}')
            self._dialogue.say(UNKNOWN.encoded)
            return
        if not octets.isascii():
            self._check_utf8(word, octets)
        if word in _LAST_IN_GROUP or 'PIPELINING' not in self.offered:
            self._dialogue.silence = f'the reply to {word}'
        if handler := self._commands.get(word):
            handler()
        elif word in {'VRFY', 'EXPN', 'HELP'}:
            self._dialogue.say(ABSENT.encoded)
        else:
            self._dialogue.violation(f'unknown command {self.line[:80]!r}')
            self._dialogue.say(UNKNOWN.encoded)

    def _check_utf8(self, word: str, octets: bytes) -> None:
        declared = self.line if word == 'MAIL' else self.mail_arguments
        if word not in {'MAIL', 'RCPT'} or 'SMTPUTF8' not in declared.upper().split():
            self._dialogue.violation(f'octet above 127 without SMTPUTF8 in {octets!r}')
        elif '\udc80' <= max(self.line) <= '\udcff':
            self._dialogue.violation(f'no UTF-8 in {octets!r}')

    def _clear(self) -> None:
        self.sender = None
        self.mail_arguments = ''
        self.recipients = []
        self._spoilt = False
        self._chunks = b''

    def _ehlo(self) -> None:
        default: Action = SYNTAX
        if self._refused:
            default = ORDER
        elif self.line[5:].strip():
            default = Reply(250, (self.server.hostname, *self.server.offers(self)))
        if self._dialogue.perform(self.line[:4].upper(), self.line, default) // 100 == 2:
            self._clear()
            self.helo = self.line[5:]
            lines = [
                line[4:].decode('ascii', 'replace') for line in self._dialogue.said.splitlines()[1:]
            ]
            pairs = [line.upper().partition(' ') for line in lines if line]
            self.offered = {keyword: value for keyword, _, value in pairs}

    def _helo(self) -> None:
        default = ORDER if self._refused else FINE if self.line[5:].strip() else SYNTAX
        if self._dialogue.perform('HELO', self.line, default) // 100 == 2:
            self._clear()
            self.helo = self.line[5:]
            self.offered = {}

    def _starttls(self) -> None:
        default = READY
        if self.server.tls != 'starttls' or self.tls:
            default = ABSENT
        elif not self.helo:
            default = ORDER
        elif self.line.upper() != 'STARTTLS':
            default = SYNTAX
        if self._dialogue.perform('STARTTLS', self.line, default) == 220:
            self._handshake()
            self._clear()
            self.helo = ''
            self.offered = {}
            self.authenticated_as = None

    def _handshake(self) -> None:
        self._dialogue.perform('TLS', '', NOTHING)
        if self.server.context is None:
            raise Gone
        try:
            self.channel.start_tls(self.server.context)
        except ssl.SSLError as error:
            self.server.note_tls_error(f'connection {self.connection}: {error}')
            raise Gone from error
        except Gone:
            self.server.note_tls_error(f'connection {self.connection}: the client left')
            raise
        self.tls = True

    def _auth(self) -> None:
        self.authenticated_as = authenticate(self, self._dialogue)

    def _mail(self) -> None:
        parsed = _MAIL.fullmatch(self.line)
        arguments = (parsed[2] or '') if parsed else ''
        default = SENDER_FINE
        if not self.helo or self.sender is not None:
            default = ORDER
        elif self.server.auth_required and self.authenticated_as is None:
            default = WHO
        elif parsed is None:
            self._dialogue.violation(f'syntax of {self.line!r}')
            default = SYNTAX
        elif not self._known(arguments):
            default = PARAMETER
        elif self._exceeds(_declared_size(arguments)):
            default = TOO_BIG
        before, self.mail_arguments = self.mail_arguments, arguments
        if self._dialogue.perform('MAIL', self.line, default) // 100 == 2:
            self.sender = parsed[1] if parsed else ''
        else:
            self.mail_arguments = before

    def _rcpt(self) -> None:
        parsed = _RCPT.fullmatch(self.line)
        default = RECIPIENT_FINE
        if self.sender is None:
            default = ORDER
        elif parsed is None or not parsed[1]:
            self._dialogue.violation(f'syntax of {self.line!r}')
            default = SYNTAX
        elif not self._known(parsed[2] or ''):
            default = PARAMETER
        code = self._dialogue.perform('RCPT', self.line, default)
        if code // 100 == 2 and parsed and self.sender is not None:
            self.recipients.append(parsed[1])

    def _data(self) -> None:
        default = GO_ON
        if self.sender is None:
            default = ORDER
        elif not self.recipients:
            default = ORDER if self.server.lmtp else NOBODY  # RFC 2033, 4.2
        if self._dialogue.perform('DATA', self.line, default) // 100 != 3:
            return
        if self._chunks:
            self._dialogue.violation('DATA behind BDAT')
        wire = self._dialogue.read_data()
        self.data = unstuffed(wire[:-3])
        self._take(wire, wire[:-3])
        self._clear()

    def _bdat(self) -> None:
        """A chunk (RFC 3030, 2): its octets come whatever we think of it."""
        parsed = _BDAT.fullmatch(self.line)
        if parsed is None or 'CHUNKING' not in self.offered:
            self._dialogue.violation(f'syntax of {self.line!r}, or CHUNKING not offered')
            self._dialogue.say(SYNTAX.encoded)
            return
        chunk = self._dialogue.read_octets(int(parsed[1]))
        if self._spoilt or self.sender is None or not self.recipients:
            self._spoilt = True
            self._dialogue.perform('BDAT', self.line, NOBODY if self.sender is not None else ORDER)
            return
        self._chunks += chunk
        if not parsed[2]:
            self._dialogue.perform('BDAT', self.line, FINE)
            return
        self.data = self._chunks
        if self._take(self.data, b'') // 100 == 2:
            self._clear()
        else:
            self._spoilt = True

    def _take(self, wire: bytes, stuffed: bytes) -> int:
        """Answer a whole message."""
        self.server.note_command(self.connection, 'dot', '.')
        arguments = self.mail_arguments.upper().split()
        declared = 'BODY=8BITMIME' in arguments or 'SMTPUTF8' in arguments
        for violation in data_violations(stuffed, self.data, eight_bit=declared):
            self._dialogue.violation(violation)
        self._dialogue.draft = ReceivedMessage(
            sender=self.sender or '',
            recipients=tuple(self.recipients),
            data=self.data,
            mail_arguments=self.mail_arguments,
            connection=self.connection,
            helo=self.helo,
            tls=self.tls,
            authenticated_as=self.authenticated_as,
            wire=wire,
            message_id=message_id(self.data),
        )
        try:
            if self.server.lmtp:
                self._answer_each(self._dialogue.draft)
                return 0
            return self._dialogue.perform('dot', self.data, self._verdict())
        finally:
            self._dialogue.forget_message()

    def _answer_each(self, message: ReceivedMessage) -> None:
        """LMTP: an answer for each accepted recipient (RFC 2033, 4.2)."""
        for self.recipient in message.recipients:
            self._dialogue.forget_message()
            self._dialogue.draft = replace(message, recipients=(self.recipient,))
            self._dialogue.perform('dot', self.data, self._verdict())

    def _verdict(self) -> Reply:
        if not self.recipients:
            return NOBODY
        return TOO_BIG if self._exceeds(len(self.data)) else FINE

    def _rset(self) -> None:
        if self._dialogue.perform('RSET', self.line, FINE) // 100 == 2:
            self._clear()

    def _noop(self) -> None:
        self._dialogue.perform('NOOP', self.line, FINE)

    def _quit(self) -> None:
        self._dialogue.perform('QUIT', self.line, GOODBYE)
        self.channel.close(notify=True)
        raise Gone

    def _known(self, arguments: str) -> bool:
        keywords = (argument.partition('=')[0] for argument in arguments.upper().split())
        return all(_PARAMETERS.get(keyword) in self.offered for keyword in keywords)

    def _exceeds(self, octets: int) -> bool:
        limit = self.offered.get('SIZE', '')
        return limit.isdecimal() and 0 < int(limit) < octets


def _declared_size(arguments: str) -> int:
    found = re.search(r'(?:^| )SIZE=([0-9]+)', arguments, re.IGNORECASE)
    return int(found[1]) if found else 0
