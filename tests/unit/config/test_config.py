"""``config.include('pyramid_sendmail')``: the utilities, the directives, what overrides what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid import testing
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError, ConfigurationError
from pyramid.request import Request, apply_request_extensions
from pyramid.response import Response
from webtest import TestApp
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail import Message, NoActiveTransaction
from pyramid_sendmail.config.factories import _IProcessorThread, processor_of
from pyramid_sendmail.delivery.queued import DirectMailDelivery, QueuedMailDelivery
from pyramid_sendmail.events.types import MailSentEvent
from pyramid_sendmail.interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IMailSettings,
    IQueuedMailDelivery,
    ISMTPMailer,
)
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.doubles import RecordingMailer

SECRET = 's3kr1t'

HELLO = Message(subject='Hi', to='ann@example.org', text='Hello', sender='shop@example.org')


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('MAIL_URL', raising=False)
    monkeypatch.delenv('MAIL_PASSWORD', raising=False)


@pytest.fixture
def config() -> Iterator[Configurator]:
    """As in an application's unit tests: every action runs at once."""
    with testing.testConfig(settings={}) as config:
        yield config


def configured(*includes: Any, **given: Any) -> Configurator:
    """A configurator as in an application's main, not yet committed."""
    settings = {f'mail.{name}': value for name, value in given.items()}
    config = Configurator(settings=settings)
    config.include('pyramid_sendmail')
    for include in includes:
        config.include(include)
    return config


def committed(*includes: Any, **given: Any) -> Any:
    config = configured(*includes, **given)
    config.commit()
    return config.registry


def fails(config: Configurator) -> str:
    with pytest.raises(ConfigurationError) as caught:
        config.commit()
    return cause(caught.value)


def cause(error: BaseException) -> str:
    return str(getattr(error, 'evalue', error))


def request_of(registry: Any) -> Any:
    request = Request.blank('/')
    request.registry = registry
    apply_request_extensions(request)
    return request


def parts(registry: Any) -> tuple[Any, ...]:
    return tuple(registry.queryUtility(each) for each in (IMailDelivery, IMailer, IMailQueue))


def used(delivery: Any) -> tuple[Any, Any]:
    """The queue and the mailer of a delivery of ours."""
    return delivery._queue, delivery._mailer


@implementer(IMailDelivery)
class Delivery:
    """A delivery of the application's own."""

    def __init__(self, registry: Any = None) -> None:
        self.registry = registry

    def send(
        self,
        message: Any,
        *,
        sender: Any = None,
        recipients: Any = None,
        due: Any = None,
        expires: Any = None,
        priority: Any = None,
        metadata: Any = None,
    ) -> str:
        return '<sent@example.org>'

    def send_now(self, message: Any, *, sender: Any = None, recipients: Any = None) -> Any:
        raise NotImplementedError

    def bind(self, tm: Any, environ: Any = None) -> Any:
        return self


delivery = Delivery()
nothing = None
number = 25
mailer = RecordingMailer('of the module:')


def broken(registry: Any) -> Any:
    return f'smtp://ann:{SECRET}@relay'


def test_the_three_lines() -> None:
    """Without a setting: direct delivery to the mail server on this machine, and no queue."""
    registry = committed()
    delivery, mailer, queue = parts(registry)
    assert verifyObject(IDirectMailDelivery, delivery)
    assert verifyObject(ISMTPMailer, mailer)
    assert (mailer.host, mailer.port) == ('localhost', 25)
    assert queue is None
    assert verifyObject(IMailEventDispatcher, registry.getUtility(IMailEventDispatcher))
    assert verifyObject(IMailSettings, registry.getUtility(IMailSettings))


def test_with_a_queue(tmp_path: Path) -> None:
    """``mail.queue_path`` is enough for a queued delivery, with the queue's settings."""
    registry = committed(
        queue_path=tmp_path, queue_sync='off', in_doubt='send', ambiguous='hold', retry='1h'
    )
    delivery, mailer, queue = parts(registry)
    assert verifyObject(IQueuedMailDelivery, delivery)
    assert type(delivery) is QueuedMailDelivery
    assert used(delivery) == (queue, mailer)
    assert isinstance(queue, MaildirQueue)
    assert queue.path == str(tmp_path)
    assert (queue._in_doubt, queue._hold_ambiguous, queue._longest) == ('send', True, 4320.0)
    assert queue._files.sync is False
    assert queue._files.permissions.group is False
    shared = parts(committed(queue_path=tmp_path, queue_mode='group'))[2]
    assert isinstance(shared, MaildirQueue)
    assert shared._files.permissions.group is True


