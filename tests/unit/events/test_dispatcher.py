"""The event dispatcher: each event, or batch, in a request and a transaction of its own."""

from __future__ import annotations

import errno
import logging
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from pyramid.authorization import ACLHelper
from pyramid.config import Configurator
from pyramid.interfaces import IRequestExtensions, ISecurityPolicy
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.threadlocal import get_current_registry, get_current_request, manager
from pyramid_tm import explicit_manager
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool
from transaction._transaction import Status
from transaction.interfaces import NoTransaction, TransientError
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail import Message, NoActiveTransaction, QueueError
from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply, Verdict
from pyramid_sendmail.events.dispatcher import EventDispatcher
from pyramid_sendmail.events.loop_guard import current_depth
from pyramid_sendmail.events.request import EventRequests
from pyramid_sendmail.events.types import MailDeferredEvent, MailErrorEvent, MailSentEvent
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailer,
    IMailErrorEvent,
    IMailEvent,
    IMailEventDispatcher,
    IMailSentEvent,
)
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.threads import in_background_thread
from tests.support.databases import NOTES, make_notes, notes
from tests.support.doubles import RecordingMailer
from tests.support.queues import NOW, Clock, deferred, failed, make_envelope, sent, until
from tests.support.smtp.server import ScriptedSMTPServer

WAIT = 10.0

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))


class Claim:
    """A claim that notes what the dispatcher does to it."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.done: list[Any] = []
        self.fails: Exception | None = None

    def acknowledge(self, events: Sequence[PendingEvent]) -> None:
        self.done.append(('acknowledge', [event.id for event in events]))
        if self.fails is not None:
            raise self.fails

    def retry_events(self, events: Sequence[PendingEvent], due: float) -> None:
        self.done.append(('retry_events', [event.id for event in events], due))

    def release(self) -> None:
        self.done.append(('release',))


class Application:
    """A configured application without views, and its event dispatcher."""

    def __init__(self, **settings: Any) -> None:
        self.mailer = RecordingMailer()
        self.handled: list[Any] = []
        self.config = Configurator(settings={'mail.url': 'null:', **settings})
        self.config.include('pyramid_sendmail')
        self.config.set_mailer(self.mailer)
        self.registry = self.config.registry

    def subscribe(
        self, function: Callable[[Any], object], event: Any = IMailEvent, **predicates: Any
    ) -> None:
        self.config.add_subscriber(function, event, **predicates)

    @property
    def dispatcher(self) -> EventDispatcher:
        """With the application's subscribers, and a clock that stands still."""
        self.config.commit()
        return EventDispatcher(self.registry, clock=Clock())

    def dispatch(self, *events: PendingEvent, envelope: Envelope | None = None) -> Claim:
        """Dispatch events of one claim, wait for them, and return the claim."""
        claim: Any = Claim(envelope or make_envelope())
        dispatcher = self.dispatcher
        dispatcher.dispatch(claim, events or [sent(claim.envelope)])
        assert dispatcher.flush(WAIT)
        return claim  # type: ignore[no-any-return]

    @property
    def delivery(self) -> Any:
        self.config.commit()
        return self.registry.getUtility(IMailDelivery)

    def send(self, subject: str = 'Hello', **options: Any) -> str:
        """Send in a transaction, by direct delivery; wait for all events."""
        with transaction.manager:
            message_id = self.delivery.send(message(subject), **options)
        self.delivery.flush(WAIT)
        return str(message_id)

    @property
    def subjects(self) -> list[str]:
        return [envelope.subject for envelope in self.mailer.sent]


def message(subject: str, to: str | list[str] = 'ann@example.org') -> Message:
    return Message(subject=subject, to=to, text='Hi', sender='shop@example.org')


@pytest.fixture
def application() -> Iterator[Application]:
    application = Application()
    yield application
    if application.registry.queryUtility(IMailDelivery) is not None:
        application.delivery.flush(WAIT)


@pytest.fixture
def explicit() -> Application:
    return Application(**{'tm.manager_hook': 'pyramid_tm.explicit_manager'})


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.ERROR]


# The request


def test_the_interface_is_kept(application: Application) -> None:
    """EventDispatcher keeps the interface, and is the registered dispatcher."""
    assert verifyObject(IMailEventDispatcher, application.dispatcher)
    assert isinstance(application.registry.getUtility(IMailEventDispatcher), EventDispatcher)


def test_an_event_has_a_request_of_its_own(application: Application) -> None:
    """The request is blank, has the application's registry, and is the current one while
    subscribers run."""
    seen: list[Any] = []

    def subscriber(event: Any) -> None:
        assert get_current_request() is event.request
        assert get_current_registry() is application.registry
        assert event.request.registry is application.registry
        assert event.request.path == '/'
        assert in_background_thread()
        seen.append(event.request)

    application.subscribe(subscriber)
    first, second = make_envelope(), make_envelope()
    application.dispatch(sent(first), failed(first), envelope=first)
    application.dispatch(sent(second), envelope=second)
    assert len(set(map(id, seen))) == len(seen) == 3


def test_threadlocals_are_restored(application: Application) -> None:
    """The stack of threadlocals is the same after an event as before, in any thread."""
    application.subscribe(lambda event: None)
    envelope = make_envelope()
    manager.push({'request': 'mine', 'registry': application.registry})
    try:
        before = list(manager.stack)
        assert application.dispatcher.deliver(sent(envelope), envelope)
        assert manager.stack == before
    finally:
        manager.pop()


def test_the_request_factory_is_the_applications(application: Application) -> None:
    """The factory that the application has set makes the event's request."""

    class OwnRequest(Request):  # type: ignore[misc]
        pass

    seen: list[Any] = []
    application.config.set_request_factory(OwnRequest)
    application.subscribe(lambda event: seen.append(isinstance(event.request, OwnRequest)))
    application.dispatch()
    assert seen == [True]


