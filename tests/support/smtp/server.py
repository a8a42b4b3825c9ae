"""A small real SMTP server on 127.0.0.1 whose every reply a test can script.

It logs what it receives, octet by octet, and is strict: what a client may not send stands in
``violations``. Import all that belongs to it from here.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

from tests.support.smtp.actions import (
    VERBS,
    Action,
    Match,
    Reply,
    Script,
    accept_then,
    delay,
    drop,
    half_close,
    hang,
    hold,
    raw,
    reply,
    reply_then_drop,
    reset,
    stream_forever,
)
from tests.support.smtp.channel import Channel, Listener
from tests.support.smtp.dialogue import ReceivedMessage
from tests.support.smtp.parsers import lax_messages, strict_messages
from tests.support.smtp.proxy import CuttingProxy
from tests.support.smtp.session import Session
from tests.support.smtp.tls import TLSAuthority

__all__ = [
    'EXTENSIONS',
    'VERBS',
    'Action',
    'CuttingProxy',
    'ReceivedMessage',
    'Reply',
    'ScriptedSMTPServer',
    'Session',
    'TLSAuthority',
    'accept_then',
    'delay',
    'drop',
    'half_close',
    'hang',
    'hold',
    'lax_messages',
    'raw',
    'reply',
    'reply_then_drop',
    'reset',
    'stream_forever',
    'strict_messages',
]

EXTENSIONS = ('PIPELINING', '8BITMIME', 'SIZE 10240000', 'ENHANCEDSTATUSCODES')

_DUMPED = 40


class ScriptedSMTPServer:
    """A context manager that listens while it is entered, by default with polite replies.

    ``extensions``: what EHLO offers, ``tls_extensions`` inside TLS where that differs. STARTTLS
    and AUTH are added where ``tls`` and ``auth`` want them. ``tls``: 'starttls' and 'implicit'
    need a ``context`` (:class:`TLSAuthority` makes them). ``auth``: passwords by user;
    ``auth_mechanisms``: what is offered, of which PLAIN, LOGIN and XOAUTH2 are spoken;
    ``auth_advertised``: 'always', 'tls' (inside TLS only) or 'never'; ``auth_required``: MAIL
    is answered 530 without.

    ``read_pause``: seconds to wait before each read of at most ``read_size`` octets of a
    message's data. ``socket_buffer``: octets of the system's buffers, for a narrow window.

    ``lmtp``: speak LMTP, where 'dot' is scripted for each accepted recipient. ``path``: listen on
    a Unix socket there instead.

    ``messages``, ``commands`` (connection, verb, line), ``violations`` and ``tls_errors`` log what
    happened, in order, also over a stop and a new start. In ``commands`` the verb 'dot' is the
    end of a message, 'response' a line that answers a challenge of AUTH.
    """

    def __init__(
        self,
        *,
        extensions: Sequence[str] = EXTENSIONS,
        tls_extensions: Sequence[str] | None = None,
        tls: Literal['none', 'starttls', 'implicit'] = 'none',
        context: ssl.SSLContext | None = None,
        auth: Mapping[str, str] | None = None,
        auth_mechanisms: Sequence[str] = ('PLAIN', 'LOGIN'),
        auth_advertised: Literal['always', 'tls', 'never'] = 'always',
        auth_required: bool = False,
        hostname: str = 'relay.example.org',
        read_pause: float = 0,
        read_size: int = 65_536,
        socket_buffer: int | None = None,
        lmtp: bool = False,
        path: str | None = None,
    ) -> None:
        if (tls == 'none') != (context is None):
            raise ValueError('context= and tls= need each other')
        self.extensions = extensions
        self.tls_extensions = tls_extensions
        self.tls = tls
        self.context = context
        self.auth = auth
        self.auth_mechanisms = auth_mechanisms
        self.auth_advertised = auth_advertised
        self.auth_required = auth_required
        self.hostname = hostname
        self.read_pause = read_pause
        self.read_size = read_size
        self.lmtp = lmtp
        self.path = path
        self.messages: list[ReceivedMessage] = []
        self.commands: list[tuple[int, str, str]] = []
        self.violations: list[str] = []
        self.tls_errors: list[str] = []
        self._channels: dict[int, Channel] = {}
        self._open = 0
        self._copies: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._changed = threading.Condition()
        self._script = Script()
        self._listener = Listener('127.0.0.1', self._converse, buffer=socket_buffer, path=path)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the former port where there was one."""
        self._listener.start()

    def stop(self) -> None:
        """Refuse connections, end those that are open, and wait for their threads."""
        self._listener.stop()

    @property
    def host(self) -> str:
        """Where the server listens."""
        return self._listener.host

    @property
    def port(self) -> int:
        """Where the server listens."""
        return self._listener.port

    @property
    def url(self) -> str:
        """What to write as ``mail.url``."""
        if self.path is not None:
            return f'lmtp+unix:{self.path}'
        if self.lmtp:
            return f'lmtp://{self.host}:{self.port}'
        return f'smtp{"s" if self.tls == "implicit" else ""}://{self.host}:{self.port}'

    @property
    def connections(self) -> int:
        """How many connections there have been. The first one has number 1."""
        return len(self._channels)

    @property
    def open_connections(self) -> int:
        """How many connections there are."""
        return self._open

    # What a test says beforehand

    def script(self, verb: str, *actions: Action, match: Match = None) -> None:
        """Do ``actions``, one for each of the next occurrences of ``verb``.

        ``match``: count only command lines (or messages, for 'dot') that contain this text, or
        where this pattern is found. When actions are used up, replies are the default ones.
        Of several scripts, the first one that fits and is not used up is followed.
        """
        self._script.queue(verb, actions, match)

    def always(self, verb: str, action: Action, *, match: Match = None) -> None:
        """Do ``action`` at each occurrence of ``verb`` for which no script is left.

        Of several, the last one that fits is followed. Until :meth:`reset_script`.
        """
        self._script.always(verb, action, match)

    def reset_script(self) -> None:
        """Go back to default replies."""
        self._script.reset()

    def script_left(self) -> dict[str, int]:
        """Return how many scripted actions have not happened yet, by verb."""
        return self._script.left()

    # What a test asks afterwards

    def accepted(self, recipient: str) -> int:
        """Return how many copies were accepted for a recipient, acknowledged or not."""
        with self._changed:
            return self._copies[recipient]

    def pairs(self) -> Counter[tuple[str, str]]:
        """Return how often each (Message-ID, recipient) was accepted, acknowledged or not."""
        with self._changed:
            return Counter(self._pairs)

    def verbs(self, connection: int | None = None) -> list[str]:
        """Return the verbs of ``commands``, of one connection or of all."""
        return [verb for number, verb, _ in self.commands if connection in (None, number)]

    def raw(self, connection: int) -> bytes:
        """Return all octets received on a connection so far, decrypted."""
        return bytes(self._channels[connection].received)

    def sent(self, connection: int) -> bytes:
        """Return all octets sent on a connection so far, before encryption."""
        return bytes(self._channels[connection].sent)

    def wait_for(
        self, condition: int | Callable[[ScriptedSMTPServer], object], timeout: float = 10
    ) -> None:
        """Wait until so many messages were accepted, or until ``condition(server)`` is true.

        Raises AssertionError after ``timeout`` seconds, with what happened instead.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: _fulfilled(self, condition), timeout):
                wanted = f'{condition} messages' if isinstance(condition, int) else 'the condition'
                raise AssertionError(f'{wanted} not seen in {timeout} s\n{self.dump()}')

    def dump(self) -> str:
        """Return what happened, for a person to read."""
        lines = [
            f'{self.url}: {self.connections} connections ({self.open_connections} open), '
            f'{len(self.messages)} messages, script left: {self.script_left()}'
        ]
        lines += [f'violation: {text}' for text in self.violations]
        lines += [f'TLS error: {text}' for text in self.tls_errors]
        lines += [
            f'message on {message.connection}: {message.message_id} from <{message.sender}> '
            f'to {", ".join(message.recipients)}: {message.reply_code or "not acknowledged"}'
            for message in self.messages[-_DUMPED:]
        ]
        lines += [f'{number} {verb}: {line}' for number, verb, line in self.commands[-_DUMPED:]]
        return '\n'.join(lines)

    # What the sessions need

    @property
    def stopping(self) -> threading.Event:
        """Set while the server stops."""
        return self._listener.stopping

    def choose(self, verb: str, text: str | bytes) -> Action | None:
        """Take the scripted action for this occurrence of a verb, or None."""
        return self._script.choose(verb, text)

    def offers(self, session: Session) -> list[str]:
        """Return the lines of EHLO's reply after the first one."""
        own = self.extensions
        if session.tls and self.tls_extensions is not None:
            own = self.tls_extensions
        lines = list(own)
        if self.tls == 'starttls' and not session.tls:
            lines.append('STARTTLS')
        shown = self.auth_advertised == 'always' or (self.auth_advertised == 'tls' and session.tls)
        if self.auth is not None and shown:
            lines.append(' '.join(['AUTH', *self.auth_mechanisms]))
        return lines

    def note_command(self, connection: int, verb: str, line: str) -> None:
        """Log a command."""
        with self._changed:
            self.commands.append((connection, verb, line))
            self._changed.notify_all()

    def note_violation(self, text: str) -> None:
        """Log what a client must not do."""
        with self._changed:
            self.violations.append(text)
            self._changed.notify_all()

    def note_tls_error(self, text: str) -> None:
        """Log a handshake that failed."""
        with self._changed:
            self.tls_errors.append(text)
            self._changed.notify_all()

    def note_message(self, message: ReceivedMessage, *, instead_of: ReceivedMessage | None) -> None:
        """Log an accepted message, or what else is now known of it."""
        with self._changed:
            if instead_of is None:
                self.messages.append(message)
                self._copies.update(message.recipients)
                self._pairs.update((message.message_id, each) for each in message.recipients)
            else:
                places = reversed(range(len(self.messages)))
                self.messages[next(n for n in places if self.messages[n] is instead_of)] = message
            self._changed.notify_all()

    def _converse(self, number: int, connected: socket.socket) -> None:
        channel = Channel(connected, read_size=self.read_size)
        with self._changed:
            self._channels[number] = channel
            self._open += 1
            self._changed.notify_all()
        try:
            Session(self, number, channel).run()
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()


def _fulfilled(
    server: ScriptedSMTPServer, condition: int | Callable[[ScriptedSMTPServer], object]
) -> bool:
    if isinstance(condition, int):
        return len(server.messages) >= condition
    return bool(condition(server))
