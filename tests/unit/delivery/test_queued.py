"""Queued delivery, and the bound delivery that ``request.mailer`` is."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path

import pytest
import transaction
from transaction import TransactionManager
from zope.interface.verify import verifyObject

from pyramid_sendmail import MessageError, NoActiveTransaction
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.interfaces import IMailDelivery, IQueuedMailDelivery
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue
from tests.support.doubles import RecordingMailer
from tests.support.queues import files
from tests.support.transactions import message

WAIT = 10.0


def test_the_interfaces_are_kept(maildir: MaildirQueue) -> None:
    """The delivery, and the bound one that ``request.mailer`` is, keep their interfaces."""
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    verifyObject(IQueuedMailDelivery, queued)
    verifyObject(IMailDelivery, queued.bind(TransactionManager(explicit=True)))


def test_a_bound_delivery_can_be_bound_again(maildir: MaildirQueue) -> None:
    """``request.mailer.bind(tm)`` sends with another manager's commit."""
    first, second = TransactionManager(explicit=True), TransactionManager(explicit=True)
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    with second:
        queued.bind(first).bind(second).send(message())
    assert len(files(maildir)) == 1


def test_send_is_logged_for_those_who_look(
    maildir: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """At level DEBUG a line says that a mail was taken and waits for the commit; nothing of its
    text. A refused one is not logged."""
    manager = TransactionManager(explicit=True)
    bound = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory()).bind(manager)
    with manager:
        bound.send(message())
        assert caplog.messages == []
        caplog.set_level(logging.DEBUG, 'pyramid_sendmail')
        message_id = bound.send(message(to=['ann@example.org', 'bob@example.org']))
        with pytest.raises(MessageError):
            bound.send(message(to='ann'))
    assert caplog.messages == [
        f'{message_id}: leaves when the transaction commits; for ann@example.org, '
        "bob@example.org, subject 'Hello'"
    ]


def test_each_message_that_was_taken_is_noticed(maildir: MaildirQueue) -> None:
    """``sent`` is called for each message that was taken, and for none that was refused."""
    calls: list[int] = []
    queued = QueuedMailDelivery(
        maildir, RecordingMailer(), EnvelopeFactory(), sent=lambda: calls.append(1)
    )
    manager = TransactionManager(explicit=True)
    with manager:
        queued.bind(manager).send(message())
        with pytest.raises(MessageError):
            queued.bind(manager).send(message(to=()))
    with pytest.raises(NoActiveTransaction):
        queued.bind(manager).send(message())
    assert calls == [1]


def test_queued_options_reach_the_envelope(maildir: MaildirQueue) -> None:
    """The options of ``send`` are in the envelope that a queue processor claims."""
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    with transaction.manager:
        queued.send(
            message(),
            sender='bounces@example.org',
            recipients=['bob@example.org'],
            due=timedelta(hours=1),
            expires=timedelta(days=1),
            priority='high',
            metadata={'order': '7'},
        )
    tickets, next_due = maildir.scan(time.time() + 3601)
    assert next_due is None
    (data,) = [Path(maildir.path, 'new', ticket.order).read_bytes() for ticket in tickets]
    assert b'bounces@example.org' in data
    assert b'bob@example.org' in data
    assert tickets[0].order.startswith('1-')
    assert tickets[0].due == pytest.approx(time.time() + 3600, abs=WAIT)
