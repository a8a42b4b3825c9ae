"""Mailers and sessions for a scripted SMTP server, mail to send, and what may go wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Outcome, Reply
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.interfaces import IMailer
from pyramid_sendmail.mailers.smtp.address import Address
from pyramid_sendmail.mailers.smtp.authentication import Token, make_identity
from pyramid_sendmail.mailers.smtp.connection import ConnectionLost
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import (
    DEFAULT_TIMEOUTS,
    SessionOptions,
    Timeouts,
    TLSOptions,
)
from pyramid_sendmail.mailers.smtp.protocol.client import SMTPClient
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    delay,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
    reset,
    stream_forever,
)

RAW = b'Subject: hello\r\nMessage-ID: <0@example.org>\r\n\r\n.dot\r\nend\r\n'

TINY = Timeouts(connect=5, greeting=0.3, command=0.3, data=0.3, block=0.3, final=0.3, quit=0.3)
"""For tests of time-outs."""

PATIENT = Timeouts().capped(10)

A, B, C = 'a@example.org', 'b@example.org', 'c@example.org'


def envelope(*recipients: str, **changes: Any) -> Envelope:
    """Return an envelope, to A unless there are ``recipients``."""
    values: dict[str, Any] = {
        'id': '0' * 32,
        'message_id': '<0@example.org>',
        'sender': 'from@example.org',
        'recipients': recipients or (A,),
        'raw': RAW,
        'queued_at': 0.0,
    }
    return Envelope(**(values | changes))


def make_mailer(
    host: str | Address,
    port: int = 25,
    *,
    kind: type[SMTPMailer] = SMTPMailer,
    username: str | None = None,
    password: str | None = None,
    token: Token | None = None,
    **options: Any,
) -> SMTPMailer:
    """Make a mailer from flat arguments: those of make_identity and TLSOptions stand beside those
    of SMTPMailer, with ``tls`` for the mode."""
    given = {'hostname': 'web.example.org', 'timeouts': PATIENT} | options
    files = ('ca_file', 'client_cert', 'client_key', 'insecure')
    tls = {name: given.pop(name) for name in files if name in given}
    return kind(
        host,
        port,
        tls=TLSOptions(given.pop('tls', 'auto'), **tls),
        identity=make_identity(username, password, token),
        **given,
    )


def deliver(mailer: IMailer) -> None:
    """Send one mail, which must be delivered, and close the session."""
    session = mailer.connect()
    [outcome] = session.send([envelope()])
    assert statuses(outcome) == {A: 'delivered'}
    session.close()


def refused(mailer: IMailer) -> str:
    """Return the text of the error of a mailer that cannot connect."""
    with pytest.raises(MailerUnavailable) as caught:
        mailer.connect()
    assert not caught.value.stale
    text = str(caught.value)
    assert text.startswith(f'{mailer.name}: ')
    return text


def connect(
    server: ScriptedSMTPServer, timeouts: Timeouts | None = None, **options: Any
) -> SMTPSession:
    """Return a session with a scripted server; ``options``: those of SessionOptions."""
    return SMTPMailer(
        server.host,
        server.port,
        hostname='web.example.org',
        timeouts=timeouts or PATIENT,
        options=SessionOptions(**options),
    ).connect()


def session_on(
    connection: Any,
    *keywords: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    lmtp: bool = False,
    **options: Any,
) -> SMTPSession:
    """Return a session on a connection that is past EHLO; ``keywords``: the relay's extensions,
    ``options``: those of SessionOptions."""
    client = SMTPClient(
        'smtp://relay:25', timeouts=timeouts, options=SessionOptions(**options), lmtp=lmtp
    )
    client.start(dict.fromkeys(keywords, ''))
    return SMTPSession(connection, client)


def send(session: SMTPSession, *envelopes: Envelope) -> list[Outcome]:
    """Send these and return their outcomes."""
    return list(session.send(envelopes))


def statuses(outcome: Outcome) -> dict[str, str]:
    """Return each recipient's status."""
    return {recipient: verdict.status for recipient, verdict in outcome.items()}


def idle(server: ScriptedSMTPServer) -> None:
    """Wait until the server has seen the end of every connection."""
    deadline = time.monotonic() + 10
    while server.open_connections:
        assert time.monotonic() < deadline
        time.sleep(0.001)


class BreakingConnection:
    """A connection that breaks while the end of a message is written.

    ``unsent``: how many bytes of the text have not left, beside all that follows it.
    ``last_replies``: what the relay sends after the write.
    """

    lost = False
    secure = False

    def __init__(self, unsent: int, *last_replies: Reply) -> None:
        self._unsent = unsent
        self._replies = iter([Reply(250, ''), Reply(250, ''), Reply(354, ''), *last_replies])

    def write(self, data: bytes) -> None:
        _, dot, behind = data.partition(b'\r\n.\r\n')
        if dot:
            raise ConnectionLost('while sending: Broken pipe', unsent=self._unsent + len(behind))

    def receive(self, deadline: float, timeout: float) -> bytes:
        reply = next(self._replies, None)
        return b'' if reply is None else f'{reply.code} {reply.text}\r\n'.encode()

    def close(self) -> None:
        pass


# What may happen instead of a reply: the connection is lost, or the session fails.

LOST: dict[str, tuple[Action, Timeouts | None]] = {
    'dropped': (drop(), None),
    'reset': (reset(), None),
    'malformed': (raw(b'HTTP/1.1 400 Bad Request\r\n'), None),
    'too short': (raw(b'25\r\n'), None),
    'no space': (raw(b'250OK\r\n'), None),
    'out of range': (raw(b'600 what\r\n'), None),
    'mind changed': (raw(b'250-yes\r\n550 no\r\n'), None),
    'half a reply': (raw(b'250 yes', then=drop()), None),
    'half a multi-line reply': (raw(b'250-yes\r\n', then=drop()), None),
    'endless': (stream_forever(), None),
    'endless line': (stream_forever(b'250 and so on '), None),
    'silent': (hang(), TINY),
    'drips': (raw(b'250', then=delay(0.1, raw(b'-x\r\n', then=delay(0.1, hang())))), TINY),
    'out of place': (reply(199, 'just so'), None),
}

CLOSED = {
    '421': reply_then_drop(421, '4.3.2 closing'),
    '421 and silent': reply(421, '4.3.2 closing', then=hang()),
    '530': reply(530, '5.7.0 who are you'),
    '534': reply(534, '5.7.9 too weak'),
    '535': reply(535, '5.7.8 expired'),
    '538': reply(538, '5.7.11 not in clear'),
    '454': reply(454, '4.7.0 later'),
}
