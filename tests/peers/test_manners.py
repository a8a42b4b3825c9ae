"""What relays do in their own way: the reasons for what the client does and does not do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.peers.relay import Relay
from tests.peers.roots import HOST, TIMEOUT

TEXT = 'Subject: Welcome\r\n\r\nHello.\r\n.\r\n'


class Line:
    """A connection on which a test says what it likes."""

    def __init__(self, relay: Relay) -> None:
        self.socket = socket.create_connection((HOST, relay.ports.plain), TIMEOUT)
        self.replies = self.socket.makefile('rb')

    def read(self, count: int = 1) -> list[int]:
        """Return the codes of this many replies, or of those until the connection is closed."""
        codes: list[int] = []
        with suppress(ConnectionError):
            while len(codes) < count and (line := self.replies.readline()):
                if line[3:4] != b'-':
                    codes.append(int(line[:3]))
        return codes

    def say(self, text: str, count: int = 1) -> list[int]:
        self.socket.sendall(text.encode())
        return self.read(count)


@pytest.fixture
def line(relay: Relay) -> Iterator[Line]:
    line = Line(relay)
    with line.socket, line.replies:
        assert line.read() == [220]
        assert line.say('EHLO web.example.org\r\n') == [250]
        yield line


def envelope(sender: str, *recipients: str) -> str:
    rcpt = ''.join(f'RCPT TO:<{recipient}@example.org>\r\n' for recipient in recipients)
    return f'MAIL FROM:<{sender}>\r\n{rcpt}DATA\r\n'


@pytest.mark.parametrize('relay', ['haraka'], indirect=True)
def test_commands_behind_the_final_dot(relay: Relay, line: Line, sender: str) -> None:
    """Haraka refuses each command that it has read with the final dot, QUIT too, since it may have
    been smuggled; the mail before it is accepted, and so is the next that waits for the reply."""
    assert line.say(envelope(sender, 'ann'), 3) == [250, 250, 354]
    assert line.say(f'{TEXT}{envelope(sender, "bob", "carol")}QUIT\r\n', 6) == [250, *[503] * 5]
    assert line.say(envelope(sender, 'dave'), 3) == [250, 250, 354]
    assert line.say(TEXT) == [250]
    assert {mail.recipients for mail in relay.mails(sender)} == {
        frozenset({f'{name}@example.org'}) for name in ('ann', 'dave')
    }


@pytest.mark.parametrize('relay', ['haraka'], indirect=True)
def test_more_behind_the_final_dot(relay: Relay, line: Line, sender: str) -> None:
    """Where that is more than 8,192 bytes, Haraka closes the connection without a reply, and may
    keep the mail all the same."""
    assert line.say(envelope(sender, 'ann'), 3) == [250, 250, 354]
    assert line.say(TEXT + envelope(sender, *(f'user-{number:050}' for number in range(150)))) == []


@pytest.mark.parametrize('relay', ['haraka'], indirect=True)
def test_half_a_command_behind_the_final_dot(relay: Relay, line: Line, sender: str) -> None:
    """Haraka forgets the beginning of a line behind the final dot without a reply, and takes its
    end for a command."""
    assert line.say(envelope(sender, 'ann'), 3) == [250, 250, 354]
    assert line.say(f'{TEXT}MAIL FROM:<{sender[:4]}') == [250]
    assert line.say(f'{sender[4:]}>\r\n') == [500]


@pytest.mark.parametrize('relay', ['smtp-server'], indirect=True)
def test_mail_within_a_transaction(relay: Relay, line: Line, sender: str) -> None:
    """Behind a MAIL that smtp-server refuses, because the last one is not over, RCPT and DATA count
    for the last one: without RSET a mail would leave with the wrong sender."""
    assert line.say(envelope(sender, 'nobody'), 3) == [250, 550, 503]
    assert line.say(envelope(f'other-{sender}', 'ann'), 3) == [503, 250, 354]
    assert line.say(TEXT) == [250]
    assert [mail.recipients for mail in relay.mails(sender)] == [{'ann@example.org'}]
    assert relay.mails(f'other-{sender}') == []


@pytest.mark.parametrize('relay', ['haraka', 'smtp-server', 'maildev'], indirect=True)
def test_behind_a_refused_mail(line: Line, sender: str) -> None:
    """RCPT and DATA behind a refused MAIL have 503: what has become of the mail is in its reply."""
    mail = envelope(sender, 'ann').replace('>\r\n', '> SIZE=999999\r\n', 1)
    first, *others = line.say(mail, 3)
    assert first in (550, 552)
    assert others == [503, 503]
