"""A real SMTP server on 127.0.0.1 whose every reply a test can script.

It logs every byte that it receives, and checks the client strictly: what the protocol forbids is
listed in ``violations``. This module exports everything that a test needs.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

from .actions import (
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
from .channel import Channel, Listener
from .dialogue import ReceivedMessage
from .parsers import lax_messages, strict_messages
from .proxy import CuttingProxy
from .session import Session
from .tls import TLSAuthority

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

_DUMPED_LINES = 40


class ScriptedSMTPServer:
    """A context manager that listens while it is entered. By default it accepts all mail.

    ``extensions``: the lines of the reply to EHLO; ``tls_extensions``: those inside TLS, if they
    differ. STARTTLS and AUTH are added as ``tls`` and ``auth`` say. ``tls``: 'starttls' and
    'implicit' need a ``context`` (see :class:`TLSAuthority`). ``auth``: passwords by user.
    ``auth_mechanisms``: what is offered; PLAIN, LOGIN and XOAUTH2 work. ``auth_advertised``:
    'always', 'tls' (only inside TLS) or 'never'. ``auth_required``: reply 530 to MAIL before AUTH.

    ``read_pause``: seconds to wait before each read of a message's data. ``read_size``: bytes of a
    read at most. ``socket_buffer``: bytes of the system's buffers.

    ``lmtp``: speak LMTP; 'dot' is scripted for each accepted recipient. ``path``: listen on a Unix
    socket at this path instead of a port.

    These logs are in order and go on over a stop and a new start: ``messages``; ``commands`` as
    (connection, verb, line), where the verb 'dot' is the end of a message and 'response' a line
    that answers a challenge of AUTH; ``violations`` of the protocol; ``tls_errors``.
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
        self._listener = Listener('127.0.0.1', self._serve, buffer=socket_buffer, path=path)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before if the server was stopped."""
        self._listener.start()

    def stop(self) -> None:
        """Refuse connections, end those that are open, and wait for their threads."""
        self._listener.stop()

    @property
    def host(self) -> str:
        """Host or port on which the server listens."""
        return self._listener.host

    @property
    def port(self) -> int:
        """Host or port on which the server listens."""
        return self._listener.port

    @property
    def url(self) -> str:
        """The value of ``mail.url`` for this server."""
        if self.path is not None:
            return f'lmtp+unix:{self.path}'
        if self.lmtp:
            return f'lmtp://{self.host}:{self.port}'
        return f'smtp{"s" if self.tls == "implicit" else ""}://{self.host}:{self.port}'

    @property
    def connections(self) -> int:
        """Number of connections so far. The first connection has number 1."""
        return len(self._channels)

    @property
    def open_connections(self) -> int:
        """Number of connections that are open."""
        return self._open

    # For a test, before the client connects

    def script(self, verb: str, *actions: Action, match: Match = None) -> None:
        """Do ``actions``, one for each of the next occurrences of ``verb``.

        ``match``: only for command lines (or messages, for 'dot') that contain this text, or in
        which this pattern is found. Of several scripts the first that fits and is not used up
        counts; after that the default replies.
        """
        self._script.queue(verb, actions, match)

    def always(self, verb: str, action: Action, *, match: Match = None) -> None:
        """Do ``action`` at each occurrence of ``verb`` for which no script is left.

        Of several the last that fits counts. It lasts until :meth:`reset_script`.
        """
        self._script.always(verb, action, match)

    def reset_script(self) -> None:
        """Go back to default replies."""
        self._script.reset()

    def script_left(self) -> dict[str, int]:
        """Return how many scripted actions have not happened yet, by verb."""
        return self._script.left()

    # For a test, afterwards

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
        """Return all bytes received on a connection so far, decrypted."""
        return bytes(self._channels[connection].received)

    def sent(self, connection: int) -> bytes:
        """Return all bytes sent on a connection so far, before encryption."""
        return bytes(self._channels[connection].sent)

    def wait_for(
        self, condition: int | Callable[[ScriptedSMTPServer], object], timeout: float = 10
    ) -> None:
        """Wait for a number of accepted messages, or until ``condition(server)`` is true.

        Raises AssertionError after ``timeout`` seconds, with the logs.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: _fulfilled(self, condition), timeout):
                wanted = f'{condition} messages' if isinstance(condition, int) else 'the condition'
                raise AssertionError(f'{wanted} not seen in {timeout} s\n{self.dump()}')

    def dump(self) -> str:
        """Return a summary of the logs, for people."""
        lines = [
            f'{self.url}: {self.connections} connections ({self.open_connections} open), '
            f'{len(self.messages)} messages, script left: {self.script_left()}'
        ]
        lines += [f'violation: {text}' for text in self.violations]
        lines += [f'TLS error: {text}' for text in self.tls_errors]
        lines += [
            f'message on {message.connection}: {message.message_id} from <{message.sender}> '
            f'to {", ".join(message.recipients)}: {message.reply_code or "not acknowledged"}'
            for message in self.messages[-_DUMPED_LINES:]
        ]
        lines += [
            f'{number} {verb}: {line}' for number, verb, line in self.commands[-_DUMPED_LINES:]
        ]
        return '\n'.join(lines)

    # For the sessions

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
        """Log a violation of the protocol."""
        with self._changed:
            self.violations.append(text)
            self._changed.notify_all()

    def note_tls_error(self, text: str) -> None:
        """Log a handshake that failed."""
        with self._changed:
            self.tls_errors.append(text)
            self._changed.notify_all()

    def note_message(self, message: ReceivedMessage, *, instead_of: ReceivedMessage | None) -> None:
        """Log an accepted message, or replace its entry by one that knows more."""
        with self._changed:
            if instead_of is None:
                self.messages.append(message)
                self._copies.update(message.recipients)
                self._pairs.update((message.message_id, each) for each in message.recipients)
            else:
                places = reversed(range(len(self.messages)))
                self.messages[next(n for n in places if self.messages[n] is instead_of)] = message
            self._changed.notify_all()

    def _serve(self, number: int, connected: socket.socket) -> None:
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
