"""The mailer, queue, delivery and queue processor that the settings of an application describe.

What sends mail is imported where it is made: an application whose mail leaves by ``psendmail-qp``
starts 8 ms sooner without it. Nothing is imported later than the configuration's commit, except in
``psendmail-qp`` itself: after an upgrade on disk, an import may fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyramid.exceptions import ConfigurationError
from pyramid.registry import Registry
from zope.interface import Interface, providedBy

from ..delivery.processor_watch import ProcessorWatch
from ..delivery.queued import QueuedMailDelivery, no_notice
from ..events.dispatcher import EventDispatcher
from ..interfaces import (
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IMailQueueProcessor,
    IMonitoredQueue,
    IScannableQueue,
)
from ..mailers.factory import mailer_from_url
from ..mailers.null import NullMailer
from ..message import EnvelopeFactory
from ..processor.thread import ProcessorThread
from ..queue import MaildirQueue, MemoryQueue
from ..retry import AT_ONCE_OR_NEVER
from ..sending.outcome import OutcomeRecorder
from ..settings import MailSettings

__all__ = [
    'IProcessorThread',
    'clock_of',
    'default_delivery',
    'default_dispatcher',
    'default_mailer',
    'default_processor',
    'default_processor_thread',
    'default_queue',
    'has_settings',
    'processor_factory',
    'processor_of',
    'register_processor',
    'register_settings',
    'relay_mailer',
    'require_queue',
    'set_clock',
    'settings_of',
]


class IProcessorThread(Interface):
    """The utility that runs the queue processor of ``mail.processor = thread``."""


class _IParsedSettings(Interface):
    """The utility that holds the MailSettings: a registry need not be a mapping."""


class _IClock(Interface):
    """The utility that is the clock of the application's mail, if it is not ``time.time``."""


def register_settings(registry: Registry, settings: MailSettings) -> None:
    registry.registerUtility(settings, _IParsedSettings)


def has_settings(registry: Registry) -> bool:
    """Return whether the application includes the package."""
    return registry.queryUtility(_IParsedSettings) is not None


def settings_of(registry: Registry) -> MailSettings:
    """Return the parsed settings. Raises LookupError if there are none yet."""
    settings: MailSettings = registry.getUtility(_IParsedSettings)
    return settings


def set_clock(registry: Registry, clock: Callable[[], float]) -> None:
    """Give the mail of an application another clock than ``time.time``, before its configuration
    is committed: one for ``send``, the queue, the attempts and the events."""
    registry.registerUtility(clock, _IClock)


def clock_of(registry: Registry) -> Callable[[], float]:
    """Return the clock of the application's mail, which gives epoch seconds."""
    clock: Callable[[], float] = registry.queryUtility(_IClock, default=time.time)
    return clock


def default_mailer(registry: Registry) -> IMailer:
    """Return the mailer that ``mail.url`` describes."""
    settings = settings_of(registry)
    return relay_mailer(
        url=settings.url,
        url_source=settings.url_source,
        username=settings.username,
        password=settings.password,
        hostname=settings.hostname,
    )


def relay_mailer(
    *, url: str, url_source: str, username: str | None, password: str | None, hostname: str
) -> IMailer:
    """Return the mailer of a URL that stands in ``url_source``. Raises ConfigurationError."""
    try:
        return mailer_from_url(url, hostname=hostname, username=username, password=password)
    except ConfigurationError as error:
        if url_source == 'mail.url':
            raise
        # Name what the reader has written: mail.host, or MAIL_URL in the environment.
        text = str(error).removeprefix('mail.url').lstrip(':')
        raise ConfigurationError(f'{url_source}{text}') from error


def default_queue(registry: Registry) -> MaildirQueue:
    """Return the Maildir queue at ``mail.queue_path``, which must be set."""
    settings = settings_of(registry)
    assert settings.queue_path is not None
    return MaildirQueue(
        settings.queue_path,
        sync=settings.queue_sync != 'off',
        late_sync=settings.queue_sync == 'vote',
        group=settings.queue_mode == 'group',
        in_doubt=settings.in_doubt,
        hold_ambiguous=settings.ambiguous == 'hold',
        longest=settings.retry_policy.longest,
        clock=clock_of(registry),
    )


def default_delivery(registry: Registry) -> IMailDelivery:
    """Return the queued or direct delivery that uses the registered mailer and queue."""
    settings = settings_of(registry)
    mailer = registry.getUtility(IMailer)
    queue = registry.queryUtility(IMailQueue)
    clock = clock_of(registry)
    envelope_factory = _envelope_factory(settings, clock)
    sent = _on_send(registry, mailer, queue)
    if settings.delivery == 'queue':
        require_queue(queue, 'mail.delivery = queue')
    if queue is not None and settings.delivery != 'direct':
        return QueuedMailDelivery(queue, mailer, envelope_factory, sent=sent)
    if not (queue is None or IScannableQueue.providedBy(queue)):
        raise ConfigurationError(
            f'mail.delivery = direct: a {type(queue).__name__} cannot be scanned for mail that was '
            f'deferred: set a queue that provides IScannableQueue, or mail.delivery = queue'
        )
    from ..delivery.direct import DirectMailDelivery

    return DirectMailDelivery(
        MemoryQueue(keep_failed=False, clock=clock) if queue is None else queue,
        mailer,
        envelope_factory,
        _recorder(registry, durable=queue is not None),
        wait=settings.direct_wait,
        timeout=settings.direct_timeout,
        sent=sent,
    )


