"""``config.include('pyramid_sendmail')`` and the directives: what overrides what."""

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
from pyramid.response import Response
from webtest import TestApp
from zope.interface.registry import Components

from pyramid_sendmail import NoActiveTransaction
from pyramid_sendmail.config.factories import IProcessorThread
from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.events.types import MailSentEvent
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
)
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.queue import MemoryQueue
from tests.support.configuration import (
    HELLO,
    SECRET,
    Delivery,
    committed,
    configured,
    delivery,
    failure,
    mailer,
    parts,
    request_of,
    sends_by,
    text_of,
    url_with_password,
)
from tests.support.processors import RecordingDispatcher

pytestmark = pytest.mark.usefixtures('no_mail_environment')


@pytest.fixture
def config() -> Iterator[Configurator]:
    """Return a configurator that runs every action at once, as in unit tests of an application."""
    with testing.testConfig(settings={}) as config:
        yield config


def test_a_registry_that_is_no_mapping() -> None:
    """Pyramid takes any component registry; so does the package."""
    config = Configurator(registry=Components('application'))
    config.setup_registry(settings={'mail.url': 'null:'})
    config.include('pyramid_sendmail')
    config.make_wsgi_app()
    assert config.registry.getUtility(IMailer).name == 'null:'


def test_a_dispatcher_of_the_application(config: Configurator) -> None:
    """Direct delivery and processor use the one that is registered before the actions run: with
    autocommit, before the include."""
    own = RecordingDispatcher('sent')
    config.registry.registerUtility(own, IMailEventDispatcher)
    config.registry.settings.update({'mail.url': 'null:'})
    config.include('pyramid_sendmail')
    with transaction.manager:
        config.registry.getUtility(IMailDelivery).send(HELLO)
    assert own.dispatched() == [('sent', ('ann@example.org',))]


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
    for kind in ('direct', 'queue'):
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script, str(tmp_path), kind], check=True
        )
    assert list(tmp_path.iterdir()) == []


def test_directives_override_the_settings(tmp_path: Path) -> None:
    """A directive takes an object, a callable of the registry or a dotted name, and overrides the
    settings."""
    config = configured(url='smtp://relay', queue_path=tmp_path)
    queue = MemoryQueue()
    config.set_mailer('tests.support.configuration.mailer')
    config.set_mail_queue(lambda registry: queue)
    config.commit()
    made, own, there = parts(config.registry)
    assert own is mailer
    assert there is queue
    assert type(made) is QueuedMailDelivery
    assert made.queue is queue
    assert sends_by(made, mailer)


def test_delivery_of_the_application(tmp_path: Path) -> None:
    """The callable of ``set_mail_delivery`` finds mailer and queue in the registry, whatever the
    order of the calls."""
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
    'name', ['tests.support.configuration.delivery', 'tests.support.configuration:Delivery']
)
def test_delivery_by_dotted_name(name: str) -> None:
    """``mail.delivery`` names an object, or a callable that makes one from the registry."""
    registry = committed(delivery=name)
    made = registry.getUtility(IMailDelivery)
    assert isinstance(made, Delivery)
    assert made.registry is (None if made is delivery else registry)


def test_a_queue_that_was_set_has_the_effect_of_a_path() -> None:
    """A queue that was set satisfies ``mail.delivery = queue``, and makes it the default."""
    for given in ({}, {'delivery': 'queue'}):
        config = configured(url='null:', **given)
        queue = MemoryQueue()
        config.set_mail_queue(queue)
        config.commit()
        made = config.registry.getUtility(IMailDelivery)
        assert type(made) is QueuedMailDelivery
        assert made.queue is queue


@pytest.mark.parametrize('directive', ['set_mail_delivery', 'set_mailer', 'set_mail_queue'])
def test_two_calls_conflict(directive: str) -> None:
    """Two calls of a directive conflict, unless one place includes the other."""
    part = {'set_mail_delivery': delivery, 'set_mailer': mailer, 'set_mail_queue': MemoryQueue()}

    def one(config: Configurator) -> None:
        getattr(config, directive)(part[directive])

    def another(config: Configurator) -> None:
        getattr(config, directive)(part[directive])

    config = configured(one, another)
    with pytest.raises(ConfigurationConflictError, match='test_directives'):
        config.commit()
    config = configured(one, another)
    getattr(config, directive)(part[directive])
    config.commit()
    assert part[directive] in parts(config.registry)


