"""Mail to Dovecot by LMTP, over TCP and over a socket in the file system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from tests.peers.dovecot import Dovecot
from tests.peers.mail import BODIES, fronted, make_mail, statuses
from tests.peers.roots import HOST


@pytest.fixture(params=['tcp', 'unix'])
def session(request: pytest.FixtureRequest, dovecot: Dovecot) -> Iterator[Any]:
    """A session with Dovecot, by each of its doors."""
    if request.param == 'tcp':
        mailer = LMTPMailer(HOST, dovecot.port, hostname='web.example.org')
    else:
        mailer = LMTPMailer.unix(str(dovecot.socket), hostname='web.example.org')
    with closing(mailer.connect()) as session:
        yield session


def mailed(dovecot: Dovecot, user: str, raw: bytes) -> int:
    """How often a mail is in a mailbox."""
    return [fronted(content, raw) for content in dovecot.mailbox(user)].count(True)


@pytest.mark.parametrize('body', BODIES)
def test_arrives_as_it_was_sent(dovecot: Dovecot, session: Any, sender: str, body: str) -> None:
    """A mail lies in each mailbox once, byte for byte, whatever is in it."""
    mail = make_mail(sender, 'ann@example.org', 'bob@example.org', body=BODIES[body])
    after = make_mail(sender, 'ann@example.org')
    outcomes = [statuses(outcome) for outcome in session.send([mail, after])]
    assert outcomes == [
        {'ann@example.org': 'delivered', 'bob@example.org': 'delivered'},
        {'ann@example.org': 'delivered'},
    ]
    assert mailed(dovecot, 'ann', mail.raw) == mailed(dovecot, 'bob', mail.raw) == 1
    assert mailed(dovecot, 'ann', after.raw) == 1


def test_each_recipient_on_its_own(dovecot: Dovecot, session: Any, sender: str) -> None:
    """A recipient without a mailbox and one with a full mailbox have replies of their own."""
    mail = make_mail(sender, *(f'{name}@example.org' for name in ('ann', 'full', 'nobody', 'bob')))
    (outcome,) = session.send([mail])
    assert statuses(outcome) == {
        'ann@example.org': 'delivered',
        'full@example.org': 'failed',
        'nobody@example.org': 'failed',
        'bob@example.org': 'delivered',
    }
    assert outcome['full@example.org'].reply.code == 552
    assert outcome['nobody@example.org'].reply.code == 550
    assert mailed(dovecot, 'ann', mail.raw) == mailed(dovecot, 'bob', mail.raw) == 1
    assert dovecot.mailbox('full') == []


def test_no_recipient_at_all(dovecot: Dovecot, session: Any, sender: str) -> None:
    """A mail that is refused for all recipients leaves the next one alone."""
    refused, full, last = session.send(
        [
            make_mail(sender, 'nobody@example.org', 'nothing@example.org'),
            make_mail(sender, 'full@example.org'),
            mail := make_mail(sender, 'ann@example.org'),
        ]
    )
    assert set(statuses(refused).values()) == {'failed'}
    assert statuses(full) == {'full@example.org': 'failed'}
    assert statuses(last) == {'ann@example.org': 'delivered'}
    assert mailed(dovecot, 'ann', mail.raw) == 1


def test_many_mails(dovecot: Dovecot, session: Any, sender: str) -> None:
    """Three hundred mails on one session, every one once, to two mailboxes and a full one."""
    recipients = [f'{name}@example.org' for name in ('ann', 'full', 'bob')]
    mails = [make_mail(sender, *recipients) for _ in range(300)]
    expected = dict(zip(recipients, ('delivered', 'failed', 'delivered'), strict=True))
    assert [statuses(outcome) for outcome in session.send(mails)] == [expected] * 300
    for user in ('ann', 'bob'):
        found = b''.join(dovecot.mailbox(user))
        assert {found.count(mail.message_id.encode()) for mail in mails} == {1}