def _on_send(registry: Registry, mailer: object, queue: object) -> Callable[[], None]:
    """Return what each ``send`` calls: it starts the processor's thread after a fork, and warns
    where no processor serves the queue. Mail for ``null:`` may wait there."""
    thread = registry.queryUtility(IProcessorThread)
    if isinstance(mailer, NullMailer) or not IMonitoredQueue.providedBy(queue):
        return no_notice if thread is None else thread.sent
    remedy = (
        'start "psendmail-qp production.ini", or set mail.processor = thread'
        if thread is None
        else 'start the web process, whose first request starts it, or "psendmail-qp '
        'production.ini"'
    )
    name = getattr(queue, 'path', repr(queue))
    # The queue dates a heartbeat by this clock.
    watch = ProcessorWatch(queue, name, remedy, clock=clock_of(registry))
    if thread is None:
        return watch.check

    def on_send() -> None:
        thread.sent()
        watch.check()

    return on_send


def require_queue(queue: IMailQueue | None, setting: str) -> None:
    """Raise ConfigurationError if there is no queue; ``setting``: what needs one."""
    if queue is None:
        raise ConfigurationError(f'{setting} needs a queue: write mail.queue_path = %(here)s/mail')


def _envelope_factory(settings: MailSettings, clock: Callable[[], float]) -> EnvelopeFactory:
    return EnvelopeFactory(
        default_sender=settings.default_sender,
        envelope_sender=settings.envelope_sender,
        hostname=settings.hostname,
        max_size=settings.max_size,
        clock=clock,
    )


def default_dispatcher(registry: Registry) -> IMailEventDispatcher:
    """Return the dispatcher that runs the subscribers of the registry in a thread."""
    settings = settings_of(registry)
    return EventDispatcher(
        registry,
        batch=settings.event_batch,
        base_url=settings.base_url or '',
        clock=clock_of(registry),
    )


def default_processor_thread(registry: Registry) -> ProcessorThread:
    """Return the thread of ``mail.processor = thread``, not yet started."""
    from ..processor import processor  # noqa: F401 - the first request would import it

    return ProcessorThread(lambda: processor_of(registry))


def processor_of(
    registry: Registry, *, workers: int | None = None, batch: int | None = None
) -> IMailQueueProcessor:
    """Return the queue processor of a configured application that has a queue.

    The registered adapter from the queue and the registry to IMailQueueProcessor makes it.
    ``workers``, ``batch``: in place of the settings. Raises ConfigurationError if there is no
    adapter for this kind of queue.
    """
    queue = registry.getUtility(IMailQueue)
    factory = processor_factory(registry, queue)
    processor: IMailQueueProcessor = factory(queue, registry, workers=workers, batch=batch)
    return processor


def processor_factory(registry: Registry, queue: IMailQueue) -> Callable[..., IMailQueueProcessor]:
    """Return the adapter factory for this kind of queue. Raises ConfigurationError."""
    required = (providedBy(queue), providedBy(registry))
    factory: Callable[..., IMailQueueProcessor] | None = registry.adapters.lookup(
        required, IMailQueueProcessor
    )
    if factory is None:
        kind = type(queue)
        raise ConfigurationError(
            f'mail queue: no queue processor is registered for {kind.__module__}.'
            f'{kind.__qualname__}: register one with config.registry.registerAdapter(factory, '
            '(IYourQueue, Interface), IMailQueueProcessor), or give a queue that provides '
            'IScannableQueue'
        )
    return factory


def register_processor(registry: Registry) -> None:
    """Register our processor for every queue that can be scanned, unless the application has
    registered another. A queue with an interface of its own has the adapter of that interface."""
    required = (IScannableQueue, Interface)
    if registry.adapters.registered(required, IMailQueueProcessor) is None:
        registry.registerAdapter(default_processor, required, IMailQueueProcessor)


def default_processor(
    queue: IScannableQueue,
    registry: Registry,
    *,
    workers: int | None = None,
    batch: int | None = None,
) -> IMailQueueProcessor:
    """Return the processor of a queue that can be scanned, as the settings say."""
    from ..processor.options import ProcessorOptions
    from ..processor.processor import QueueProcessor

    settings = settings_of(registry)
    options = ProcessorOptions(
        workers=workers or settings.workers,
        batch=batch or settings.batch,
        rate=settings.rate,
        keep_failed=settings.keep_failed,
    )
    return QueueProcessor(
        queue,
        registry.getUtility(IMailer),
        registry.getUtility(IMailEventDispatcher),
        _recorder(registry, durable=True),
        options,
    )


def _recorder(registry: Registry, *, durable: bool) -> OutcomeRecorder:
    """Return what records outcomes; ``durable``: the queue keeps mail for a later attempt."""
    settings = settings_of(registry)
    policy = settings.retry_policy if durable else AT_ONCE_OR_NEVER
    dispatcher = registry.getUtility(IMailEventDispatcher)
    return OutcomeRecorder(
        policy, dispatcher, settings.ambiguous, durable=durable, clock=clock_of(registry)
    )