def test_request_extensions_are_applied(application: Application) -> None:
    """The request has the methods and properties of ``add_request_method``."""
    seen: list[Any] = []
    application.config.add_request_method(lambda request: 'value', 'own', property=True)
    application.config.add_request_method(lambda request, n: n + 1, 'more')
    application.subscribe(lambda event: seen.append((event.request.own, event.request.more(1))))
    application.dispatch()
    assert seen == [('value', 2)]


def test_each_request_has_extensions_of_its_own(application: Application) -> None:
    """The value of a property, or of an attribute that a subscriber has set, is not on the request
    of another event, though all requests share one class."""
    seen: list[Any] = []
    count = iter(range(10))
    application.config.add_request_method(lambda request: next(count), 'number', reify=True)
    application.config.add_request_method(lambda request: [request], 'me')

    def subscriber(event: Any) -> None:
        request = event.request
        assert not hasattr(request, 'special')
        request.set_property(lambda request: 'own', 'special')
        seen.append((request.number, request.number, request.me() == [request]))
        assert not hasattr(request, 'mark')
        request.mark = True

    application.subscribe(subscriber)
    dispatcher = application.dispatcher
    envelope = make_envelope()
    for _ in range(3):
        assert dispatcher.deliver(sent(envelope), envelope)
    assert seen == [(n, n, True) for n in range(3)]


def test_extensions_that_come_later_are_applied(application: Application) -> None:
    """An extension that is added after the first event is on the next request."""
    seen: list[Any] = []
    application.subscribe(lambda event: seen.append(getattr(event.request, 'late', None)))
    dispatcher = application.dispatcher
    envelope = make_envelope()
    assert dispatcher.deliver(sent(envelope), envelope)
    application.config.add_request_method(lambda request: 'late', 'late', property=True)
    application.config.commit()
    assert dispatcher.deliver(sent(envelope), envelope)
    assert seen == [None, 'late']


def test_an_application_without_extensions(application: Application) -> None:
    """Without request extensions an event has a plain request."""
    application.config.commit()
    application.registry.unregisterUtility(provided=IRequestExtensions)
    with EventRequests(application.registry).event_request() as request:
        assert type(request) is Request
        assert not hasattr(request, 'mailer')


@pytest.mark.parametrize(
    ('base_url', 'url'),
    [
        ('', 'http://localhost/orders'),
        ('https://shop.example.org', 'https://shop.example.org/orders'),
        ('https://shop.example.org:8443/app', 'https://shop.example.org:8443/app/orders'),
        ('http://[::1]:6543', 'http://[::1]:6543/orders'),
    ],
)
def test_links_begin_with_the_base_url(application: Application, base_url: str, url: str) -> None:
    """There is no Host header that a link could follow."""
    application.config.add_route('orders', '/orders')
    application.config.commit()
    with EventRequests(application.registry, base_url).event_request() as request:
        assert request.route_url('orders') == url


def test_finished_callbacks_run(application: Application) -> None:
    """Finished callbacks run once, after the commit, also if the subscriber raised."""
    calls: list[str] = []

    def subscriber(event: Any) -> None:
        event.request.tm.get().addAfterCommitHook(lambda committed: calls.append('committed'))
        event.request.add_finished_callback(lambda request: calls.append('finished'))
        if event.attempt == 2:
            raise ZeroDivisionError

    application.subscribe(subscriber)
    application.dispatch()
    assert calls == ['committed', 'finished']
    envelope = make_envelope()
    application.dispatch(sent(envelope, attempt=2), envelope=envelope)
    assert calls == ['committed', 'finished', 'finished']


