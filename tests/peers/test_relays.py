"""Mail to real relays: it arrives as it was sent, and each recipient has the answer that is its
own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psutil
import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from tests.peers.mail import BODIES, fronted, make_mail, statuses
from tests.peers.mailers import mailer
from tests.peers.relay import SIZE, Relay
from tests.peers.roots import HOST, TIMEOUT
from tests.support.queues import until


@pytest.fixture
def session(relay: Relay) -> Iterator[SMTPSession]:
    """A session with the relay."""
    with closing(mailer(relay).connect()) as session:
        yield session


def test_loopback_alone(relay: Relay) -> None:
    """Only this machine reaches a relay of the tests."""
    pids = set(relay.root.processes())
    addresses = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections('inet')
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    }
    assert (HOST, relay.ports.plain) in addresses
    assert {address for address, _ in addresses} == {HOST}


@pytest.mark.parametrize('body', BODIES)
def test_arrives_as_it_was_sent(relay: Relay, session: SMTPSession, sender: str, body: str) -> None:
    """One mail is one mail, byte for byte, whatever is in it, and so are those beside it."""
    mails = [make_mail(sender, 'ann@example.org', 'bob@example.org', body=BODIES[body])]
    mails += [make_mail(sender, f'{name}@example.org') for name in ('carol', 'dave')]
    for outcome in session.send(mails):
        assert set(statuses(outcome).values()) == {'delivered'}
    held = {mail.recipients: relay.content(mail) for mail in relay.mails(sender)}
    assert held.keys() == {frozenset(mail.recipients) for mail in mails}
    for mail in mails:
        content = held[frozenset(mail.recipients)]
        assert fronted(content, mail.raw), content[:2_000]


@pytest.fixture
def window(relay: Relay) -> Iterator[SMTPSession]:
    """A session with a relay that offers CHUNKING, with eight mails under way."""
    relay.offer('CHUNKING')
    with closing(mailer(relay, options=SessionOptions(window=8)).connect()) as session:
        transfer = session._client._transfer
        assert transfer is not None
        assert transfer.window > 1
        yield session


@pytest.mark.parametrize('body', BODIES)
def test_arrives_as_it_was_sent_by_bdat(
    relay: Relay, window: SMTPSession, sender: str, body: str
) -> None:
    """Several mails in flight arrive byte for byte, whatever is in them."""
    mails = [
        make_mail(sender, f'{name}@example.org', body=BODIES[body])
        for name in ('ann', 'bob', 'carol', 'dave')
    ]
    for outcome in window.send(mails):
        assert set(statuses(outcome).values()) == {'delivered'}
    held = {mail.recipients: relay.content(mail) for mail in relay.mails(sender)}
    assert held.keys() == {frozenset(mail.recipients) for mail in mails}
    for mail in mails:
        content = held[frozenset(mail.recipients)]
        assert fronted(content, mail.raw), content[:2_000]


def test_refused_with_the_text_under_way(relay: Relay, window: SMTPSession, sender: str) -> None:
    """The relay throws away a text without recipients, and the mails behind it are sent."""
    unknown, later = 'nobody@example.org', 'later@example.org'
    recipients = [('ann@example.org', unknown), (unknown,), (unknown, later), (later,)]
    recipients += [('bob@example.org',), (unknown,), ('carol@example.org', later)]
    outcomes = list(window.send([make_mail(sender, *each) for each in recipients]))
    wanted = {unknown: 'failed', later: 'deferred'}
    assert [statuses(outcome) for outcome in outcomes] == [
        {to: wanted.get(to, 'delivered') for to in each} for each in recipients
    ]
    assert {mail.recipients for mail in relay.mails(sender)} == {
        frozenset({f'{name}@example.org'}) for name in ('ann', 'bob', 'carol')
    }


def test_many_mails_with_a_window(relay: Relay, window: SMTPSession, sender: str) -> None:
    """As many mails as a relay takes on one session, every one once, large ones among them."""
    recipients = [f'user-{number}@example.org' for number in range(relay.mails_a_session)]
    large = (b'x' * 76 + b'\r\n') * 1_000
    outcomes = window.send(
        make_mail(sender, recipient, **({'body': large} if number % 50 == 7 else {}))
        for number, recipient in enumerate(recipients)
    )
    assert [statuses(outcome) for outcome in outcomes] == [
        {recipient: 'delivered'} for recipient in recipients
    ]
    held = relay.mails(sender)
    assert len(held) == len(recipients)
    assert {mail.recipients for mail in held} == {frozenset({each}) for each in recipients}


def test_null_sender(relay: Relay, session: SMTPSession) -> None:
    """A bounce has an empty reverse-path, which the relay keeps."""
    mail = make_mail('')
    (outcome,) = session.send([mail])
    assert statuses(outcome) == {'ann@example.org': 'delivered'}
    contents = [relay.content(held) for held in relay.mails('')]
    assert [fronted(content, mail.raw) for content in contents].count(True) == 1


def test_each_recipient_on_its_own(relay: Relay, session: SMTPSession, sender: str) -> None:
    """Recipients that the relay refuses, for good or for now, leave the others and the next mail
    alone."""
    relay.offer('refusals')
    recipients = ('ann@example.org', 'nobody@example.org', 'later@example.org', 'bob@example.org')
    mixed, refused, last = session.send(
        [
            make_mail(sender, *recipients),
            make_mail(sender, 'nobody@example.org', 'later@example.org'),
            make_mail(sender, 'carol@example.org'),
        ]
    )
    assert statuses(mixed) == dict(
        zip(recipients, ('delivered', 'failed', 'deferred', 'delivered'), strict=True)
    )
    assert statuses(refused) == {'nobody@example.org': 'failed', 'later@example.org': 'deferred'}
    assert statuses(last) == {'carol@example.org': 'delivered'}
    for outcome in (mixed, refused):
        assert outcome['nobody@example.org'].reply.code == 550
        assert outcome['later@example.org'].reply.code in (450, 451)
        assert '4.2.0' in outcome['later@example.org'].reply.text
    assert {mail.recipients for mail in relay.mails(sender)} == {
        frozenset({'ann@example.org', 'bob@example.org'}),
        frozenset({'carol@example.org'}),
    }


def test_size(relay: Relay, session: SMTPSession, sender: str) -> None:
    """A mail that is larger than the relay says is not even begun; the next one is sent."""
    large, small = (f'{size}-{sender}' for size in ('large', 'small'))
    over = make_mail(large, body=(b'x' * 76 + b'\r\n') * (SIZE // 78 + 1))
    refused, sent = session.send([over, make_mail(small)])
    assert statuses(refused) == {'ann@example.org': 'failed'}
    verdict = refused['ann@example.org']
    assert verdict.reply is None
    assert str(SIZE) in verdict.reason
    assert statuses(sent) == {'ann@example.org': 'delivered'}
    relay.root.until(lambda: small in relay.log)
    assert large not in relay.log


@pytest.mark.parametrize('pipelining', [True, False], ids=['pipelining', 'lock-step'])
def test_many_mails(relay: Relay, sender: str, pipelining: bool) -> None:
    """As many mails as a relay takes on one session, every one once; with PIPELINING and
    without."""
    if pipelining:
        relay.offer('PIPELINING')
    recipients = [f'user-{number}@example.org' for number in range(relay.mails_a_session)]
    options = SessionOptions(pipelining=pipelining)
    with closing(mailer(relay, options=options).connect()) as session:
        outcomes = list(session.send(make_mail(sender, recipient) for recipient in recipients))
    assert [statuses(outcome) for outcome in outcomes] == [
        {recipient: 'delivered'} for recipient in recipients
    ]
    held = relay.mails(sender)
    assert len(held) == len(recipients)
    assert {mail.recipients for mail in held} == {frozenset({each}) for each in recipients}


def test_many_recipients(relay: Relay, session: SMTPSession, sender: str) -> None:
    """Mails to more recipients than one packet names reach each of them, and once."""
    mails = [
        make_mail(sender, *(f'{name}-user-{number:050}@example.org' for number in range(200)))
        for name in ('first', 'second', 'third')
    ]
    for outcome in session.send(mails):
        assert set(statuses(outcome).values()) == {'delivered'}
    held = [recipient for mail in relay.mails(sender) for recipient in mail.recipients]
    assert Counter(held) == Counter(to for mail in mails for to in mail.recipients)


def test_stopped_between_two_mails(relay: Relay, session: SMTPSession, sender: str) -> None:
    """A relay that was started anew makes the session stale, and a new one works."""
    relay.offer('memory')
    first, second = make_mail(sender, 'ann@example.org'), make_mail(sender, 'bob@example.org')
    assert [statuses(outcome) for outcome in session.send([first])] == [
        {'ann@example.org': 'delivered'}
    ]
    with relay.stopped(), pytest.raises(MailerUnavailable):
        mailer(relay).connect()
    with pytest.raises(MailerUnavailable) as caught:
        list(session.send([second]))
    assert caught.value.stale
    with closing(mailer(relay).connect()) as another:
        assert [statuses(outcome) for outcome in another.send([second])] == [
            {'bob@example.org': 'delivered'}
        ]
    # It may read its queue while it greets already.
    until(lambda: len(relay.mails(sender)) == 2, TIMEOUT)
    assert {mail.recipients for mail in relay.mails(sender)} == {
        frozenset({'ann@example.org'}),
        frozenset({'bob@example.org'}),
    }


def test_unicode_address(relay: Relay, session: SMTPSession, sender: str) -> None:
    """An address of any letters, where the relay takes such."""
    relay.offer('SMTPUTF8')
    mail = make_mail(sender, 'jürgen@example.org')
    (outcome,) = session.send([mail])
    assert statuses(outcome) == {'jürgen@example.org': 'delivered'}
    (held,) = relay.mails(sender)
    assert held.recipients == {'jürgen@example.org'}
    assert fronted(relay.content(held), mail.raw)


def test_no_unicode_address(relay: Relay, session: SMTPSession, sender: str) -> None:
    """Where the relay takes no such address, it has failed, and the others have not."""
    if 'SMTPUTF8' not in relay.lacks:
        pytest.skip(f'{relay.name} takes such addresses')
    (outcome,) = session.send([make_mail(sender, 'jürgen@example.org', 'ann@example.org')])
    assert statuses(outcome) == {'jürgen@example.org': 'failed', 'ann@example.org': 'delivered'}
    assert 'SMTPUTF8' in outcome['jürgen@example.org'].reason


def test_closed_to_us(relay: Relay) -> None:
    """A relay whose greeting is a refusal is unavailable, and the error says why."""
    relay.offer('refusals')
    with pytest.raises(MailerUnavailable) as caught:
        mailer(relay, relay.ports.closed).connect()
    assert 'the greeting' in str(caught.value)
    assert any(code in str(caught.value) for code in ('550', '554'))
    assert not caught.value.stale


def test_too_many_connections(relay: Relay, sender: str) -> None:
    """One connection too many makes the relay unavailable until another has ended."""
    relay.offer('limit of connections')
    crowded = mailer(relay, relay.ports.crowded)

    def connected() -> Any:
        with suppress(MailerUnavailable):  # the connections before may not quite have ended
            return crowded.connect()
        return None

    first = until(connected, TIMEOUT)
    with pytest.raises(MailerUnavailable) as caught:
        crowded.connect()
    assert 'the greeting' in str(caught.value)
    assert '421' in str(caught.value)
    (outcome,) = first.send([make_mail(sender)])
    assert statuses(outcome) == {'ann@example.org': 'delivered'}
    first.close()
    until(connected, TIMEOUT).close()
