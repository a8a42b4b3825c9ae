"""Mail through the relays' own sendmail programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.sendmail import SendmailMailer
from tests.peers.mail import BODIES, fronted, make_mail, statuses
from tests.peers.relay import SIZE, Relay
from tests.peers.relays import SENDMAIL

pytestmark = pytest.mark.parametrize('relay', SENDMAIL, indirect=True)


@pytest.fixture
def session(relay: Relay, tmp_path: Path) -> Iterator[Any]:
    """A session with the program, which runs in the relay's root directory."""
    program = tmp_path / 'sendmail'
    program.write_text(f'#!/bin/sh\nexec {shlex.join(relay.sendmail())} "$@"\n')
    program.chmod(0o755)
    with closing(SendmailMailer(str(program)).connect()) as session:
        yield session


def held(relay: Relay, sender: str, count: int) -> list[Any]:
    """The mail from a sender: a relay may take it from the program a moment later, and list it
    twice in that moment."""
    found: list[Any] = []

    def there() -> bool:
        found[:] = relay.mails(sender)
        return len(found) == count

    relay.root.until(there)
    return found


@pytest.mark.parametrize('body', BODIES)
def test_arrives_as_it_was_sent(relay: Relay, session: Any, sender: str, body: str) -> None:
    """A mail is one mail, byte for byte and line by line, whatever is in it."""
    mail = make_mail(sender, 'ann@example.org', 'bob@example.org', body=BODIES[body])
    (outcome,) = session.send([mail])
    assert set(statuses(outcome).values()) == {'delivered'}
    # Each recipient has a call of its own.
    mine = held(relay, sender, 2)
    assert sorted(map(sorted, (each.recipients for each in mine))) == [
        ['ann@example.org'],
        ['bob@example.org'],
    ]
    for each in mine:
        content = relay.content(each)
        assert fronted(content, mail.raw), content[:2_000]


def test_null_sender(relay: Relay, session: Any) -> None:
    """A bounce has an empty reverse-path, which the program takes as such."""
    before = len(relay.mails(''))
    mail = make_mail('')
    (outcome,) = session.send([mail])
    assert statuses(outcome) == {'ann@example.org': 'delivered'}
    contents = [relay.content(mine) for mine in held(relay, '', before + 1)]
    assert [fronted(content, mail.raw) for content in contents].count(True) == 1


def test_too_large(relay: Relay, session: Any, sender: str) -> None:
    """A mail that the program refuses has not been delivered, and the next one is. Postfix's says
    75, which of others may mean that they keep it."""
    over = make_mail(sender, body=(b'x' * 76 + b'\r\n') * (SIZE // 70))
    refused, sent = session.send([over, make_mail(sender)])
    assert statuses(refused)['ann@example.org'] in ('failed', 'deferred', 'ambiguous')
    assert statuses(sent) == {'ann@example.org': 'delivered'}
    assert len(held(relay, sender, 1)) == 1


def test_refused_recipient(relay: Relay, session: Any, sender: str) -> None:
    """A program that refuses a recipient takes the mail for the others."""
    relay.offer('refusals by its program')
    (outcome,) = session.send([make_mail(sender, 'ann@example.org', 'nobody@example.org')])
    assert statuses(outcome)['ann@example.org'] == 'delivered'
    assert statuses(outcome)['nobody@example.org'] in ('failed', 'deferred')
    assert [mail.recipients for mail in held(relay, sender, 1)] == [{'ann@example.org'}]


def test_while_the_daemon_is_stopped(relay: Relay, session: Any, sender: str) -> None:
    """The program takes mail while its daemon is stopped, and what it has taken is not sent a
    second time as if it had not."""
    with relay.stopped():
        (outcome,) = session.send([make_mail(sender)])
    assert len(held(relay, sender, 1)) == 1
    assert statuses(outcome)['ann@example.org'] in ('delivered', 'ambiguous')
