"""``send_now``: a mail is sent at once, whatever happens to a transaction."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from transaction import TransactionManager

from pyramid_sendmail import (
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    MessageError,
)
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MemoryQueue
from tests.support.doubles import RecordingMailer
from tests.support.smtp.server import ScriptedSMTPServer, reply
from tests.support.transactions import message

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))
LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))
NO_ANSWER = Verdict('ambiguous', None, 'no answer to the whole message')


class Post:
    """A queued delivery, bound to a transaction manager."""

    def __init__(self, mailer: RecordingMailer) -> None:
        self.manager = TransactionManager(explicit=True)
        self.delivery = QueuedMailDelivery(MemoryQueue(), mailer, EnvelopeFactory())
        self.bound = self.delivery.bind(self.manager)


@pytest.fixture
def post(mailer: RecordingMailer) -> Post:
    return Post(mailer)


def test_send_now_needs_no_transaction(post: Post, mailer: RecordingMailer) -> None:
    """``send_now`` sends over a connection of its own, outside any transaction."""
    report = post.bound.send_now(message())
    (envelope,) = mailer.sent
    assert report.message_id == envelope.message_id
    assert report.accepted == ('ann@example.org',)
    assert report.refused == {}
    assert report.reply == Reply(250, '2.0.0 recorded')
    assert mailer.connections == 1
    assert mailer.open_sessions == []


def test_send_now_leaves_though_the_transaction_aborts(post: Post, mailer: RecordingMailer) -> None:
    """``send_now`` does not depend on the transaction: it sends, even if the transaction aborts."""
    post.manager.begin()
    post.bound.send_now(message('now'))
    post.bound.send(message('aborted'))
    post.manager.abort()
    assert [envelope.subject for envelope in mailer.sent] == ['now']


def test_send_now_takes_an_envelope_of_its_own(post: Post, mailer: RecordingMailer) -> None:
    """``sender`` and ``recipients`` are the SMTP envelope."""
    post.delivery.send_now(message(), sender='', recipients=['bob@example.org'])
    (envelope,) = mailer.sent
    assert (envelope.sender, envelope.recipients) == ('', ('bob@example.org',))


def test_send_now_returns_a_report_if_a_recipient_was_accepted(
    post: Post, mailer: RecordingMailer
) -> None:
    """One accepted recipient is enough; the others are in ``refused`` with their replies."""
    mailer.always('bob@example.org', REFUSED)
    mailer.always('eve@example.org', LATER)
    report = post.bound.send_now(
        message(to=['bob@example.org', 'ann@example.org', 'eve@example.org'])
    )
    assert report.accepted == ('ann@example.org',)
    assert report.refused == {
        'bob@example.org': REFUSED.reply,
        'eve@example.org': LATER.reply,
    }
    assert report.reply == Reply(250, '2.0.0 recorded')


def test_the_log_names_no_recipient_but_those_of_the_mail(
    post: Post, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says which recipients were accepted, and which were refused if any was."""
    caplog.set_level(logging.INFO, 'pyramid_sendmail')
    mailer.always('bob@example.org', REFUSED)
    ids = [
        post.bound.send_now(message(to=to)).message_id
        for to in ('ann@example.org', ['ann@example.org', 'bob@example.org'])
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f'{ids[0]}: send_now: accepted for ann@example.org',
        f'{ids[1]}: send_now: accepted for ann@example.org; refused for bob@example.org',
    ]


@pytest.mark.parametrize(
    ('verdict', 'error'), [(REFUSED, MailRefused), (LATER, MailRefused), (NO_ANSWER, MailAmbiguous)]
)
def test_send_now_raises_if_no_recipient_was_accepted(
    post: Post, mailer: RecordingMailer, verdict: Verdict, error: type[MailRefused]
) -> None:
    """It raises MailRefused, or MailAmbiguous if the relay's last reply never came, with the
    report; the text names the recipient and the reason."""
    mailer.always('ann@example.org', verdict)
    with pytest.raises(MailRefused) as caught:
        post.bound.send_now(message())
    assert type(caught.value) is error
    assert caught.value.report.accepted == ()
    assert caught.value.report.refused == {'ann@example.org': verdict.reply}
    assert caught.value.report.reply == verdict.reply
    assert f'ann@example.org: {verdict}' in str(caught.value)
    assert mailer.open_sessions == []


def test_send_now_with_an_unavailable_relay(post: Post, mailer: RecordingMailer) -> None:
    """It raises MailerUnavailable, with the reason of the mailer."""
    mailer.unavailable = 'connection refused'
    with pytest.raises(MailerUnavailable, match='connection refused'):
        post.bound.send_now(message())


def test_send_now_raises_for_a_bad_message_before_it_connects(
    post: Post, mailer: RecordingMailer
) -> None:
    """A bad message raises MessageError before a connection is opened."""
    with pytest.raises(MessageError):
        post.bound.send_now(message('two\nlines'))
    assert mailer.connections == 0


def test_send_now_over_smtp(smtp_server: ScriptedSMTPServer) -> None:
    """Over a real connection the report has the relay's own replies."""
    mailer: Any = mailer_from_url(smtp_server.url, hostname='web.example.org')
    queued = QueuedMailDelivery(MemoryQueue(), mailer, EnvelopeFactory())
    smtp_server.script('RCPT', reply(550, '5.1.1 no such user'), match='bob@')
    report = queued.send_now(message(to=['ann@example.org', 'bob@example.org']))
    assert report.accepted == ('ann@example.org',)
    refused = report.refused['bob@example.org']
    assert refused is not None
    assert refused.code == 550
    smtp_server.wait_for(lambda server: not server.open_connections)
    assert smtp_server.verbs()[-1] == 'QUIT'