def test_regression_a_sibling_may_override_the_defaults() -> None:
    """Once the defaults conflicted with the directives of ``config.include('.mail')``."""

    def sibling(config: Configurator) -> None:
        config.set_mailer(mailer)
        config.set_mail_queue(MemoryQueue())
        config.set_mail_delivery(delivery)

    registry = committed(sibling)
    assert registry.getUtility(IMailer) is mailer
    assert registry.getUtility(IMailDelivery) is delivery


def test_regression_autocommit(config: Configurator) -> None:
    """Once, with autocommit, the delivery was made before the directives were called and kept the
    mailer of the settings."""
    config.include('pyramid_sendmail')
    before = config.registry.getUtility(IMailDelivery)
    assert type(before) is DirectMailDelivery
    config.set_mailer(mailer)
    queue = MemoryQueue()
    config.set_mail_queue(queue)
    after = config.registry.getUtility(IMailDelivery)
    assert type(after) is QueuedMailDelivery
    assert after.queue is queue
    assert sends_by(after, mailer)
    assert config.introspector.get('mail', 'delivery')['delivery'] is after
    config.set_mail_delivery(delivery)
    config.set_mailer(NullMailer())
    assert config.registry.getUtility(IMailDelivery) is delivery


def test_regression_commit_in_between() -> None:
    """Once the delivery kept the mailer of the settings if the application committed before
    ``set_mailer``."""
    config = configured()
    config.commit()
    config.set_mailer(mailer)
    config.commit()
    assert sends_by(config.registry.getUtility(IMailDelivery), mailer)


def test_without_introspection() -> None:
    """The directives work with ``Configurator(introspection=False)``."""
    config = Configurator(introspection=False)
    config.include('pyramid_sendmail')
    config.set_mail_delivery(lambda registry: Delivery(registry.getUtility(IMailer)))
    config.commit()
    config.set_mailer(mailer)
    config.commit()
    assert config.registry.getUtility(IMailDelivery).registry is mailer


def test_include_twice(tmp_path: Path) -> None:
    """A second include changes nothing, in the same commit or a later one."""

    def other(config: Configurator) -> None:
        config.include('pyramid_sendmail')

    config = configured(other, queue_path=tmp_path, processor='thread')
    config.include('pyramid_sendmail')
    config.commit()
    before = (*parts(config.registry), config.registry.getUtility(IMailEventDispatcher))
    thread = config.registry.getUtility(IProcessorThread)
    config.include('pyramid_sendmail')
    config.commit()
    assert (*parts(config.registry), config.registry.getUtility(IMailEventDispatcher)) == before
    assert config.registry.getUtility(IProcessorThread) is thread


@pytest.mark.parametrize('order', [(0, 1), (1, 0), (0, 1, 0), (1,)])
def test_pyramid_tm_is_included_once(order: tuple[int, ...]) -> None:
    """There is one tween of pyramid_tm and no conflict, whether or not the application includes
    it."""
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
    """``request.mailer`` is the registered delivery bound to request.tm, the same for a whole
    request."""
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
    """Through pyramid_tm, mail of a view is kept on a commit and dropped on an abort."""

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


def test_mail_tag(config: Configurator) -> None:
    """A subscriber with the predicate ``mail_tag`` gets events of mail with that tag only."""
    seen: list[str] = []
    config.include('pyramid_sendmail')
    config.add_subscriber(lambda event: seen.append(event.id), MailSentEvent, mail_tag='welcome')
    common = dict.fromkeys(
        ('message_id', 'sender', 'recipients', 'subject', 'metadata', 'attempt'), None
    ) | dict.fromkeys(('queued_at', 'mailer', 'request', 'reply'), None)
    for id, tag in (('1', 'welcome'), ('2', 'bill'), ('3', None)):
        config.registry.notify(MailSentEvent(id=id, tag=tag, **common))  # type: ignore[arg-type]
    assert seen == ['1']


