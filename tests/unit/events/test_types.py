"""The events: their attributes, and which subscribers get them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from types import MappingProxyType
from typing import Any

import pytest
from pyramid.config import Configurator
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply
from pyramid_sendmail.events.types import (
    KINDS,
    MailDeferredEvent,
    MailErrorEvent,
    MailSentEvent,
    MailTagPredicate,
    event_of,
)
from pyramid_sendmail.interfaces import (
    IMailDeferredEvent,
    IMailErrorEvent,
    IMailEvent,
    IMailSentEvent,
)
from tests.support.queues import NOW, deferred, failed, make_envelope, sent

REQUEST = object()

INTERFACES = {
    'sent': IMailSentEvent,
    'deferred': IMailDeferredEvent,
    'error': IMailErrorEvent,
}


@pytest.fixture
def envelope() -> Envelope:
    return make_envelope(
        'ann@example.org',
        'bob@example.org',
        subject='Grüße',
        tag='welcome',
        metadata=MappingProxyType({'order': '7'}),
    )


def pending_event(kind: str, envelope: Envelope) -> PendingEvent:
    make = {'sent': sent, 'deferred': deferred, 'error': failed}[kind]
    return make(envelope, 'bob@example.org', attempt=3)


@pytest.mark.parametrize('kind', KINDS)
def test_what_every_event_has(envelope: Envelope, kind: str) -> None:
    """Every event carries the mail's common facts and the recipients that it is about."""
    pending = pending_event(kind, envelope)
    event = event_of(pending, envelope, REQUEST)
    assert type(event) is KINDS[kind]
    assert verifyObject(INTERFACES[kind], event)
    assert IMailEvent.providedBy(event)
    common = {
        'id': pending.id,
        'message_id': envelope.message_id,
        'sender': 'bounces@example.org',
        'recipients': ('bob@example.org',),
        'subject': 'Grüße',
        'tag': 'welcome',
        'metadata': {'order': '7'},
        'attempt': 3,
        'queued_at': NOW,
        'mailer': 'smtp://relay.example.org:25',
        'request': REQUEST,
    }
    assert {name: getattr(event, name) for name in common} == common


def test_a_sent_event_has_the_reply(envelope: Envelope) -> None:
    """The relay's answer, code and text; a plain 250 from a mailer that knows none."""
    event: Any = event_of(sent(envelope), envelope, REQUEST)
    assert (event.reply.code, event.reply.text) == (250, '2.0.0 queued as 4B7C')
    silent = PendingEvent(id='1', kind='sent', recipients=(), attempt=1, mailer='file:')
    quiet: Any = event_of(silent, envelope, REQUEST)
    assert quiet.reply == Reply(250, '')


def test_a_deferred_event_has_reason_and_time(envelope: Envelope) -> None:
    """Why it was deferred, and when it is tried again."""
    event: Any = event_of(deferred(envelope, until=NOW + 60), envelope, REQUEST)
    assert (event.reason, event.retry_at) == ('451 4.3.0 try again later', NOW + 60)


def test_an_error_event_has_the_bytes(envelope: Envelope) -> None:
    """Why it failed, whether for good, what the relay said, and the bytes."""
    event: Any = event_of(failed(envelope), envelope, REQUEST)
    assert event.reason == '550 5.1.1 no such user'
    assert event.permanent is True
    assert event.reply == Reply(550, '5.1.1 no such user')
    assert event.raw == envelope.raw


@pytest.mark.parametrize('kind', KINDS)
def test_an_event_is_frozen(envelope: Envelope, kind: str) -> None:
    """Subscribers share an event, and cannot change it."""
    event = event_of(pending_event(kind, envelope), envelope, REQUEST)
    with pytest.raises(FrozenInstanceError):
        event.subject = 'other'  # type: ignore[misc]


def test_the_classes_have_what_the_interfaces_say() -> None:
    """No field of an event is missing in its interface, and none there is missing in it."""
    classes = {
        IMailSentEvent: MailSentEvent,
        IMailDeferredEvent: MailDeferredEvent,
        IMailErrorEvent: MailErrorEvent,
    }
    for interface, cls in classes.items():
        assert set(interface.names(all=True)) == {field.name for field in fields(cls)}


# mail_tag


def notify(config: Configurator, envelope: Envelope, *kinds: str) -> None:
    config.commit()
    for kind in kinds:
        config.registry.notify(event_of(pending_event(kind, envelope), envelope, REQUEST))


@pytest.mark.parametrize(('tag', 'expected'), [('welcome', True), ('bill', False)])
def test_mail_tag(envelope: Envelope, tag: str, expected: bool) -> None:
    """``mail_tag`` lets through only events of mail with that tag."""
    calls: list[Any] = []
    config = Configurator(settings={})
    config.include('pyramid_sendmail')
    config.add_subscriber(calls.append, MailSentEvent, mail_tag=tag)
    notify(config, envelope, 'sent', 'error')
    assert [type(event) for event in calls] == ([MailSentEvent] if expected else [])


def test_mail_tag_on_every_event(envelope: Envelope) -> None:
    """It goes with the interface of all events, too, and with other subscribers."""
    calls: list[Any] = []
    config = Configurator(settings={})
    config.include('pyramid_sendmail')
    config.add_subscriber(calls.append, IMailEvent, mail_tag='welcome')
    config.add_subscriber(calls.append, IMailErrorEvent)
    notify(config, envelope, 'sent', 'deferred', 'error')
    assert [type(event) for event in calls].count(MailErrorEvent) == 2
    assert len(calls) == 4


def test_mail_without_a_tag(envelope: Envelope) -> None:
    """Mail that has no tag has no tag that fits."""
    predicate = MailTagPredicate('welcome', None)
    assert predicate(event_of(sent(make_envelope()), make_envelope(), REQUEST)) is False
    assert predicate(event_of(sent(envelope), envelope, REQUEST)) is True


def test_the_predicate_names_itself() -> None:
    """In ``pviews`` and the debug toolbar the predicate is readable."""
    predicate = MailTagPredicate('welcome', None)
    assert predicate.text() == predicate.phash() == "mail_tag = 'welcome'"