def test_direct_delivery_with_a_queue(tmp_path: Path) -> None:
    """``mail.delivery = direct`` keeps the queue for what cannot leave now."""
    delivery, mailer, queue = parts(committed(delivery='direct', queue_path=tmp_path))
    assert type(delivery) is DirectMailDelivery
    assert used(delivery) == (queue, mailer)
    assert delivery._durable


def test_direct_settings() -> None:
    """``mail.direct_wait`` and ``mail.direct_timeout`` arrive."""
    delivery, _, _ = parts(committed(direct_wait='false', direct_timeout='5s'))
    assert (delivery._wait, delivery._timeout, delivery._durable) == (False, 5.0, False)


def test_processor_settings(tmp_path: Path) -> None:
    """``mail.workers`` and ``mail.batch``, unless the command line says otherwise; what becomes of
    mail that fails."""
    registry = committed(
        queue_path=tmp_path, workers=7, batch=8, give_up_after='1h', keep_failed='30d'
    )
    processor = processor_of(registry)
    assert (processor._workers, processor._batch) == (7, 8)
    assert processor._recorder.policy.give_up_after == 3600
    assert processor._keep_failed == 30 * 86400
    assert processor_of(registry, workers=1, batch=2)._workers == 1


@implementer(IMailEventDispatcher)
class OwnReporter:
    """One of an application's own."""

    def wants(self, kind: str) -> bool:
        return False

    def join(self, timeout: float) -> bool:
        return True

    def dispatch(self, claim: Any, events: Any) -> None:
        raise AssertionError


def test_subscribers_and_senders_share_a_turn(tmp_path: Path) -> None:
    """Whoever sends in this process, and what the events thread runs, work in turn; a reporter of
    the application's own need know nothing of that."""
    registry = committed(url='null:', queue_path=tmp_path, delivery='direct')
    turn = registry.getUtility(IMailEventDispatcher).cooperative_lock
    assert processor_of(registry)._recorder.cooperative_lock is turn
    assert registry.getUtility(IMailDelivery)._sender._recorder.cooperative_lock is turn
    config = configured(url='null:', queue_path=tmp_path)
    config.registry.registerUtility(OwnReporter(), IMailEventDispatcher)
    config.commit()
    assert processor_of(config.registry)._recorder.cooperative_lock is not turn


def test_message_settings() -> None:
    """Sender, envelope sender, host name and size reach the messages."""
    registry = committed(
        url='null:',
        default_sender='Shop <shop@example.org>',
        envelope_sender='bounces@example.org',
        hostname='mail.example.org',
        max_size='1K',
    )
    delivery = registry.getUtility(IMailDelivery)
    envelope = delivery.freeze(Message(to='ann@example.org', text='Hello'), {})
    assert envelope.sender == 'bounces@example.org'
    assert b'From: Shop <shop@example.org>' in envelope.raw
    assert envelope.message_id.endswith('@mail.example.org>')
    with pytest.raises(ValueError, match=r'mail\.max_size'):
        delivery.freeze(Message(to='ann@example.org', text='Hello' * 1000), {})


def test_credentials_reach_the_mailer() -> None:
    """From settings of their own, without a trace in any repr."""
    mailer = committed(host='relay', tls=True, username='ann', password=SECRET).getUtility(IMailer)
    assert isinstance(mailer, SMTPMailer)
    assert SECRET not in repr(mailer) + mailer.name
    credentials = mailer._identity
    assert credentials is not None
    assert SECRET not in repr(credentials)
    assert (credentials._username, credentials._password) == ('ann', SECRET)


