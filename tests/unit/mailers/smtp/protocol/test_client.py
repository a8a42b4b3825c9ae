"""SMTPClient: what a driver asks and says beside moving bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import pytest

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.protocol.client import SMTPClient
from tests.support.sessions import session_on, statuses
from tests.support.smtp.drains import mail, make_mailer

EHLO = b'250-relay.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n'


def at_the_text(policy: str) -> SMTPClient:
    """Return a client whose first mail has left, to two recipients, without a reply to it."""
    client = make_mailer(policy).client()
    client.receive_data(b'220 hello\r\n')
    assert client.data_to_send()
    client.receive_data(EHLO)
    client.send(mail(0, 2))
    commands = client.data_to_send()
    go_on = b'354 go on\r\n' if b'DATA' in commands else b''
    client.receive_data(b'250 ok\r\n' * 3 + go_on)
    assert b'..\r\n' in client.data_to_send()
    return client


@pytest.mark.parametrize('policy', ['PIPELINING', 'window 2', 'LMTP'])
def test_closed_before_the_last_reply(policy: str) -> None:
    """A driver that closes while a text has no reply does not get 'deferred' for its recipients:
    the relay may have taken it."""
    client = at_the_text(policy)
    client.close()
    [outcome] = client.outcomes
    assert set(statuses(outcome).values()) == {'ambiguous'}
    assert client.end is not None
    assert not client.may_quit


@pytest.mark.parametrize(
    ('unsent', 'reply', 'status'),
    [
        # A part of the final dot may have left: only a refusal is certain.
        (0, b'250 ok', 'ambiguous'),
        (4, b'250 ok', 'ambiguous'),
        (4, b'552 too large', 'failed'),
        (4, b'452 disk full', 'deferred'),
        (4, b'', 'ambiguous'),
        # It has not left.
        (5, b'250 ok', 'deferred'),
        (5, b'552 too large', 'failed'),
        (5, b'', 'deferred'),
        (9, b'421 bye', 'deferred'),
    ],
)
def test_replies_after_a_write_that_failed(unsent: int, reply: bytes, status: str) -> None:
    """What the relay said before it closed counts if it is a refusal; a yes to a text that has not
    left whole does not."""
    client = at_the_text('PIPELINING')
    client.write_failed('Broken pipe', unsent)
    assert client.data_to_send() == b''
    if reply:
        client.receive_data(reply + b'\r\n')
    client.receive_data(b'')
    [outcome] = client.outcomes
    assert set(statuses(outcome).values()) == {status}
    assert client.end is not None
    assert not client.may_quit


class Replies:
    """A connection on which replies are read, whatever is written."""

    lost = False

    def __init__(self, *replies: bytes) -> None:
        self._replies = iter(replies)

    def write(self, data: bytes) -> None:
        pass

    def receive(self, deadline: float, timeout: float) -> bytes:
        return next(self._replies)

    def close(self) -> None:
        self.lost = True


def test_send_after_one_that_was_not_finished() -> None:
    """What became of a mail of an earlier send is not the outcome of a mail of this one."""
    connection = Replies(
        b'250 ok\r\n250 ok\r\n',
        # The first text; the second mail, to one of two recipients, and its text.
        b'250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n452 4.5.3 too many\r\n250 ok\r\n',
    )
    session = session_on(connection, 'PIPELINING', 'CHUNKING', window=2)
    outcomes = session.send([mail(0, 1), mail(1, 2)])
    assert statuses(next(iter(outcomes))) == {'r1@0.example.org': 'delivered'}
    outcomes.close()  # type: ignore[attr-defined]
    with pytest.raises(MailerUnavailable, match='an earlier send was not finished'):
        next(iter(session.send([mail(2, 1)])))


@dataclass(frozen=True, kw_only=True)
class Unreadable(Envelope):
    """A mail whose file cannot be read: from a block on."""

    good: int = 0

    def blocks(self) -> Iterator[bytes]:
        for _ in range(self.good):
            yield b'a\r\n' * 20_000
        raise OSError('the disk is gone')


@pytest.mark.parametrize('good', [0, 1, 5])
def test_text_that_cannot_be_read(good: int) -> None:
    """The error of a mail's text reaches the driver, by the call that gave the relay's 354 or by
    data_to_send; the mail is untouched, and no QUIT may stand in the middle of its text."""
    client = make_mailer('lock-step').client()
    values = {each.name: getattr(mail(0, 1), each.name) for each in fields(Envelope)}
    for reply in (b'220 hello\r\n', b'250 relay\r\n'):
        client.receive_data(reply)
        client.data_to_send()
    values['raw'] = b'a\r\n' * 20_000
    client.send(Unreadable(**values, good=good))
    left = b''

    def speak() -> None:
        nonlocal left
        for reply in (b'250 ok\r\n', b'250 ok\r\n', b'354 go on\r\n'):
            assert client.data_to_send()
            client.receive_data(reply)
        while data := client.data_to_send():
            left += data

    with pytest.raises(OSError, match='the disk is gone'):
        speak()
    assert bool(left) is (good == 5)
    assert not client.at_rest
    client.close()
    assert not client.outcomes
    assert not client.idle
    assert not client.may_quit
