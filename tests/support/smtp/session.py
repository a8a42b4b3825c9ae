"""One connection of a scripted server: it reads strictly and replies by the script."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .actions import Action, Reply
from .authentication import authenticate
from .channel import Channel, ConnectionEnded
from .dialogue import Dialogue, ReceivedMessage
from .parsers import data_violations, message_id, unstuffed
from .replies import (
    AUTH_REQUIRED,
    BAD_SEQUENCE,
    BAD_SYNTAX,
    GOODBYE,
    MESSAGE_TOO_BIG,
    NO_RECIPIENTS,
    NO_REPLY,
    NOT_IMPLEMENTED,
    OK,
    READY_FOR_TLS,
    RECIPIENT_OK,
    SENDER_OK,
    START_INPUT,
    UNKNOWN_COMMAND,
    UNKNOWN_PARAMETER,
)

if TYPE_CHECKING:
    from .server import ScriptedSMTPServer

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
_MAX_COMMAND_BYTES = 512
_MAX_COMMAND_BYTES_OF = {'MAIL': 1_200, 'RCPT': 1_100}

# Commands that end a group (RFC 2920, 3.1; RFC 3207; RFC 4954)
_LAST_IN_GROUP = frozenset({'EHLO', 'HELO', 'LHLO', 'STARTTLS', 'AUTH', 'DATA', 'QUIT', 'NOOP'})


class Session:
    """The state of a connection; the argument of a scripted callable, which may read it.

    ``line``: the present command. ``data``: the present message. ``recipient``: by LMTP, the
    recipient that the present reply is for.
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
        self._greeting_refused = False
        self._chunk_refused = False
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
        """Answer commands until the connection ends."""
        try:
            if self.server.tls == 'implicit':
                self._handshake()
            self._dialogue.reply_due = 'the greeting'
            greeting = Reply(220, (f'{self.server.hostname} ESMTP scripted',))
            self._greeting_refused = self._dialogue.perform('connect', '', greeting) >= 400
            while True:
                self._command()
        except ConnectionEnded:
            pass
        finally:
            self.channel.close()

    def _command(self) -> None:
        self.line = ''
        received = self._dialogue.read_line('command')
        word = received.split(b' ', 1)[0].decode('ascii', 'replace').upper()
        self.line = received.decode('utf-8', 'surrogateescape')
        self.server.note_command(self.connection, word, self.line)
        if len(received) + 2 > _MAX_COMMAND_BYTES_OF.get(word, _MAX_COMMAND_BYTES):
            self._dialogue.violation(f'{word} of {len(received) + 2} bytes')
        if _CONTROL.search(received):
            self._dialogue.violation(f'control character in {received!r}')
            self._dialogue.write(UNKNOWN_COMMAND.encoded)
            return
        if not received.isascii():
            self._check_utf8(word, received)
        if word in _LAST_IN_GROUP or 'PIPELINING' not in self.offered:
            self._dialogue.reply_due = f'the reply to {word}'
        if handler := self._commands.get(word):
            handler()
        elif word in {'VRFY', 'EXPN', 'HELP'}:
            self._dialogue.write(NOT_IMPLEMENTED.encoded)
        else:
            self._dialogue.violation(f'unknown command {self.line[:80]!r}')
            self._dialogue.write(UNKNOWN_COMMAND.encoded)

    def _check_utf8(self, word: str, received: bytes) -> None:
        declared = self.line if word == 'MAIL' else self.mail_arguments
        if word not in {'MAIL', 'RCPT'} or 'SMTPUTF8' not in declared.upper().split():
            self._dialogue.violation(f'byte above 127 without SMTPUTF8 in {received!r}')
        elif '\udc80' <= max(self.line) <= '\udcff':
            self._dialogue.violation(f'no UTF-8 in {received!r}')

    def _clear(self) -> None:
        self.sender = None
        self.mail_arguments = ''
        self.recipients = []
        self._chunk_refused = False
        self._chunks = b''

    def _ehlo(self) -> None:
        default: Action = BAD_SYNTAX
        if self._greeting_refused:
            default = BAD_SEQUENCE
        elif self.line[5:].strip():
            default = Reply(250, (self.server.hostname, *self.server.offers(self)))
        if self._dialogue.perform(self.line[:4].upper(), self.line, default) // 100 == 2:
            self._clear()
            self.helo = self.line[5:]
            lines = [
                line[4:].decode('ascii', 'replace')
                for line in self._dialogue.written.splitlines()[1:]
            ]
            pairs = [line.upper().partition(' ') for line in lines if line]
            self.offered = {keyword: value for keyword, _, value in pairs}

    def _helo(self) -> None:
        default = (
            BAD_SEQUENCE if self._greeting_refused else OK if self.line[5:].strip() else BAD_SYNTAX
        )
        if self._dialogue.perform('HELO', self.line, default) // 100 == 2:
            self._clear()
            self.helo = self.line[5:]
            self.offered = {}

    def _starttls(self) -> None:
        default = READY_FOR_TLS
        if self.server.tls != 'starttls' or self.tls:
            default = NOT_IMPLEMENTED
        elif not self.helo:
            default = BAD_SEQUENCE
        elif self.line.upper() != 'STARTTLS':
            default = BAD_SYNTAX
        if self._dialogue.perform('STARTTLS', self.line, default) == 220:
            self._handshake()
            self._clear()
            self.helo = ''
            self.offered = {}
            self.authenticated_as = None

    def _handshake(self) -> None:
        self._dialogue.perform('TLS', '', NO_REPLY)
        if self.server.context is None:
            raise ConnectionEnded
        try:
            self.channel.start_tls(self.server.context)
        except ssl.SSLError as error:
            self.server.note_tls_error(f'connection {self.connection}: {error}')
            raise ConnectionEnded from error
        except ConnectionEnded:
            self.server.note_tls_error(f'connection {self.connection}: the client left')
            raise
        self.tls = True

    def _auth(self) -> None:
        self.authenticated_as = authenticate(self, self._dialogue)

    def _mail(self) -> None:
        parsed = _MAIL.fullmatch(self.line)
        arguments = (parsed[2] or '') if parsed else ''
        default = SENDER_OK
        if not self.helo or self.sender is not None:
            default = BAD_SEQUENCE
        elif self.server.auth_required and self.authenticated_as is None:
            default = AUTH_REQUIRED
        elif parsed is None:
            self._dialogue.violation(f'syntax of {self.line!r}')
            default = BAD_SYNTAX
        elif not self._known(arguments):
            default = UNKNOWN_PARAMETER
        elif self._exceeds(_declared_size(arguments)):
            default = MESSAGE_TOO_BIG
        before, self.mail_arguments = self.mail_arguments, arguments
        if self._dialogue.perform('MAIL', self.line, default) // 100 == 2:
            self.sender = parsed[1] if parsed else ''
        else:
            self.mail_arguments = before

    def _rcpt(self) -> None:
        parsed = _RCPT.fullmatch(self.line)
        default = RECIPIENT_OK
        if self.sender is None:
            default = BAD_SEQUENCE
        elif parsed is None or not parsed[1]:
            self._dialogue.violation(f'syntax of {self.line!r}')
            default = BAD_SYNTAX
        elif not self._known(parsed[2] or ''):
            default = UNKNOWN_PARAMETER
        code = self._dialogue.perform('RCPT', self.line, default)
        if code // 100 == 2 and parsed and self.sender is not None:
            self.recipients.append(parsed[1])

    def _data(self) -> None:
        default = START_INPUT
        if self.sender is None:
            default = BAD_SEQUENCE
        elif not self.recipients:
            default = BAD_SEQUENCE if self.server.lmtp else NO_RECIPIENTS  # RFC 2033, 4.2
        if self._dialogue.perform('DATA', self.line, default) // 100 != 3:
            return
        if self._chunks:
            self._dialogue.violation('DATA behind BDAT')
        wire = self._dialogue.read_data()
        self.data = unstuffed(wire[:-3])
        self._accept(wire, wire[:-3])
        self._clear()

    def _bdat(self) -> None:
        """Read a chunk (RFC 3030, 2): its bytes follow even if the command is refused."""
        parsed = _BDAT.fullmatch(self.line)
        if parsed is None or 'CHUNKING' not in self.offered:
            self._dialogue.violation(f'syntax of {self.line!r}, or CHUNKING not offered')
            self._dialogue.write(BAD_SYNTAX.encoded)
            return
        chunk = self._dialogue.read_bytes(int(parsed[1]))
        if self._chunk_refused or self.sender is None or not self.recipients:
            self._chunk_refused = True
            self._dialogue.perform(
                'BDAT', self.line, NO_RECIPIENTS if self.sender is not None else BAD_SEQUENCE
            )
            return
        self._chunks += chunk
        if not parsed[2]:
            self._dialogue.perform('BDAT', self.line, OK)
            return
        self.data = self._chunks
        if self._accept(self.data, b'') // 100 == 2:
            self._clear()
        else:
            self._chunk_refused = True

    def _accept(self, wire: bytes, stuffed: bytes) -> int:
        """Reply to a whole message and return the code; 0 by LMTP."""
        self.server.note_command(self.connection, 'dot', '.')
        arguments = self.mail_arguments.upper().split()
        declared = 'BODY=8BITMIME' in arguments or 'SMTPUTF8' in arguments
        for violation in data_violations(stuffed, self.data, eight_bit=declared):
            self._dialogue.violation(violation)
        self._dialogue.message = ReceivedMessage(
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
                self._answer_each(self._dialogue.message)
                return 0
            return self._dialogue.perform('dot', self.data, self._verdict())
        finally:
            self._dialogue.forget_message()

    def _answer_each(self, message: ReceivedMessage) -> None:
        """Reply for each accepted recipient (RFC 2033, 4.2)."""
        for self.recipient in message.recipients:
            self._dialogue.forget_message()
            self._dialogue.message = replace(message, recipients=(self.recipient,))
            self._dialogue.perform('dot', self.data, self._verdict())

    def _verdict(self) -> Reply:
        if not self.recipients:
            return NO_RECIPIENTS
        return MESSAGE_TOO_BIG if self._exceeds(len(self.data)) else OK

    def _rset(self) -> None:
        if self._dialogue.perform('RSET', self.line, OK) // 100 == 2:
            self._clear()

    def _noop(self) -> None:
        self._dialogue.perform('NOOP', self.line, OK)

    def _quit(self) -> None:
        self._dialogue.perform('QUIT', self.line, GOODBYE)
        self.channel.close(notify=True)
        raise ConnectionEnded

    def _known(self, arguments: str) -> bool:
        keywords = (argument.partition('=')[0] for argument in arguments.upper().split())
        return all(_PARAMETERS.get(keyword) in self.offered for keyword in keywords)

    def _exceeds(self, size: int) -> bool:
        limit = self.offered.get('SIZE', '')
        return limit.isdecimal() and 0 < int(limit) < size


def _declared_size(arguments: str) -> int:
    found = re.search(r'(?:^| )SIZE=([0-9]+)', arguments, re.IGNORECASE)
    return int(found[1]) if found else 0