def test_bad_senders_are_found_at_start_up() -> None:
    """Wrong sender addresses are errors at start-up, even if the application has its own
    delivery."""
    for name in ('default_sender', 'envelope_sender'):
        config = configured(**{name: 'ann at example.org'})
        config.set_mail_delivery(delivery)
        assert f'mail.{name}' in failure(config)


@pytest.mark.parametrize(
    ('directive', 'part'),
    [
        ('set_mailer', 'tests.support.configuration.no_such_thing'),
        ('set_mailer', 'no such thing'),
        ('set_mailer', None),
        ('set_mailer', 'tests.support.configuration.nothing'),
        ('set_mailer', 'tests.support.configuration.number'),
        ('set_mailer', 'tests.support.configuration.url_with_password'),
        ('set_mailer', MemoryQueue()),
        ('set_mail_queue', mailer),
        ('set_mail_queue', lambda registry: None),
        ('set_mail_delivery', url_with_password),
    ],
)
def test_parts_that_are_refused(directive: str, part: Any) -> None:
    """An error about a part names the directive and the interface, and shows nothing of the
    part."""

    def include(config: Configurator) -> None:
        getattr(config, directive)(part)

    with pytest.raises(ConfigurationError) as caught:
        committed(include)
    text = text_of(caught.value)
    assert text.startswith(f'config.{directive}: ')
    assert 'provides it' in text or 'dotted name' in text
    assert SECRET not in text


@pytest.mark.parametrize('name', ['no.such.thing', 'tests.support.configuration.number', 'direkt'])
def test_deliveries_that_are_refused(name: str) -> None:
    """An error about ``mail.delivery`` quotes it, if it does not exist or is no delivery."""
    text = failure(configured(delivery=name))
    assert text.startswith(f'mail.delivery = {name}: ')
    assert 'give' in text or 'write' in text


def test_later_features_are_absent() -> None:
    """Features of later releases are absent: there is no stub."""
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
        assert 'not supported yet' in failure(configured(**{name: '*@example.org'}))


def test_several_relays() -> None:
    """Several URLs make one mailer, and the introspectable shows no password."""
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


def test_introspectables(tmp_path: Path) -> None:
    """The category ``mail`` lists delivery, mailer, queue and settings, with secrets masked."""
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
    assert 'test_directives' in found['mailer'].action_info.file
    assert found['settings']['settings'] == {
        'mail.url': 'smtp://ann:***@relay',
        'mail.queue_path': str(tmp_path),
        'mail.workers': '7',
        'mail.direct_wait': 'False',
    }


def test_introspectables_without_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what exists is listed, and the URL is the one in force."""
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


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """One error has the settings, the addresses, the queue and the URL."""
    file = tmp_path / 'file'
    file.touch()
    text = failure(
        configured(
            url='relay.example.org',
            default_sender='Shop',
            envelope_sender='<>',
            queue_path=str(file),
            workers='none',
            maildir='/srv/mail',
        )
    )
    first, *lines = text.splitlines()
    assert first == '6 settings are wrong:'
    for begin, line in zip(
        (
            '- unknown setting mail.maildir. Did you mean mail.queue_path?',
            '- mail.workers = none',
            "- mail.default_sender: 'Shop' has no @",
            '- mail.envelope_sender: it cannot be the null sender',
            f'- queue {file} cannot be created: {file} is not a folder',
            '- mail.url does not say how mail leaves: write smtp:',
        ),
        lines,
        strict=True,
    ):
        assert line.startswith(begin)


def test_a_url_that_is_not_used(tmp_path: Path) -> None:
    """The URL of the settings is of no matter where the application sets a mailer."""
    config = configured(url='relay.example.org', workers='none')
    config.set_mailer(NullMailer())
    assert failure(config).startswith('mail.workers = none')