def test_mail_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wins, and its mistakes are not blamed on mail.url."""
    monkeypatch.setenv('MAIL_URL', 'null:')
    assert isinstance(committed(url='smtp://relay').getUtility(IMailer), NullMailer)
    monkeypatch.setenv('MAIL_URL', f'smtp://ann:{SECRET}@re lay')
    text = fails(configured())
    assert text.startswith('MAIL_URL ')
    assert SECRET not in text


def test_mistakes_beside_mail_host() -> None:
    """They are not blamed on a mail.url that nobody has written."""
    text = fails(configured(host='relay', username='ann'))
    assert text.startswith('mail.host ')
    assert 'mail.password' in text


def test_nothing_happens_yet(tmp_path: Path) -> None:
    """Including starts no thread, opens no connection, resolves no name and makes no file."""
    script = """
import sys
seen = []

def hook(event, arguments):
    if event.startswith(('socket.', '_thread.start', 'os.mkdir', 'os.chmod', 'subprocess.')):
        if event != 'socket.gethostname':
            seen.append((event, arguments))
    elif event == 'open' and isinstance(arguments[2], int) and arguments[2] & 3:
        seen.append((event, arguments))

from pyramid.config import Configurator
import pyramid_sendmail.config.factories
config = Configurator(settings={
    'mail.queue_path': sys.argv[1] + '/mail', 'mail.processor': 'thread',
    'mail.url': 'smtp://relay.example.org', 'mail.delivery': sys.argv[2],
})
sys.addaudithook(hook)
config.include('pyramid_sendmail')
config.make_wsgi_app()
import threading
assert not seen, seen
assert threading.enumerate() == [threading.main_thread()]
"""
    for delivery in ('direct', 'queue'):
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script, str(tmp_path), delivery], check=True
        )
    assert list(tmp_path.iterdir()) == []


def test_directives_override_the_settings(tmp_path: Path) -> None:
    """Objects, callables of the registry and dotted names; before or after the include."""
    config = configured(url='smtp://relay', queue_path=tmp_path)
    queue = MemoryQueue()
    config.set_mailer('tests.unit.config.test_config.mailer')
    config.set_mail_queue(lambda registry: queue)
    config.commit()
    made, own, there = parts(config.registry)
    assert own is mailer
    assert there is queue
    assert used(made) == (queue, mailer)
    assert type(made) is QueuedMailDelivery


def test_delivery_of_the_application(tmp_path: Path) -> None:
    """``set_mail_delivery`` gets a registry that has mailer and queue, whatever the order."""
    config = configured(queue_path=tmp_path, delivery='no.such.thing')
    config.set_mail_delivery(
        lambda registry: Delivery((registry.getUtility(IMailer), registry.getUtility(IMailQueue)))
    )
    config.set_mailer(mailer)
    config.commit()
    made, own, queue = parts(config.registry)
    assert own is mailer
    assert made.registry == (mailer, queue)
    assert request_of(config.registry).mailer is made


@pytest.mark.parametrize(
    'name', ['tests.unit.config.test_config.delivery', 'tests.unit.config.test_config:Delivery']
)
def test_delivery_by_dotted_name(name: str) -> None:
    """``mail.delivery`` names an object, or what makes one of the registry."""
    registry = committed(delivery=name)
    made = registry.getUtility(IMailDelivery)
    assert isinstance(made, Delivery)
    assert made.registry is (None if made is delivery else registry)


def test_a_queue_that_was_set_is_as_good_as_a_path() -> None:
    """``mail.delivery = queue`` is content with it, and it is the default then."""
    for given in ({}, {'delivery': 'queue'}):
        config = configured(url='null:', **given)
        queue = MemoryQueue()
        config.set_mail_queue(queue)
        config.commit()
        made = config.registry.getUtility(IMailDelivery)
        assert type(made) is QueuedMailDelivery
        assert made._queue is queue


@pytest.mark.parametrize('directive', ['set_mail_delivery', 'set_mailer', 'set_mail_queue'])
def test_two_calls_conflict(directive: str) -> None:
    """As with Pyramid's own directives, unless one place includes the other."""
    part = {'set_mail_delivery': delivery, 'set_mailer': mailer, 'set_mail_queue': MemoryQueue()}

    def one(config: Configurator) -> None:
        getattr(config, directive)(part[directive])

    def another(config: Configurator) -> None:
        getattr(config, directive)(part[directive])

    config = configured(one, another)
    with pytest.raises(ConfigurationConflictError, match='test_config'):
        config.commit()
    config = configured(one, another)
    getattr(config, directive)(part[directive])
    config.commit()
    assert part[directive] in parts(config.registry)


