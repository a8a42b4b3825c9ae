"""What the settings give: mailer, queue, delivery, queue processor."""

from __future__ import annotations

import inspect
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyramid.registry import Registry
from pyramid.response import Response
from webtest import TestApp
from zope.interface.verify import verifyObject

from pyramid_sendmail import Message
from pyramid_sendmail.config import factories
from pyramid_sendmail.config.factories import (
    IProcessorThread,
    clock_of,
    has_settings,
    processor_of,
    set_clock,
    settings_of,
)
from pyramid_sendmail.delivery import direct
from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IQueuedMailDelivery,
    ISMTPMailer,
)
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.message import EnvelopeFactory
from tests.support.configuration import (
    HELLO,
    SECRET,
    committed,
    configured,
    failure,
    parts,
    puts_into,
    request_of,
    sends_by,
)
from tests.support.doubles import RecordingMailer
from tests.support.queues import Clock

pytestmark = pytest.mark.usefixtures('no_mail_environment')


class Calls:
    """The arguments of each call of something that the factories use, and what it returned.

    ``module``: where they look it up when they are called.
    """

    def __init__(self, patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        self.called = getattr(module, name)
        self.arguments: list[dict[str, Any]] = []
        self.returned: list[Any] = []
        patch.setattr(module, name, self)

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.arguments.append(inspect.signature(self.called).bind(*args, **named).arguments)
        self.returned.append(self.called(*args, **named))
        return self.returned[-1]


def test_without_settings() -> None:
    """Without a setting, delivery is direct to the mail server on this machine, and there is no
    queue."""
    registry = committed()
    delivery, mailer, queue = parts(registry)
    assert verifyObject(IDirectMailDelivery, delivery)
    assert verifyObject(ISMTPMailer, mailer)
    assert (mailer.host, mailer.port) == ('localhost', 25)
    assert queue is None
    assert verifyObject(IMailEventDispatcher, registry.getUtility(IMailEventDispatcher))
    assert has_settings(registry)
    assert settings_of(registry).url == 'smtp://localhost:25'


def test_without_the_package() -> None:
    """An application that does not include the package has no settings."""
    registry = Registry()
    assert not has_settings(registry)
    with pytest.raises(LookupError):
        settings_of(registry)


def test_with_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mail.queue_path`` alone gives a queued delivery, and the queue has its settings."""
    calls = Calls(monkeypatch, factories, 'MaildirQueue')
    recording = RecordingMailer()
    registry = committed(
        lambda config: config.set_mailer(recording),
        queue_path=tmp_path,
        queue_sync='off',
        in_doubt='send',
        ambiguous='hold',
        retry='1h',
    )
    delivery, _, queue = parts(registry)
    assert verifyObject(IQueuedMailDelivery, delivery)
    assert type(delivery) is QueuedMailDelivery
    assert delivery.queue is queue
    assert queue.path == str(tmp_path)
    assert calls.returned == [queue]
    assert sends_by(delivery, recording)
    assert puts_into(queue, registry)
    committed(queue_path=tmp_path, queue_mode='group')
    committed(queue_path=tmp_path, queue_sync='vote')
    assert calls.arguments.pop()['late_sync'] is True
    assert calls.arguments == [
        {
            'path': str(tmp_path),
            'sync': False,
            'late_sync': False,
            'group': False,
            'in_doubt': 'send',
            'hold_ambiguous': True,
            'longest': 4320.0,
            'clock': time.time,
        },
        {
            'path': str(tmp_path),
            'sync': True,
            'late_sync': False,
            'group': True,
            'in_doubt': 'hold',
            'hold_ambiguous': False,
            'longest': 8640.0,
            'clock': time.time,
        },
    ]


@pytest.mark.parametrize('options', [{}, {'queue_path': 'mail'}, {'delivery': 'direct'}])
def test_one_clock(tmp_path: Path, options: dict[str, Any]) -> None:
    """``send``, the queue, the attempts and the events have one clock; so has the look at the
    processor's heartbeat, which the queue dates."""
    clock = Clock()
    if 'queue_path' in options:
        options = {**options, 'queue_path': tmp_path}
    registry = committed(lambda config: set_clock(config.registry, clock), **options)
    delivery, _, queue = parts(registry)
    dispatcher: Any = registry.getUtility(IMailEventDispatcher)
    clocks = [clock_of(registry), delivery._envelope_factory.clock, dispatcher._clock]
    if queue is None:
        clocks += [delivery.queue._store.now, delivery._recorder.clock]
    else:
        processor: Any = processor_of(registry)
        clocks += [queue._clock, processor._recorder.clock]
        watch = delivery._sent.__self__
        clocks += [watch._clock]
    assert set(clocks) == {clock}


def test_direct_delivery_with_a_queue(tmp_path: Path) -> None:
    """``mail.delivery = direct`` keeps the queue for mail that cannot leave now."""
    recording = RecordingMailer()
    registry = committed(
        lambda config: config.set_mailer(recording), delivery='direct', queue_path=tmp_path
    )
    delivery, _, queue = parts(registry)
    assert type(delivery) is DirectMailDelivery
    assert delivery.queue is queue
    recording.unavailable = 'connection refused'
    assert puts_into(queue, registry)
    recording.unavailable = None
    assert not puts_into(queue, registry)
    assert recording.accepted('ann@example.org') == 1
    assert sends_by(delivery, recording)


def test_direct_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery gets ``mail.direct_wait`` and ``mail.direct_timeout``, and knows whether its
    queue keeps mail."""
    calls = Calls(monkeypatch, direct, 'DirectMailDelivery')
    committed(direct_wait='false', direct_timeout='5s')
    committed(delivery='direct', queue_path=tmp_path)
    given = [(each['wait'], each['timeout'], each['recorder'].durable) for each in calls.arguments]
    assert given == [
        (False, 5.0, False),
        (True, 30.0, True),
    ]


def test_processor_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue processor gets its settings; the command line's workers and batch win."""
    recorders = Calls(monkeypatch, factories, 'OutcomeRecorder')
    settings = {'workers': 7, 'batch': 8, 'give_up_after': '1h', 'keep_failed': '30d'}
    registry = committed(queue_path=tmp_path, rate='600/m', **settings)
    processors: list[Any] = [
        processor_of(registry),
        processor_of(registry, workers=1, batch=2),
        processor_of(committed(queue_path=tmp_path)),
    ]
    options = [processor.options for processor in processors]
    assert [(each.workers, each.batch, each.rate, each.keep_failed) for each in options] == [
        (7, 8, (600, 60), 30 * 86400),
        (1, 2, (600, 60), 30 * 86400),
        (4, 100, None, None),
    ]
    assert recorders.returned[0].policy.give_up_after == 3600


def test_message_settings() -> None:
    """Messages get sender, envelope sender, host name and the largest size from the settings."""
    recording = RecordingMailer()
    registry = committed(
        lambda config: config.set_mailer(recording),
        default_sender='Shop <shop@example.org>',
        envelope_sender='bounces@example.org',
        hostname='mail.example.org',
        max_size='1K',
    )
    delivery = registry.getUtility(IMailDelivery)
    delivery.send_now(Message(to='ann@example.org', text='Hello'))
    (envelope,) = recording.sent
    assert envelope.sender == 'bounces@example.org'
    assert b'From: Shop <shop@example.org>' in envelope.raw
    assert envelope.message_id.endswith('@mail.example.org>')
    with pytest.raises(ValueError, match=r'mail\.max_size'):
        delivery.send_now(Message(to='ann@example.org', text='Hello' * 1000))


def test_credentials_reach_the_mailer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailer gets the credentials beside its URL, and no repr shows them."""
    calls = Calls(monkeypatch, factories, 'mailer_from_url')
    registry = committed(host='relay', tls=True, username='ann', password=SECRET)
    mailer = registry.getUtility(IMailer)
    assert isinstance(mailer, SMTPMailer)
    assert SECRET not in repr(mailer) + mailer.name
    (arguments,) = calls.arguments
    assert (arguments['username'], arguments['password']) == ('ann', SECRET)


def test_mail_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAIL_URL overrides mail.url, and errors about it name it."""
    monkeypatch.setenv('MAIL_URL', 'null:')
    assert isinstance(committed(url='smtp://relay').getUtility(IMailer), NullMailer)
    monkeypatch.setenv('MAIL_URL', f'smtp://ann:{SECRET}@re lay')
    text = failure(configured())
    assert text.startswith('MAIL_URL ')
    assert SECRET not in text


def test_mistakes_beside_mail_host() -> None:
    """An error names mail.host, not a mail.url that was not written."""
    text = failure(configured(host='relay', username='ann'))
    assert text.startswith('mail.host ')
    assert 'mail.password' in text


def test_which_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names the environment variable, and which of its URLs is wrong."""
    monkeypatch.setenv('MAIL_URL', 'smtp://a smtp://')
    assert failure(configured()).startswith('MAIL_URL (the second) names no host')


@pytest.mark.parametrize('given', [{'delivery': 'queue'}, {'processor': 'thread'}])
def test_what_needs_a_queue(given: dict[str, str]) -> None:
    """An error about a missing queue says which line to write."""
    text = failure(configured(**given))
    assert 'mail.queue_path = %(here)s/mail' in text
    for name, value in given.items():
        assert f'mail.{name} = {value}' in text


@pytest.mark.parametrize('own', [False, True])
def test_processor_thread(tmp_path: Path, own: bool) -> None:
    """The thread starts with the first request, not with a ``send`` before it, for any delivery."""
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
                EnvelopeFactory(hostname='web.example.org'),
            )
        )
    config.add_route('home', '/')
    config.add_view(view, route_name='home')
    app = TestApp(config.make_wsgi_app())
    request = request_of(config.registry)
    thread = config.registry.getUtility(IProcessorThread)
    with request.tm:
        request.mailer.send(HELLO)
    assert not any(each.name == 'pyramid_sendmail queue' for each in threading.enumerate())
    app.get('/')
    try:
        recording.wait_for(1)
    finally:
        thread.finish(10)
    assert recording.accepted('ann@example.org') == 1


def test_no_thread_unless_asked(tmp_path: Path) -> None:
    """Without ``mail.processor = thread`` there is no thread."""
    registry = committed(queue_path=tmp_path)
    assert registry.queryUtility(IProcessorThread) is None
