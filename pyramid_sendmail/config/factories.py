"""The directives, and what the settings give where no directive says otherwise.

============================== ==================================================
``config.set_mail_delivery``   what ``request.mailer`` is
``config.set_mailer``          how mail leaves
``config.set_mail_queue``      where it waits
============================== ==================================================

Each takes an object that provides the interface, a callable of the registry that returns one, or
the dotted name of either. Two calls conflict as Pyramid's own directives do; what the settings
give conflicts with nothing. A queue that was set is as good as ``mail.queue_path``.

The queue processor is made by an adapter from the queue and the registry: see
IMailQueueProcessor. Ours is registered for every IScannableQueue.

The actions run in this order, whatever the order of the calls:

=============  ================================================================================
``SETTINGS``   the settings are parsed
``PARTS``      the mailer and the queue that were set
``DEFAULTS``   those that the settings describe, where none was set
``DELIVERY``   the delivery that was set, which may look the parts up in the registry
``LAST``       the delivery that the settings describe, where none was set
=============  ================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import INewRequest
from pyramid.registry import Registry
from zope.interface import Interface, providedBy

from ..delivery.direct import DirectMailDelivery
from ..delivery.queued import QueuedMailDelivery
from ..interfaces import (
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IMailQueueProcessor,
    IMailSettings,
    IScannableQueue,
)
from ..settings.table import DEFAULT_URL, TABLE, MailSettings, parse_settings
from ..standin import real, stand_in

if TYPE_CHECKING:
    from ..events.dispatcher import EventDispatcher
    from ..message import EnvelopeFactory
    from ..processor.processor import QueueProcessor
    from ..queue import MaildirQueue
    from ..sending.outcome import OutcomeRecorder

__all__ = ['add_directives', 'processor_of', 'set_mail_delivery', 'set_mail_queue', 'set_mailer']

SETTINGS, PARTS, DEFAULTS, DELIVERY, LAST = range(-2, 3)

_INTERFACES: Mapping[str, type[Interface]] = {
    'delivery': IMailDelivery,
    'mailer': IMailer,
    'queue': IMailQueue,
}

Maker = Callable[[], Any]


class _IDeliveryMaker(Interface):
    """What makes the delivery of the parts that are registered."""


class _IProcessorThread(Interface):
    """The thread of ``mail.processor = thread``."""


def set_mail_delivery(config: Configurator, delivery: Any) -> None:
    """Make this what ``request.mailer`` is, in place of what the settings say."""
    _set(config, 'delivery', 'set_mail_delivery', delivery, DELIVERY)


def set_mailer(config: Configurator, mailer: Any) -> None:
    """Send with this mailer, in place of the one that ``mail.url`` names."""
    _set(config, 'mailer', 'set_mailer', mailer, PARTS)


def set_mail_queue(config: Configurator, queue: Any) -> None:
    """Let mail wait in this queue, in place of the Maildir at ``mail.queue_path``."""
    _set(config, 'queue', 'set_mail_queue', queue, PARTS)


def _set(config: Configurator, title: str, directive: str, part: Any, order: int) -> None:
    part = _resolved(config, part, f'config.{directive}')
    introspectable = _introspectable(config, title)

    def register() -> None:
        _register(config, title, _maker(config.registry, part, title, f'config.{directive}'))
        introspectable[title] = config.registry.getUtility(_INTERFACES[title])

    config.action(('mail', title), register, order=order, introspectables=(introspectable,))


def _resolved(config: Configurator, part: Any, where: str) -> Any:
    try:
        return config.maybe_dotted(part)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f'{where}: {part} cannot be imported ({error}): write the dotted name of what is there'
        ) from error


def _maker(registry: Registry, part: Any, title: str, where: str) -> Maker:
    """What returns the part, and raises ConfigurationError if it is none."""
    interface = _INTERFACES[title]

    def make() -> Any:
        made = part
        if not interface.providedBy(made) and callable(made):
            made = made(registry)
        if interface.providedBy(made):
            return made
        # Its repr may hold a password.
        got = 'what was given' if made is part else f'what {_name(part)} returned'
        raise ConfigurationError(
            f'{where}: {got} is of the type {type(made).__name__}, which does not provide '
            f'{interface.__name__}: give an object that provides it, or a callable of the registry '
            f'that returns one'
        )

    return make


def _name(part: Any) -> str:
    return getattr(part, '__qualname__', type(part).__name__)


def _introspectable(config: Configurator, title: str) -> Any:
    return config.introspectable('mail', title, title, f'mail {title}')


def _register(config: Configurator, title: str, make: Maker) -> None:
    """Register a part, and bring a delivery up to date that was made before it: by autocommit, or
    by an earlier commit."""
    registry = config.registry
    registry.registerUtility(make(), _INTERFACES[title])
    if title == 'delivery':
        registry.registerUtility(make, _IDeliveryMaker)
    elif registry.queryUtility(IMailDelivery) is not None:
        delivery = registry.getUtility(_IDeliveryMaker)()
        registry.registerUtility(delivery, IMailDelivery)
        introspectable = config.introspector.get('mail', 'delivery')
        if introspectable is not None:
            introspectable['delivery'] = delivery


def _register_default(config: Configurator, title: str, make: Maker) -> None:
    """Register what the settings give, unless something was set."""
    if config.registry.queryUtility(_INTERFACES[title]) is None:
        _register(config, title, make)
        introspectable = _introspectable(config, title)
        introspectable[title] = config.registry.getUtility(_INTERFACES[title])
        introspectable.register(config.introspector, config.action_info)


def _settings(registry: Registry) -> MailSettings:
    settings: MailSettings = registry.getUtility(IMailSettings)
    return settings


def default_mailer(registry: Registry) -> Any:
    """The mailer that ``mail.url`` names, or what stands in for it: all is verified."""
    settings = _settings(registry)
    if settings.url == DEFAULT_URL and not (settings.username or settings.password):
        return stand_in(lambda: _mailer(settings))
    return _mailer(settings, later=True)


def _mailer(settings: MailSettings, *, later: bool = False) -> Any:
    from ..mailers.factory import mailer_from_url

    try:
        return mailer_from_url(
            settings.url,
            hostname=settings.hostname,
            username=settings.username,
            password=settings.password,
            later=later,
        )
    except ConfigurationError as error:
        if settings.url_source == 'mail.url':
            raise
        text = str(error).removeprefix('mail.url').lstrip(':')
        raise ConfigurationError(f'{settings.url_source}{text}') from error


def default_queue(registry: Registry) -> MaildirQueue:
    """The Maildir at ``mail.queue_path``, which must be set."""
    from ..queue import MaildirQueue

    settings = _settings(registry)
    assert settings.queue_path is not None
    return MaildirQueue(
        settings.queue_path,
        sync=settings.queue_sync,
        group=settings.queue_mode == 'group',
        in_doubt=settings.in_doubt,
        hold_ambiguous=settings.ambiguous == 'hold',
        longest=settings.policy.longest,
    )


def default_delivery(registry: Registry) -> Any:
    """The queued or the direct delivery, of the parts that are registered."""
    settings = _settings(registry)
    queue = registry.queryUtility(IMailQueue)
    mailer = registry.getUtility(IMailer)
    envelope_factory = stand_in(lambda: _envelope_factory(settings))
    thread = registry.queryUtility(_IProcessorThread)
    sent = _nothing if thread is None else thread.sent
    if settings.delivery == 'queue' or (settings.delivery is None and queue is not None):
        _need_queue(queue, 'mail.delivery = queue')
        return QueuedMailDelivery(queue, mailer, envelope_factory, sent=sent)
    return DirectMailDelivery(
        queue if queue is not None else stand_in(_memory_queue),
        mailer,
        envelope_factory,
        stand_in(lambda: _recorder(registry, durable=queue is not None)),
        wait=settings.direct_wait,
        timeout=settings.direct_timeout,
        sent=sent,
    )


def _memory_queue() -> Any:
    from ..queue import MemoryQueue

    return MemoryQueue(keep_failed=False)


def _recorder(registry: Registry, *, durable: bool) -> OutcomeRecorder:
    from ..retry import AT_ONCE_OR_NEVER
    from ..sending.outcome import OutcomeRecorder

    settings = _settings(registry)
    policy = settings.policy if durable else AT_ONCE_OR_NEVER
    dispatcher = real(registry.getUtility(IMailEventDispatcher))
    return OutcomeRecorder(policy, dispatcher, settings.ambiguous, durable=durable)


def _need_queue(queue: Any, what: str) -> None:
    if queue is None:
        raise ConfigurationError(f'{what} needs a queue: write mail.queue_path = %(here)s/mail')


def _nothing() -> None:
    """Nothing has to be started when a message was taken."""


def _envelope_factory(settings: MailSettings) -> EnvelopeFactory:
    """The composer of settings that ``_check_senders`` has verified."""
    from ..message import EnvelopeFactory

    return EnvelopeFactory(
        default_sender=settings.default_sender,
        envelope_sender=settings.envelope_sender,
        hostname=settings.hostname,
        max_size=settings.max_size,
    )


def _check_senders(settings: MailSettings) -> None:
    if settings.default_sender or settings.envelope_sender:
        from ..exceptions import MessageError
        from ..message.address import check_senders

        try:
            check_senders(settings.default_sender, settings.envelope_sender)
        except MessageError as error:
            raise ConfigurationError(str(error)) from error


def _dispatcher(registry: Registry, batch: int) -> EventDispatcher:
    from ..events.dispatcher import EventDispatcher

    return EventDispatcher(registry, batch=batch)


def processor_of(
    registry: Registry, *, workers: int | None = None, batch: int | None = None
) -> IMailQueueProcessor:
    """Return the queue processor of a configured application.

    The registered adapter from the queue and the registry to IMailQueueProcessor makes it. Raises
    ConfigurationError if there is none for this kind of queue.
    """
    queue = real(registry.getUtility(IMailQueue))
    factory = _processor_factory(registry, queue)
    processor: IMailQueueProcessor = factory(queue, registry, workers=workers, batch=batch)
    return processor


def _processor_factory(registry: Registry, queue: IMailQueue) -> Callable[..., IMailQueueProcessor]:
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


def default_processor(
    queue: IScannableQueue,
    registry: Registry,
    *,
    workers: int | None = None,
    batch: int | None = None,
) -> QueueProcessor:
    """Return the processor of a queue that can be scanned, as the settings say."""
    # Most web processes have none.
    from ..processor.options import ProcessorOptions
    from ..processor.processor import QueueProcessor

    settings = _settings(registry)
    dispatcher: IMailEventDispatcher = real(registry.getUtility(IMailEventDispatcher))
    options = ProcessorOptions(
        workers=workers or settings.workers,
        batch=batch or settings.batch,
        rate=settings.rate,
        keep_failed=settings.keep_failed,
    )
    mailer: IMailer = real(registry.getUtility(IMailer))
    return QueueProcessor(queue, mailer, dispatcher, _recorder(registry, durable=True), options)


def _register_processor(registry: Registry) -> None:
    """Register our processor for every queue that can be scanned, unless the application has
    registered another. A queue with an interface of its own has the adapter of that interface."""
    required = (IScannableQueue, Interface)
    if registry.adapters.registered(required, IMailQueueProcessor) is None:
        registry.registerAdapter(default_processor, required, IMailQueueProcessor)


def _set_settings(config: Configurator) -> None:
    introspectable = _introspectable(config, 'settings')

    def register() -> None:
        registry = config.registry
        given = registry.settings or {}
        settings = parse_settings(given)
        registry.registerUtility(settings, IMailSettings)
        _check_senders(settings)
        _register_processor(registry)
        if registry.queryUtility(IMailEventDispatcher) is None:
            dispatcher = stand_in(lambda: _dispatcher(registry, settings.event_batch))
            registry.registerUtility(dispatcher, IMailEventDispatcher)
        introspectable['settings'] = _shown(given, settings)

    config.action(('mail', 'settings'), register, order=SETTINGS, introspectables=(introspectable,))


def _set_defaults(config: Configurator) -> None:
    def parts() -> None:
        registry = config.registry
        _register_default(config, 'mailer', lambda: default_mailer(registry))
        if _settings(registry).queue_path is not None:
            _register_default(config, 'queue', lambda: stand_in(lambda: default_queue(registry)))
        if _settings(registry).processor == 'thread':
            _set_processor_thread(registry)

    def delivery() -> None:
        _register_default(config, 'delivery', lambda: _delivery_of_settings(config))
        registry = config.registry
        if _settings(registry).processor == 'thread':
            # Here, where every adapter is registered, and not in the first request.
            _processor_factory(registry, real(registry.getUtility(IMailQueue)))

    config.action(('mail', 'default parts'), parts, order=DEFAULTS)
    config.action(('mail', 'default delivery'), delivery, order=LAST)


def _delivery_of_settings(config: Configurator) -> Any:
    named = _settings(config.registry).delivery
    if named in (None, 'direct', 'queue'):
        return default_delivery(config.registry)
    where = f'mail.delivery = {named}'
    return _maker(config.registry, _resolved(config, named, where), 'delivery', where)()


def _set_processor_thread(registry: Registry) -> None:
    from ..processor.thread import ProcessorThread

    _need_queue(registry.queryUtility(IMailQueue), 'mail.processor = thread')
    if registry.queryUtility(_IProcessorThread) is None:
        thread = ProcessorThread(lambda: processor_of(registry))
        registry.registerUtility(thread, _IProcessorThread)
        registry.registerHandler(lambda event: thread.serve(), (INewRequest,))


def _shown(given: Mapping[str, Any], settings: MailSettings) -> dict[str, str]:
    """The settings as they were written, without secrets; the URL that is in force."""
    shown = {
        row.name: '***' if row.secret else str(given[row.name])
        for row in TABLE
        if given.get(row.name) is not None
    }
    url = settings.url
    if url != DEFAULT_URL:
        from ..settings.credentials import mask_url

        url = mask_url(url)
    return {**shown, 'mail.url': url}


def add_directives(config: Configurator) -> None:
    """Add the directives, and have the commit register what the settings give."""
    config.add_directive('set_mail_delivery', set_mail_delivery)
    config.add_directive('set_mailer', set_mailer)
    config.add_directive('set_mail_queue', set_mail_queue)
    _set_settings(config)
    _set_defaults(config)