def test_regression_a_sibling_may_override_the_defaults() -> None:
    """What the settings gave conflicted with an application's own ``config.include('.mail')``."""

    def sibling(config: Configurator) -> None:
        config.set_mailer(mailer)
        config.set_mail_queue(MemoryQueue())
        config.set_mail_delivery(delivery)

    registry = committed(sibling)
    assert registry.getUtility(IMailer) is mailer
    assert registry.getUtility(IMailDelivery) is delivery


def test_regression_autocommit(config: Configurator) -> None:
    """By pyramid.testing.setUp the delivery had been made before the directives were called, and
    went on with the mailer of the settings."""
    config.include('pyramid_sendmail')
    before = config.registry.getUtility(IMailDelivery)
    assert type(before) is DirectMailDelivery
    config.set_mailer(mailer)
    queue = MemoryQueue()
    config.set_mail_queue(queue)
    after = config.registry.getUtility(IMailDelivery)
    assert type(after) is QueuedMailDelivery
    assert used(after) == (queue, mailer)
    assert config.introspector.get('mail', 'delivery')['delivery'] is after
    config.set_mail_delivery(delivery)
    config.set_mailer(NullMailer())
    assert config.registry.getUtility(IMailDelivery) is delivery


def test_regression_commit_in_between() -> None:
    """The same, where the application commits before it sets the mailer."""
    config = configured()
    config.commit()
    config.set_mailer(mailer)
    config.commit()
    assert used(config.registry.getUtility(IMailDelivery))[1] is mailer


def test_without_introspection() -> None:
    """``Configurator(introspection=False)`` is an application like any other."""
    config = Configurator(introspection=False)
    config.include('pyramid_sendmail')
    config.set_mail_delivery(lambda registry: Delivery(registry.getUtility(IMailer)))
    config.commit()
    config.set_mailer(mailer)
    config.commit()
    assert config.registry.getUtility(IMailDelivery).registry is mailer


def test_include_twice(tmp_path: Path) -> None:
    """Whoever includes it, once is enough; after a commit it changes nothing."""

    def other(config: Configurator) -> None:
        config.include('pyramid_sendmail')

    config = configured(other, queue_path=tmp_path, processor='thread')
    config.include('pyramid_sendmail')
    config.commit()
    before = (*parts(config.registry), config.registry.getUtility(IMailEventDispatcher))
    thread = config.registry.getUtility(_IProcessorThread)
    config.include('pyramid_sendmail')
    config.commit()
    assert (*parts(config.registry), config.registry.getUtility(IMailEventDispatcher)) == before
    assert config.registry.getUtility(_IProcessorThread) is thread


@pytest.mark.parametrize('order', [(0, 1), (1, 0), (0, 1, 0), (1,)])
def test_pyramid_tm_is_included_once(order: tuple[int, ...]) -> None:
    """Before, after, or by us alone: one tween, and no conflict."""
    config = Configurator(settings={'mail.url': 'null:'})
    for index in order:
        config.include(('pyramid_tm', 'pyramid_sendmail')[index])
    config.commit()
    tweens = config.introspector.get_category('tweens')
    names = [each['introspectable']['name'] for each in tweens]
    assert names.count('pyramid_tm.tm_tween_factory') == 1
    request = request_of(config.registry)
    with request.tm:
        assert request.mailer.send(HELLO).startswith('<')


def test_request_mailer() -> None:
    """The registered delivery, bound to request.tm, one object a request."""
    config = configured()
    config.set_mailer(mailer)
    config.set_mail_queue(MemoryQueue())
    config.registry.settings['tm.manager_hook'] = 'pyramid_tm.explicit_manager'
    config.commit()
    request = request_of(config.registry)
    assert request.mailer is request.mailer
    with pytest.raises(NoActiveTransaction, match='send_now'):
        request.mailer.send(HELLO)
    request.tm.begin()
    request.mailer.send(HELLO)
    request.tm.commit()
    queue: Any = config.registry.getUtility(IMailQueue)
    assert len(queue) == 1
    with transaction.manager:
        config.registry.getUtility(IMailDelivery).send(HELLO)
    assert len(queue) == 2