def test_a_finished_callback_that_raises_is_logged(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """The event's transaction has committed by then, so it is not dispatched again."""

    def subscriber(event: Any) -> None:
        event.request.add_finished_callback(lambda request: 1 / 0)

    application.subscribe(subscriber)
    claim = application.dispatch()
    assert [done[0] for done in claim.done] == ['acknowledge']
    assert 'a finished callback raised, after the commit' in caplog.text
    assert 'ZeroDivisionError' in caplog.text


def test_the_security_policy_is_not_consulted(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A security policy that raises does not keep an event from its subscribers."""

    @implementer(ISecurityPolicy)
    class Policy:
        def refuse(self, request: Any, *args: Any, **options: Any) -> Any:
            raise ACLHelper

        identity = authenticated_userid = permits = remember = forget = refuse

    application.config.set_security_policy(Policy())
    application.subscribe(application.handled.append)
    application.dispatch()
    assert len(application.handled) == 1
    assert quiet(caplog)


# The transaction


@pytest.mark.parametrize('hook', [None, 'pyramid_tm.explicit_manager'])
def test_an_event_has_a_transaction_of_its_own(hook: str | None) -> None:
    """``request.tm`` is what the application's pyramid_tm gives: its manager hook's, or the
    thread-local one, begun and marked as active, with a note."""
    application = Application(**({'tm.manager_hook': hook} if hook else {}))
    seen: list[Any] = []

    def subscriber(event: Any) -> None:
        tm = event.request.tm
        assert event.request.environ['tm.active'] is True
        assert event.request.environ['tm.manager'] is tm
        assert tm.explicit == bool(hook)
        assert hook or tm is transaction.manager
        seen.append((tm, tm.get(), tm.get().description))
        tm.get().addAfterCommitHook(seen.append)

    application.subscribe(subscriber)
    claim = application.dispatch()
    (tm, current, note), committed = seen
    assert committed is True
    assert note == f'pyramid_sendmail MailSentEvent {claim.envelope.message_id}'
    assert current.status is Status.COMMITTED
    if hook:
        with pytest.raises(NoTransaction):
            tm.get()


def test_the_transaction_is_over_when_the_request_ends(explicit: Application) -> None:
    """In finished callbacks ``send`` raises, as in a web request: nothing joins any more."""
    raised: list[Exception] = []

    def late(request: Any) -> None:
        assert 'tm.active' not in request.environ
        try:
            request.mailer.send(message('late'))
        except NoActiveTransaction as error:
            raised.append(error)

    explicit.subscribe(lambda event: event.request.add_finished_callback(late))
    explicit.dispatch()
    assert len(raised) == 1


def test_an_implicit_transaction_of_the_thread_does_no_harm(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A transaction that a subscriber left in the thread-local manager does not disturb the next
    event."""

    def subscriber(event: Any) -> None:
        event.request.add_finished_callback(lambda request: transaction.get())

    application.subscribe(subscriber)
    envelope = make_envelope()
    claim = application.dispatch(sent(envelope), failed(envelope), envelope=envelope)
    assert [done[0] for done in claim.done] == ['acknowledge']
    assert quiet(caplog)


def test_a_doomed_event_is_tried_again(application: Application) -> None:
    """A subscriber that dooms its transaction has not handled the event."""
    application.subscribe(lambda event: event.request.tm.doom())
    claim = application.dispatch()
    assert [done[0] for done in claim.done] == ['retry_events']


def test_a_subscriber_that_raises_aborts_its_transaction_alone(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Other events of the same mail are committed. The traceback is in the log, and what happens
    next."""
    committed: list[str] = []

    def subscriber(event: Any) -> None:
        kind = type(event).__name__
        event.request.tm.get().addAfterCommitHook(lambda done: committed.append(kind))
        if isinstance(event, MailSentEvent):
            raise ZeroDivisionError

    application.subscribe(subscriber)
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    events = sent(envelope, 'ann@example.org'), failed(envelope, 'bob@example.org')
    claim = application.dispatch(*events, envelope=envelope)
    assert committed == ['MailErrorEvent']
    assert claim.done == [
        ('acknowledge', [events[1].id]),
        ('retry_events', [events[0].id], NOW + 1.0),
    ]
    assert 'ZeroDivisionError' in caplog.text
    assert (
        f'{envelope.message_id}: event handler or commit failed (sent event {events[0].id}); '
        'its database changes were undone; next try in 1 s'
    ) in caplog.text


@pytest.mark.parametrize('error', [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_subscriber_that_exits_ends_no_thread(
    application: Application, error: BaseException
) -> None:
    """``sys.exit()`` in a subscriber is a failure like any other: its event is tried again later,
    and the next event is handled."""
    raising = [error]

    def subscriber(event: Any) -> None:
        application.handled.append(event)
        if raising:
            raise raising.pop()

    application.subscribe(subscriber)
    dispatcher = application.dispatcher
    claims = [Claim(make_envelope()) for _ in range(2)]
    for claim in claims:
        dispatcher.dispatch(claim, [sent(claim.envelope)])  # type: ignore[arg-type]
    assert dispatcher.flush(WAIT)
    assert dispatcher.failures == 1
    assert [claim.done[0][0] for claim in claims] == ['retry_events', 'acknowledge']


def test_a_commit_that_fails_is_a_failure(application: Application) -> None:
    """An event whose transaction could not commit is tried again."""

    def subscriber(event: Any) -> None:
        event.request.tm.get().addBeforeCommitHook(lambda: 1 / 0)

    application.subscribe(subscriber)
    assert application.dispatch().done[0][0] == 'retry_events'


# Trying again


def test_events_are_tried_again_after_growing_pauses(application: Application) -> None:
    """An event is tried again after 1 s, 5 s, 30 s and then every 5 minutes, always with the same
    id."""

    def subscriber(event: Any) -> None:
        application.handled.append(event.id)
        raise TransientError

    application.subscribe(subscriber)
    envelope = make_envelope()
    pauses = []
    for tries in range(6):
        event = again(sent(envelope), tries)
        (done,) = application.dispatch(event, envelope=envelope).done
        assert done[:2] == ('retry_events', [event.id])
        pauses.append(done[2] - NOW)
    assert pauses == [1.0, 5.0, 30.0, 300.0, 300.0, 300.0]
    assert application.handled == [sent(envelope).id] * 6


def again(event: PendingEvent, tries: int) -> PendingEvent:
    return event._replace(tries=tries)


def test_after_a_day_an_event_is_given_up(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """The last try is about a day after the first one. Then the event counts as handled, and a
    CRITICAL line says which one was given up."""

    def subscriber(event: Any) -> None:
        application.handled.append(event)
        raise ZeroDivisionError

    application.subscribe(subscriber)
    envelope = make_envelope()
    last = next(
        tries
        for tries in range(400)
        if application.dispatch(again(failed(envelope), tries), envelope=envelope).done[0][0]
        == 'acknowledge'
    )
    assert len(application.handled) == last + 1
    age = 1 + 5 + 30 + 300 * (last - 3)
    assert 86_400 - 300 <= age < 86_400
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    for word in (envelope.message_id, failed(envelope).id, 'ann@example.org', str(last + 1)):
        assert word in record.getMessage()


def test_a_policy_without_delays_gives_up_at_once(application: Application) -> None:
    """With a policy without delays the first failure is the last."""
    application.subscribe(lambda event: 1 / 0)
    application.config.commit()
    policy = RetryPolicy(delays=(), give_up_after=0.0)
    dispatcher = EventDispatcher(application.registry, policy=policy)
    claim: Any = Claim(make_envelope())
    dispatcher.dispatch(claim, [sent(claim.envelope)])
    assert dispatcher.flush(WAIT)
    assert claim.done == [('acknowledge', [sent(claim.envelope).id])]


def test_the_soonest_of_several_events_decides(application: Application) -> None:
    """Two events of a mail that failed a different number of times come back together, after the
    shorter pause."""
    application.subscribe(lambda event: 1 / 0)
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    events = again(sent(envelope), 3), again(failed(envelope), 1)
    claim = application.dispatch(*events, envelope=envelope)
    assert claim.done == [('retry_events', [event.id for event in events], NOW + 5.0)]


def test_deferred_events_are_dispatched_at_most_once(application: Application) -> None:
    """A subscriber that raises for a deferred event does not get it again."""

    def subscriber(event: Any) -> None:
        application.handled.append(event)
        raise ZeroDivisionError

    application.subscribe(subscriber)
    envelope = make_envelope()
    claim = application.dispatch(deferred(envelope, until=NOW + 60), envelope=envelope)
    assert len(application.handled) == 1
    assert claim.done == []


def test_an_event_that_cannot_be_acknowledged_is_released(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """If the queue cannot record that an event was handled, its claim is released, and a later scan
    dispatches the event again; the thread goes on."""
    application.subscribe(application.handled.append)
    dispatcher = application.dispatcher
    claims: list[Any] = [Claim(make_envelope()) for _ in range(2)]
    claims[0].fails = QueueError(errno.ENOSPC, 'no space left on device')
    for claim in claims:
        dispatcher.dispatch(claim, [sent(claim.envelope)])
    assert dispatcher.flush(WAIT)
    assert [[done[0] for done in claim.done] for claim in claims] == [
        ['acknowledge', 'release'],
        ['acknowledge'],
    ]
    assert 'no space left' in caplog.text


def test_the_backlog_is_bounded(application: Application) -> None:
    """Claims beyond the backlog are released at once."""
    going_on = threading.Event()
    application.subscribe(lambda event: going_on.wait(WAIT))
    application.config.commit()
    dispatcher = EventDispatcher(application.registry, backlog=2)
    claims: list[Any] = [Claim(make_envelope()) for _ in range(4)]
    dispatcher.dispatch(claims[0], [sent(claims[0].envelope)])
    until(lambda: dispatcher._busy)
    for claim in claims[1:]:
        dispatcher.dispatch(claim, [sent(claim.envelope)])
    assert [claim.done for claim in claims] == [[], [], [], [('release',)]]
    assert not dispatcher.flush(0.01)
    going_on.set()
    assert dispatcher.flush(WAIT)
    assert [claim.done[0][0] for claim in claims[:3]] == ['acknowledge'] * 3


# Subscriptions


def test_wants(application: Application) -> None:
    """``wants`` is True if a subscriber is registered for the kind of event: by its class, by an
    interface, for all events, or with a predicate that may not fit."""
    assert [application.dispatcher.wants(kind) for kind in ('sent', 'deferred', 'error')] == [
        False,
        False,
        False,
    ]
    application.subscribe(application.handled.append, MailSentEvent)
    assert [application.dispatcher.wants(kind) for kind in ('sent', 'deferred', 'error')] == [
        True,
        False,
        False,
    ]
    application.subscribe(application.handled.append, IMailErrorEvent, mail_tag='bill')
    assert application.dispatcher.wants('error')
    application.subscribe(application.handled.append)
    assert application.dispatcher.wants('deferred')


def test_without_a_subscriber_nothing_is_made(application: Application) -> None:
    """Without a subscriber neither a request nor a transaction is made, and the event counts as
    handled."""
    factories: list[Any] = []

    class OwnRequest(Request):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            factories.append(self)
            super().__init__(*args, **options)

    application.config.set_request_factory(OwnRequest)
    claim = application.dispatch()
    assert factories == []
    assert claim.done[0][0] == 'acknowledge'


# Databases


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    """A database whose pool has one connection."""
    engine = sqlalchemy.create_engine(
        f'sqlite:///{tmp_path}/pool.sqlite',
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=WAIT,
        connect_args={'check_same_thread': False},
    )
    make_notes(engine)
    yield engine
    engine.dispose()


def use_dbsession(application: Application, engine: sqlalchemy.Engine) -> None:
    """``request.dbsession``, as Pyramid's cookiecutter has it."""
    factory = sessionmaker(engine)

    def dbsession(request: Any) -> Any:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    application.config.add_request_method(dbsession, 'dbsession', reify=True)


@pytest.mark.parametrize('fails', [False, True])
def test_a_subscriber_writes_through_request_tm(
    explicit: Application, sqlite: sqlalchemy.Engine, fails: bool
) -> None:
    """A row that a subscriber adds to ``request.dbsession`` is committed with the event, or
    aborted with it."""
    use_dbsession(explicit, sqlite)

    def subscriber(event: Any) -> None:
        event.request.dbsession.execute(NOTES.insert().values(text=event.subject))
        zope.sqlalchemy.mark_changed(event.request.dbsession, event.request.tm)
        if fails:
            raise TransientError

    explicit.subscribe(subscriber)
    envelope = make_envelope(subject='a row')
    claim = explicit.dispatch(sent(envelope), envelope=envelope)
    assert notes(sqlite) == ([] if fails else ['a row'])
    assert claim.done[0][0] == ('retry_events' if fails else 'acknowledge')


@pytest.mark.parametrize('fails', [False, True])
def test_a_subscriber_writes_through_a_scoped_session(
    application: Application, sqlite: sqlalchemy.Engine, fails: bool
) -> None:
    """A row that a subscriber adds to a scoped session of the thread-local manager is committed
    with the event, or aborted with it."""
    session = scoped_session(sessionmaker(sqlite))
    zope.sqlalchemy.register(session)

    def subscriber(event: Any) -> None:
        session.execute(NOTES.insert().values(text=event.subject))
        zope.sqlalchemy.mark_changed(session())
        if fails:
            raise ZeroDivisionError

    application.subscribe(subscriber)
    for subject in ('first', 'second'):
        envelope = make_envelope(subject=subject)
        application.dispatch(sent(envelope), envelope=envelope)
    assert notes(sqlite) == ([] if fails else ['first', 'second'])


def test_a_subscriber_sees_what_the_sender_committed(
    application: Application, sqlite: sqlalchemy.Engine
) -> None:
    """The transaction that sent the mail has finished when the subscriber runs."""
    session = scoped_session(sessionmaker(sqlite))
    zope.sqlalchemy.register(session)
    application.subscribe(lambda event: application.handled.append(notes(sqlite)))
    with transaction.manager:
        session.execute(NOTES.insert().values(text='order'))
        zope.sqlalchemy.mark_changed(session())
        application.delivery.send(message('Hello'))
    application.delivery.flush(WAIT)
    assert application.handled == [['order']]


def test_a_subscriber_that_needs_the_only_connection(
    explicit: Application, pool: sqlalchemy.Engine
) -> None:
    """A subscriber may need the pool's only connection, which the committing transaction still
    holds: the commit waits for the relay alone, so neither waits for the other."""
    use_dbsession(explicit, pool)

    def subscriber(event: Any) -> None:
        event.request.dbsession.execute(NOTES.insert().values(text=event.subject))
        zope.sqlalchemy.mark_changed(event.request.dbsession, event.request.tm)

    explicit.subscribe(subscriber)
    delivery = explicit.delivery
    tm = explicit_manager(None)
    tm.begin()
    start = time.monotonic()
    with pool.connect():
        delivery.bind(tm).send(message('Hello'))
        tm.commit()
        assert explicit.subjects == ['Hello']
    delivery.flush(WAIT)
    assert time.monotonic() - start < WAIT / 2
    assert notes(pool) == ['Hello']


# Batches


class Together:
    """Dispatches several claims before the dispatcher's thread takes any."""

    def __init__(self, application: Application, *, batch: int = 10) -> None:
        self.application = application
        application.config.commit()
        self.dispatcher = EventDispatcher(application.registry, batch=batch, clock=Clock())
        self.claims: list[Any] = []

    def dispatch(self, *mails: Sequence[PendingEvent], depth: int = 0) -> list[list[Any]]:
        """Dispatch the events of several mails at once; return what was done to each claim."""
        claims: list[Any] = [Claim(make_envelope(depth=depth)) for _ in mails]
        with self.dispatcher._changed:
            for claim, events in zip(claims, mails, strict=True):
                self.dispatcher.dispatch(claim, events)
        assert self.dispatcher.flush(WAIT)
        return [claim.done for claim in claims]


def mails(number: int) -> list[list[PendingEvent]]:
    """Return one sent event for each of several mails."""
    return [[sent(make_envelope())] for _ in range(number)]


def test_a_batch_has_one_request_and_one_transaction(explicit: Application) -> None:
    """Events that wait are handled one by one, in one request and one transaction with a note. Each
    mail is acknowledged on its own."""
    commits: list[bool] = []

    def subscriber(event: Any) -> None:
        if not explicit.handled:
            event.request.tm.get().addAfterCommitHook(commits.append)
        explicit.handled.append(event)
        assert get_current_request() is event.request
        assert event.request.tm.get().description.startswith('pyramid_sendmail 10 events, <')

    explicit.subscribe(subscriber)
    events_of_mails = mails(10)
    done = Together(explicit).dispatch(*events_of_mails)
    assert [event.id for event in explicit.handled] == [events[0].id for events in events_of_mails]
    assert len({id(event.request) for event in explicit.handled}) == 1
    assert commits == [True]
    assert done == [[('acknowledge', [events[0].id])] for events in events_of_mails]


def test_a_batch_is_no_larger_than_the_setting(application: Application) -> None:
    """Five events in batches of two have three requests; without batches each has its own."""
    application.subscribe(application.handled.append)
    for batch, requests in ((2, 3), (1, 5)):
        application.handled.clear()
        Together(application, batch=batch).dispatch(*mails(5))
        assert len({id(event.request) for event in application.handled}) == requests


def test_events_of_one_mail_are_acknowledged_together(application: Application) -> None:
    """A mail with more events than a batch holds is acknowledged once, after all of them."""
    application.subscribe(application.handled.append)
    envelope = make_envelope()
    events = [sent(envelope, group=group) for group in range(3)]
    done = Together(application, batch=2).dispatch(events, *mails(1))
    assert done[0] == [('acknowledge', [event.id for event in events])]
    requests = [id(event.request) for event in application.handled]
    assert (requests[0] == requests[1], len(set(requests))) == (True, 3)


def test_an_event_does_not_wait_for_a_full_batch(application: Application) -> None:
    """One event alone is handled soon, however large a batch may be."""
    application.subscribe(application.handled.append)
    start = time.monotonic()
    assert Together(application, batch=1000).dispatch(*mails(1))[0][0][0] == 'acknowledge'
    assert time.monotonic() - start < WAIT / 2


@pytest.mark.parametrize('error', [ZeroDivisionError, SystemExit])
def test_one_bad_event_of_a_batch_costs_the_others_nothing(
    explicit: Application,
    sqlite: sqlalchemy.Engine,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    """If a subscriber raises for one of ten, each is delivered alone at once, with the same id:
    nine rows are committed once each, and one event is tried again later."""
    use_dbsession(explicit, sqlite)
    events_of_mails = mails(10)
    bad = events_of_mails[4][0].id

    def subscriber(event: Any) -> None:
        explicit.handled.append(event.id)
        event.request.dbsession.execute(NOTES.insert().values(text=event.id))
        zope.sqlalchemy.mark_changed(event.request.dbsession, event.request.tm)
        if event.id == bad:
            raise error

    explicit.subscribe(subscriber)
    done = Together(explicit).dispatch(*events_of_mails)
    ids = [events[0].id for events in events_of_mails]
    assert explicit.handled == ids[:5] + ids
    assert notes(sqlite) == [each for each in ids if each != bad]
    assert [claim[0][0] for claim in done] == ['acknowledge'] * 4 + ['retry_events'] + [
        'acknowledge'
    ] * 5
    assert done[4] == [('retry_events', [bad], NOW + 1.0)]
    assert (
        f'event handler or commit failed for a batch (sent event {ids[0]} and 9 more); all '
        'database changes of the batch were undone; each event is tried alone now'
    ) in caplog.text


def test_a_batch_whose_commit_fails_is_delivered_one_by_one(
    explicit: Application, sqlite: sqlalchemy.Engine
) -> None:
    """A commit that fails leaves nothing behind. Each event is then delivered in a transaction of
    its own, and one whose commit fails again is tried again later."""
    use_dbsession(explicit, sqlite)
    events_of_mails = mails(3)

    def subscriber(event: Any) -> None:
        explicit.handled.append(event)
        event.request.dbsession.execute(NOTES.insert().values(text=event.id))
        zope.sqlalchemy.mark_changed(event.request.dbsession, event.request.tm)
        if event.id == events_of_mails[1][0].id:
            event.request.tm.get().addBeforeCommitHook(lambda: 1 / 0)

    explicit.subscribe(subscriber)
    done = Together(explicit).dispatch(*events_of_mails)
    assert len(explicit.handled) == 6
    assert len({id(event.request) for event in explicit.handled}) == 4
    assert notes(sqlite) == [events_of_mails[0][0].id, events_of_mails[2][0].id]
    assert [claim[0][0] for claim in done] == ['acknowledge', 'retry_events', 'acknowledge']


@pytest.mark.parametrize('hook', [None, 'pyramid_tm.explicit_manager'])
@pytest.mark.parametrize('end', ['abort', 'commit'])
def test_a_subscriber_that_ends_the_transaction_of_a_batch(
    sqlite: sqlalchemy.Engine, end: str, hook: str | None
) -> None:
    """A subscriber that aborts or commits, and begins anew, does not affect the other events."""
    application = Application(**({'tm.manager_hook': hook} if hook else {}))
    use_dbsession(application, sqlite)

    def subscriber(event: Any) -> None:
        application.handled.append(event.id)
        session = event.request.dbsession
        session.execute(NOTES.insert().values(text=event.id))
        zope.sqlalchemy.mark_changed(session, event.request.tm)
        if event.subject == '' and len(application.handled) == 2:
            getattr(event.request.tm, end)()
            event.request.tm.begin()

    application.subscribe(subscriber)
    events_of_mails = mails(3)
    done = Together(application).dispatch(*events_of_mails)
    assert [claim[0][0] for claim in done] == ['acknowledge'] * 3
    ids = [events[0].id for events in events_of_mails]
    assert sorted(set(notes(sqlite))) == sorted(ids)
    assert application.handled == [*ids[:2], *ids]


def test_an_event_that_has_failed_before_is_alone(application: Application) -> None:
    """An event that has failed before would cost the others another abort, and a deferred one could
    not be delivered again: neither is in a batch."""
    application.subscribe(application.handled.append)
    plain = [sent(make_envelope()) for _ in range(3)]
    late, later = again(sent(make_envelope()), 1), deferred(make_envelope(), until=NOW + 60)
    Together(application).dispatch(
        *([event] for event in (plain[0], late, plain[1], later, plain[2]))
    )
    requests = {event.id: id(event.request) for event in application.handled}
    assert len(requests) == 5
    assert len({requests[event.id] for event in plain}) == 1
    assert len(set(requests.values())) == 3


def test_deferred_events_are_dispatched_once_though_a_batch_fails(application: Application) -> None:
    """A deferred event is dispatched at most once, whatever happens to the others."""
    kinds: list[str] = []

    def subscriber(event: Any) -> None:
        kinds.append(type(event).__name__)
        if isinstance(event, MailErrorEvent):
            raise ZeroDivisionError

    application.subscribe(subscriber)
    envelope = make_envelope()
    events = [sent(envelope), deferred(envelope, until=NOW + 60), failed(envelope)]
    (done,) = Together(application).dispatch(events)
    assert kinds.count('MailDeferredEvent') == 1
    assert done == [
        ('acknowledge', [events[0].id]),
        ('retry_events', [events[2].id], NOW + 1.0),
    ]


def test_without_a_subscriber_no_batch_is_made(application: Application) -> None:
    """Events of a kind without a subscriber count as handled, beside others that are delivered."""
    application.subscribe(application.handled.append, IMailErrorEvent)
    envelope = make_envelope()
    done = Together(application).dispatch(
        [failed(envelope)], *mails(2), [failed(envelope, group=1)]
    )
    assert [claim[0][0] for claim in done] == ['acknowledge'] * 4
    assert len({id(event.request) for event in application.handled}) == 1
    assert len(application.handled) == 2


def test_the_depth_in_a_batch_is_each_events_own(application: Application) -> None:
    """A failure notice has the depth of its own event, whatever the batch holds. Mail that a hook
    of the commit sends has the depth of the deepest event."""
    depths: list[Any] = []

    def subscriber(event: Any) -> None:
        depths.append(current_depth.get())
        if len(depths) == 1:
            event.request.tm.get().addBeforeCommitHook(
                lambda: depths.append(-(current_depth.get() or 0))
            )

    application.subscribe(subscriber)
    envelope = make_envelope()
    Together(application).dispatch([sent(envelope)], [failed(envelope)], [sent(envelope, group=1)])
    assert depths == [10, 1, 10, -11]
    assert current_depth.get() is None


def test_mail_of_subscribers_in_a_batch_leaves_once(application: Application) -> None:
    """Mail of subscribers is aborted with a batch that fails, and leaves when its event is
    delivered alone."""
    events_of_mails = mails(4)

    def subscriber(event: Any) -> None:
        if event.subject == 'of a subscriber':
            return
        event.request.mailer.send(message('of a subscriber', to=f'{event.id}@example.org'))
        if event.id == events_of_mails[3][0].id:
            raise ZeroDivisionError

    application.subscribe(subscriber)
    assert application.delivery is not None
    Together(application).dispatch(*events_of_mails)
    application.delivery.flush(WAIT)
    recipients = [envelope.recipients[0] for envelope in application.mailer.sent]
    assert recipients == [f'{events[0].id}@example.org' for events in events_of_mails[:3]]


def test_a_finished_callback_of_a_batch_that_raises(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch has committed by then, and is not delivered again."""

    def subscriber(event: Any) -> None:
        application.handled.append(event)
        event.request.add_finished_callback(lambda request: 1 / 0)

    application.subscribe(subscriber)
    done = Together(application).dispatch(*mails(3))
    assert [claim[0][0] for claim in done] == ['acknowledge'] * 3
    assert len(application.handled) == 3
    assert 'a finished callback raised, after the commit (sent event' in caplog.text
    assert ' and 2 more); it is not called again' in caplog.text


def test_one_of_a_batch_that_cannot_be_acknowledged(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Its claim is released, to be found and dispatched again; the others are acknowledged."""
    application.subscribe(application.handled.append)
    together = Together(application)
    claims: list[Any] = [Claim(make_envelope()) for _ in range(3)]
    claims[1].fails = QueueError(errno.ENOSPC, 'no space left on device')
    with together.dispatcher._changed:
        for claim in claims:
            together.dispatcher.dispatch(claim, [sent(claim.envelope)])
    assert together.dispatcher.flush(WAIT)
    assert [[done[0] for done in claim.done] for claim in claims] == [
        ['acknowledge'],
        ['acknowledge', 'release'],
        ['acknowledge'],
    ]
    assert 'no space left' in caplog.text


def test_the_setting_makes_batches() -> None:
    """The registered dispatcher has ``mail.event_batch``; by default each event is alone."""
    for settings, batch in (({}, 1), ({'mail.event_batch': '50'}, 50)):
        application = Application(**settings)
        application.config.commit()
        assert application.registry.getUtility(IMailEventDispatcher)._batch == batch


def test_killed_after_the_commit_of_a_batch(tmp_path: Path) -> None:
    """kill -9 between the commit of a batch and its acknowledgement: no mail is sent again, and the
    events are dispatched again with the same ids."""
    work = """
        import os, signal, sqlite3, sys, time
        from pyramid.config import Configurator
        from pyramid_sendmail.config.factories import processor_of
        from pyramid_sendmail.interfaces import IMailQueue, IMailSentEvent
        from tests.support.queues import make_envelope, until
        import sqlalchemy, zope.sqlalchemy
        from sqlalchemy.orm import sessionmaker
        from tests.support.databases import METADATA, NOTES

        root, killed = sys.argv[1], sys.argv[2] == 'killed'
        os.makedirs(root + '/sent/new', exist_ok=True)
        factory = sessionmaker(sqlalchemy.create_engine(f'sqlite:///{root}/notes.sqlite'))
        METADATA.create_all(factory.kw['bind'])
        requests = []

        def kill(request):
            if requests.count(request) > 1:
                os.kill(os.getpid(), signal.SIGKILL)

        def subscriber(event):
            if killed and not requests:
                until(lambda: len(os.listdir(root + '/sent/new')) == 20)
            requests.append(event.request)
            if killed:
                event.request.add_finished_callback(kill)
            event.request.dbsession.execute(NOTES.insert().values(text=event.id))
            zope.sqlalchemy.mark_changed(event.request.dbsession, event.request.tm)

        def dbsession(request):
            session = factory()
            zope.sqlalchemy.register(session, transaction_manager=request.tm)
            return session

        with Configurator(settings={
            'mail.url': f'file://{root}/sent',
            'mail.queue_path': f'{root}/queue',
            'mail.event_batch': '50',
            'tm.manager_hook': 'pyramid_tm.explicit_manager',
        }) as config:
            config.include('pyramid_sendmail')
            config.add_request_method(dbsession, reify=True)
            config.add_subscriber(subscriber, IMailSentEvent)
        queue = config.registry.getUtility(IMailQueue)
        if killed:
            queue.prepare()
            queue.put([make_envelope(queued_at=time.time()) for _ in range(20)]).publish()
        processor_of(config.registry).run_once()
    """

    def run(how: str) -> int:
        command = [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(work), str(tmp_path), how]
        return subprocess.run(
            command, check=False, timeout=60, cwd=Path(__file__).parents[3]
        ).returncode

    engine = sqlalchemy.create_engine(f'sqlite:///{tmp_path}/notes.sqlite')
    assert run('killed') == -signal.SIGKILL
    before = notes(engine)
    assert len(before) > 1
    assert run('again') == 0
    after = notes(engine)
    engine.dispose()
    assert len(set(after)) == 20
    again = [each for each in set(after) if after.count(each) > 1]
    assert set(again) <= set(before)
    assert len(again) > 1
    assert len(list((tmp_path / 'sent/new').iterdir())) == 20
    assert not [file for file in (tmp_path / 'queue').rglob('*-*') if file.parent.name != 'queue']


# Subscribers that send


def test_a_subscriber_sends_with_its_commit(application: Application) -> None:
    """Mail that a subscriber sends leaves when the event's transaction has committed; the
    subscriber does not wait for it."""

    def subscriber(event: Any) -> None:
        if event.subject == 'Hello':
            event.request.mailer.send(message('of a subscriber'))
            application.handled.append(application.subjects)

    application.subscribe(subscriber, IMailSentEvent)
    application.send()
    assert application.handled == [['Hello']]
    assert application.subjects == ['Hello', 'of a subscriber']


def test_a_subscriber_sends_through_the_utility(application: Application) -> None:
    """The registered delivery joins the thread-local manager, which is the event's."""
    application.subscribe(
        lambda event: event.subject == 'Hello' and application.delivery.send(message('of it'))
    )
    application.send()
    assert application.subjects == ['Hello', 'of it']


def test_mail_of_a_subscriber_that_raises_is_aborted(application: Application) -> None:
    """It leaves once, when the event is tried again and its subscriber does not raise."""
    policy = RetryPolicy(delays=(0.01,), give_up_after=60.0, jitter=0.0)
    raising = [ZeroDivisionError, TransientError]

    def subscriber(event: Any) -> None:
        if event.subject == 'Hello':
            application.handled.append(event.id)
            event.request.mailer.send(message('of a subscriber'))
            if raising:
                raise raising.pop()

    application.subscribe(subscriber)
    application.config.commit()
    application.registry.getUtility(IMailEventDispatcher)._policy = policy
    application.send()
    until(lambda: application.subjects == ['Hello', 'of a subscriber'])
    assert len(application.handled) == 3
    assert len(set(application.handled)) == 1


def test_a_double_bounce_is_logged(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscriber mails about each failure, over a relay that refuses everything: one failure
    notice is sent; the notice of its failure is logged instead, which ends the chain."""
    application.mailer.always('ann@example.org', REFUSED)

    def subscriber(event: Any) -> None:
        application.handled.append(event.subject)
        # No more than it takes to fail: a chain without an end is long.
        if len(application.handled) < 5:
            message_id = event.request.mailer.send(message(f'failed: {event.subject}'))
            assert message_id.startswith('<')

    application.subscribe(subscriber, IMailErrorEvent)
    application.send('Hello')
    assert application.subjects == ['Hello', 'failed: Hello']
    assert [envelope.depth for envelope in application.mailer.sent] == [0, 1]
    assert application.handled == application.subjects
    assert 'failed: failed: Hello' in caplog.text
    assert 'your error handler keeps mailing about its own failed mail' in caplog.text


def test_sent_mail_and_failures_are_counted_apart(application: Application) -> None:
    """Sent events add ten to the depth, failures one; both keep what was there before."""
    depths: list[Any] = []

    def subscriber(event: Any) -> None:
        depths.append(current_depth.get())

    application.subscribe(subscriber)
    for depth in (0, 1):
        envelope = make_envelope(depth=depth)
        application.dispatch(
            sent(envelope), deferred(envelope), failed(envelope), envelope=envelope
        )
    assert depths == [10, 1, 1, 11, 2, 2]
    assert current_depth.get() is None


def test_a_subscriber_that_raises_sends_no_mail_twice(application: Application) -> None:
    """Whatever a subscriber raises, the mail is sent once, and the sender's commit stands."""

    def subscriber(event: Any) -> None:
        application.handled.append(event)
        raise TransientError

    application.subscribe(subscriber)
    application.config.commit()
    policy = RetryPolicy(delays=(0.01,), give_up_after=0.03, jitter=0.0)
    application.registry.getUtility(IMailEventDispatcher)._policy = policy
    application.send()
    until(lambda: len(application.handled) == 3)
    application.send('another')
    until(lambda: len(application.handled) == 6)
    assert application.subjects == ['Hello', 'another']


# In memory, from the relay to the subscriber


def test_from_the_relay_to_the_subscriber(application: Application) -> None:
    """Each outcome of a mail is one event, with its own recipients."""
    application.mailer.always('bob@example.org', REFUSED)
    for cls in (MailSentEvent, MailErrorEvent, MailDeferredEvent):
        application.subscribe(application.handled.append, cls)
    with transaction.manager:
        message_id = application.delivery.send(
            message('Hello', ['ann@example.org', 'bob@example.org']), metadata={'order': '7'}
        )
    application.delivery.flush(WAIT)
    events = {type(event): event for event in application.handled}
    assert set(events) == {MailSentEvent, MailErrorEvent}
    assert events[MailSentEvent].recipients == ('ann@example.org',)
    assert events[MailErrorEvent].recipients == ('bob@example.org',)
    for event in application.handled:
        assert (event.message_id, event.metadata) == (message_id, {'order': '7'})
        assert event.mailer == application.registry.getUtility(IMailer).name


def test_a_queue_keeps_no_event_that_was_handled(application: Application) -> None:
    """After the subscribers have run, nothing of a delivered mail is left."""
    application.subscribe(application.handled.append)
    application.send()
    queue = application.delivery.queue
    assert isinstance(queue, MemoryQueue)
    assert queue.scan(1e11) == ([], None)


# A fork


def test_after_a_fork_the_child_has_a_thread_of_its_own() -> None:
    """Events that wait in the parent are the parent's. The child dispatches its own, though the
    parent's thread was busy at the fork."""
    work = """
        import os, sys, threading, warnings
        from pyramid.config import Configurator
        from pyramid_sendmail.interfaces import IMailEvent
        from pyramid_sendmail.events.dispatcher import EventDispatcher
        from tests.support.queues import make_envelope, sent
        from tests.unit.events.test_dispatcher import Claim
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*fork.*', DeprecationWarning)

        parent = os.getpid()
        busy, going_on = threading.Event(), threading.Event()

        def subscriber(event):
            if os.getpid() == parent:
                busy.set()
                assert going_on.wait(10)
            print('child' if os.getpid() != parent else 'parent', event.subject, flush=True)

        config = Configurator(settings={'mail.url': 'null:'})
        config.include('pyramid_sendmail')
        config.add_subscriber(subscriber, IMailEvent)
        config.commit()
        dispatcher = EventDispatcher(config.registry)

        def dispatch(subject):
            claim = Claim(make_envelope(subject=subject))
            dispatcher.dispatch(claim, [sent(claim.envelope)])

        dispatch('1')
        dispatch('2')
        busy.wait(10)
        with dispatcher._changed:
            pid = os.fork()
        if pid == 0:
            dispatch('3')
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        going_on.set()
    """
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(work)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.split('\n') == ['child 3', 'parent 1', 'parent 2', '']


@pytest.mark.parametrize(
    ('limit', 'backlog'), [(1024, 256), (100_000, 1_000), (2, 1), (resource.RLIM_INFINITY, 1_000)]
)
def test_the_backlog_depends_on_the_limit_of_open_files(
    limit: int, backlog: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each claim that waits keeps a file open: a slow subscriber must not use up all files."""
    monkeypatch.setattr(resource, 'getrlimit', lambda what: (limit, limit))
    assert EventDispatcher(Registry())._backlog == backlog


@pytest.mark.parametrize('batch', [1, 10])
def test_mail_leaves_while_a_subscriber_waits(
    tmp_path: Path, smtp_server: ScriptedSMTPServer, batch: int
) -> None:
    """One worker drains the queue while the first subscriber waits for all of its mail."""
    config = Configurator(
        settings={
            'mail.url': smtp_server.url,
            'mail.queue_path': tmp_path / 'mail',
            'mail.workers': 1,
            'mail.event_batch': batch,
        }
    )
    config.include('pyramid_sendmail')
    handled: list[str] = []

    def subscriber(event: Any) -> None:
        smtp_server.wait_for(30)
        handled.append(event.message_id)

    config.add_subscriber(subscriber, IMailSentEvent)
    config.commit()
    delivery = config.registry.getUtility(IMailDelivery)
    with transaction.manager:
        sent = {delivery.send(message(f'Number {number}')) for number in range(30)}
    assert processor_of(config.registry).run_once().delivered == 30
    assert set(handled) == sent