def test_a_view_sends() -> None:
    """Through pyramid_tm: kept on a commit, forgotten on an abort."""

    def view(request: Any) -> Response:
        message_id = request.mailer.send(HELLO)
        if request.params.get('fail'):
            raise RuntimeError('no mail')
        return Response(message_id)

    queue = MemoryQueue()
    config = configured(url='null:')
    config.set_mail_queue(queue)
    config.add_route('home', '/')
    config.add_view(view, route_name='home')
    app = TestApp(config.make_wsgi_app())
    with pytest.raises(RuntimeError, match='no mail'):
        app.get('/?fail=yes')
    assert len(queue) == 0
    message_id = app.get('/').text
    (ticket,), _ = queue.scan(1e12)
    claim = queue.claim(ticket)
    assert claim is not None
    assert claim.envelope.message_id == message_id


def test_bad_senders_are_found_at_start_up() -> None:
    """Even where the application has a delivery of its own."""
    for name in ('default_sender', 'envelope_sender'):
        config = configured(**{name: 'ann at example.org'})
        config.set_mail_delivery(delivery)
        assert f'mail.{name}' in fails(config)


@pytest.mark.parametrize(
    ('directive', 'part'),
    [
        ('set_mailer', 'tests.unit.config.test_config.no_such_thing'),
        ('set_mailer', 'no such thing'),
        ('set_mailer', None),
        ('set_mailer', 'tests.unit.config.test_config.nothing'),
        ('set_mailer', 'tests.unit.config.test_config.number'),
        ('set_mailer', 'tests.unit.config.test_config.broken'),
        ('set_mailer', MemoryQueue()),
        ('set_mail_queue', mailer),
        ('set_mail_queue', lambda registry: None),
        ('set_mail_delivery', broken),
    ],
)
def test_what_is_no_part(directive: str, part: Any) -> None:
    """The error names the directive and the interface, and shows nothing of what it got."""

    def include(config: Configurator) -> None:
        getattr(config, directive)(part)

    with pytest.raises(ConfigurationError) as caught:
        committed(include)
    text = cause(caught.value)
    assert text.startswith(f'config.{directive}: ')
    assert 'provides it' in text or 'dotted name' in text
    assert SECRET not in text


@pytest.mark.parametrize(
    'name', ['no.such.thing', 'tests.unit.config.test_config.number', 'direkt']
)
def test_delivery_that_is_none(name: str) -> None:
    """``mail.delivery`` names what does not exist, or what is no delivery."""
    text = fails(configured(delivery=name))
    assert text.startswith(f'mail.delivery = {name}: ')
    assert 'give' in text or 'write' in text


@pytest.mark.parametrize('given', [{'delivery': 'queue'}, {'processor': 'thread'}])
def test_what_needs_a_queue(given: dict[str, str]) -> None:
    """The error says which line to write."""
    text = fails(configured(**given))
    assert 'mail.queue_path = %(here)s/mail' in text
    for name, value in given.items():
        assert f'mail.{name} = {value}' in text


def test_absent_until_their_version() -> None:
    """No stub pretends that it works."""
    config = configured(url='null:')
    with pytest.raises(AttributeError, match='add_mail_preview'):
        config.add_mail_preview('x')
    config.commit()
    request = request_of(config.registry)
    with pytest.raises(AttributeError, match='compose'):
        request.mailer.compose('myapp:mail/welcome', {}, to='ann@example.org')
    with request.tm:
        with pytest.raises(TypeError, match='key'):
            request.mailer.send(HELLO, key='once')
        with pytest.raises(TypeError, match='key'):
            config.registry.getUtility(IMailDelivery).send(HELLO, key='once')
    for name in ('redirect_to', 'allow'):
        assert 'not here yet' in fails(configured(**{name: '*@example.org'}))


def test_several_relays() -> None:
    """``mail.url`` of several lines is one mailer; the introspectable shows no password."""
    config = configured(
        url=f'\n smtp://ann:{SECRET}@first\n smtp://bob:{SECRET}@second', delivery='direct'
    )
    config.commit()
    assert type(config.registry.getUtility(IMailer)) is FailoverMailer
    (settings,) = (
        each['introspectable']
        for each in config.introspector.get_category('mail')
        if each['introspectable'].title == 'settings'
    )
    assert settings['settings']['mail.url'] == 'smtp://ann:***@first\n smtp://bob:***@second'


def test_which_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where it stands, and which one it is."""
    monkeypatch.setenv('MAIL_URL', 'smtp://a smtp://')
    assert fails(configured()).startswith('MAIL_URL (the second) names no host')


def test_rate_of_the_processor(tmp_path: Path) -> None:
    """``mail.rate`` is the processor's."""
    for given, share in ({}, sys.maxsize), ({'rate': '600/m'}, 10):
        processor = processor_of(committed(url='null:', queue_path=tmp_path, **given))
        assert processor._rate_limiter._share == share


def test_introspectables(tmp_path: Path) -> None:
    """Category ``mail``: delivery, mailer, queue, settings; secrets masked."""
    config = configured(
        url=f'smtp://ann:{SECRET}@relay', queue_path=tmp_path, workers=0x7, direct_wait=False
    )
    config.set_mailer(mailer)
    config.commit()
    found = {
        each['introspectable'].title: each['introspectable']
        for each in config.introspector.get_category('mail')
    }
    assert sorted(found) == ['delivery', 'mailer', 'queue', 'settings']
    assert tuple(found[name][name] for name in ('delivery', 'mailer', 'queue')) == parts(
        config.registry
    )
    assert found['mailer'].type_name == 'mail mailer'
    assert 'test_config' in found['mailer'].action_info.file
    assert found['settings']['settings'] == {
        'mail.url': 'smtp://ann:***@relay',
        'mail.queue_path': str(tmp_path),
        'mail.workers': '7',
        'mail.direct_wait': 'False',
    }


def test_introspectables_without_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is not listed; the URL is the one in force."""
    monkeypatch.setenv('MAIL_URL', f'smtp://bob:{SECRET}@other')
    config = configured(url='smtp://relay', username='ann', password=SECRET)
    config.commit()
    found = {
        each['introspectable'].title: each['introspectable']
        for each in config.introspector.get_category('mail')
    }
    assert sorted(found) == ['delivery', 'mailer', 'settings']
    assert found['settings']['settings'] == {
        'mail.url': 'smtp://bob:***@other',
        'mail.username': 'ann',
        'mail.password': '***',
    }


@pytest.mark.parametrize('own', [False, True])
def test_processor_thread(tmp_path: Path, own: bool) -> None:
    """It starts with the first request, not with a ``send`` of a script before it; whatever the
    delivery is."""
    recording = RecordingMailer()

    def view(request: Any) -> Response:
        return Response('')

    config = configured(queue_path=tmp_path, queue_sync='off', processor='thread')
    config.set_mailer(recording)
    if own:
        config.set_mail_delivery(
            lambda registry: QueuedMailDelivery(
                registry.getUtility(IMailQueue),
                registry.getUtility(IMailer),
                committed(url='null:').getUtility(IMailDelivery)._envelope_factory,
            )
        )
    config.add_route('home', '/')
    config.add_view(view, route_name='home')
    app = TestApp(config.make_wsgi_app())
    request = request_of(config.registry)
    thread = config.registry.getUtility(_IProcessorThread)
    with request.tm:
        request.mailer.send(HELLO)
    assert thread._thread is None
    app.get('/')
    try:
        recording.wait_for(1)
    finally:
        thread.finish(10)
    assert recording.accepted('ann@example.org') == 1


def test_no_thread_unless_asked(tmp_path: Path) -> None:
    """``mail.processor = off`` is the default."""
    registry = committed(queue_path=tmp_path)
    assert registry.queryUtility(_IProcessorThread) is None


def test_mail_tag(config: Configurator) -> None:
    """The subscriber predicate: events of mail with that tag only."""
    seen: list[str] = []
    config.include('pyramid_sendmail')
    config.add_subscriber(lambda event: seen.append(event.id), MailSentEvent, mail_tag='welcome')
    common = dict.fromkeys(
        ('message_id', 'sender', 'recipients', 'subject', 'metadata', 'attempt'), None
    ) | dict.fromkeys(('queued_at', 'mailer', 'request', 'reply'), None)
    for id, tag in (('1', 'welcome'), ('2', 'bill'), ('3', None)):
        config.registry.notify(MailSentEvent(id=id, tag=tag, **common))  # type: ignore[arg-type]
    assert seen == ['1']
