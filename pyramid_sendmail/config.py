"""The directives, and what the settings give where no directive says otherwise.

============================== ==================================================
``config.set_mail_delivery``   what ``request.mailer`` is
``config.set_mailer``          how mail leaves
``config.set_mail_queue``      where it waits
============================== ==================================================

Each takes an object that provides the interface, a callable of the registry that returns one, or
the dotted name of either. Two calls conflict as Pyramid's own directives do.
"""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import INewRequest
from pyramid.registry import Registry
from zope.interface import Interface

from .background import ProcessorThread
from .delivery import DirectMailDelivery, QueuedMailDelivery
from .events import MailTagPredicate
from .exceptions import MessageError
from .interfaces import (
    IMailDelivery,
    IMailer,
    IMailQueue,
    IMailReporter,
    IMailSettings,
)
from .mailers.url import mailer_from_url, mask_url
from .message import Composer
from .processor import QueueProcessor
from .queue import MaildirQueue, MemoryQueue
from .reporting import MailReporter
from .retry import AT_ONCE_OR_NEVER
from .sending import Attempts
from .settings import TABLE, MailSettings, parse_settings

__all__ = ['processor_of', 'set_mail_delivery', 'set_mail_queue', 'set_mailer']

SETTINGS, PARTS, DELIVERY = -1, 0, 1
"""The order of our actions: a delivery is made of the parts."""


def set_mail_delivery(config: Configurator, delivery: Any) -> None:
    """Make this what ``request.mailer`` is, in place of what the settings say."""
    _set(config, 'delivery', IMailDelivery, delivery, DELIVERY)


def set_mailer(config: Configurator, mailer: Any) -> None:
    """Send with this mailer, in place of the one that ``mail.url`` names."""
    _set(config, 'mailer', IMailer, mailer, PARTS)


def set_mail_queue(config: Configurator, queue: Any) -> None:
    """Let mail wait in this queue, in place of the Maildir at ``mail.queue_path``."""
    _set(config, 'queue', IMailQueue, queue, PARTS)


def _set(
    config: Configurator, title: str, interface: type[Interface], part: Any, order: int
) -> None:
    part = config.maybe_dotted(part)
    introspectable = config.introspectable('mail', title, title, f'mail {title}')

    def register() -> None:
        made = part
        if not interface.providedBy(made):
            if not callable(made):
                raise ConfigurationError(
                    f'the mail {title} {made!r} neither provides {interface.__name__} nor is a '
                    f'callable that returns what does'
                )
            made = made(config.registry)
            if made is None:
                return
            if not interface.providedBy(made):
                raise ConfigurationError(
                    f'{part!r} returned {made!r}, which does not provide {interface.__name__}'
                )
        config.registry.registerUtility(made, interface)
        introspectable[title] = made

    config.action(('mail', title), register, order=order, introspectables=(introspectable,))


def _settings(registry: Registry) -> MailSettings:
    settings: MailSettings = registry.getUtility(IMailSettings)
    return settings


def default_mailer(registry: Registry) -> Any:
    """The mailer that ``mail.url`` names."""
    settings = _settings(registry)
    return mailer_from_url(
        settings.url,
        hostname=settings.hostname,
        username=settings.username,
        password=settings.password,
    )


def default_queue(registry: Registry) -> MaildirQueue | None:
    """The Maildir at ``mail.queue_path``; None without one."""
    settings = _settings(registry)
    if settings.queue_path is None:
        return None
    return MaildirQueue(
        settings.queue_path,
        sync=settings.queue_sync,
        in_doubt=settings.in_doubt,
        hold_ambiguous=settings.ambiguous == 'hold',
        longest=settings.policy.longest,
    )


def default_delivery(registry: Registry) -> Any:
    """What ``mail.delivery`` says: queued, direct, or what the dotted name stands for."""
    settings = _settings(registry)
    if settings.delivery not in ('queue', 'direct'):
        return _named_delivery(registry, settings.delivery)
    queue = registry.queryUtility(IMailQueue)
    mailer = registry.getUtility(IMailer)
    composer = _composer(settings)
    sent = _background(registry, settings, queue)
    if settings.delivery == 'queue':
        return QueuedMailDelivery(queue, mailer, composer, sent=sent)
    policy = settings.policy if queue is not None else AT_ONCE_OR_NEVER
    return DirectMailDelivery(
        queue if queue is not None else MemoryQueue(),
        mailer,
        composer,
        Attempts(policy, registry.getUtility(IMailReporter), settings.ambiguous),
        durable=queue is not None,
        wait=settings.direct_wait,
        timeout=settings.direct_timeout,
        sent=sent,
    )


def _named_delivery(registry: Registry, name: str) -> Any:
    try:
        made = Configurator(registry=registry).maybe_dotted(name)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f'mail.delivery = {name}: write direct, queue or the dotted name of an IMailDelivery '
            f'({error})'
        ) from error
    return made if IMailDelivery.providedBy(made) else made(registry)


def _composer(settings: MailSettings) -> Composer:
    try:
        return Composer(
            default_sender=settings.default_sender,
            envelope_sender=settings.envelope_sender,
            hostname=settings.hostname,
            max_size=settings.max_size,
        )
    except MessageError as error:
        raise ConfigurationError(str(error)) from error


def _background(registry: Registry, settings: MailSettings, queue: Any) -> Any:
    """Where ``mail.processor = thread``, what ``send`` has to call."""
    if settings.processor != 'thread' or queue is None:
        return _nothing
    thread = ProcessorThread(lambda: processor_of(registry))
    registry.registerHandler(lambda event: thread.serve(), (INewRequest,))
    return thread.sent


def _nothing() -> None:
    """Nothing has to be started when a message was taken."""


def processor_of(
    registry: Registry, *, workers: int | None = None, batch: int | None = None
) -> QueueProcessor:
    """The queue processor of a configured application, whose queue must be there."""
    settings = _settings(registry)
    reporter = registry.getUtility(IMailReporter)
    return QueueProcessor(
        registry.getUtility(IMailQueue),
        registry.getUtility(IMailer),
        reporter,
        Attempts(settings.policy, reporter, settings.ambiguous),
        workers=workers or settings.workers,
        batch=batch or settings.batch,
    )


def _set_settings(config: Configurator) -> None:
    introspectable = config.introspectable('mail', 'settings', 'settings', 'mail settings')

    def register() -> None:
        registry = config.registry
        registry.registerUtility(parse_settings(registry.settings or {}), IMailSettings)
        registry.registerUtility(MailReporter(registry), IMailReporter)
        introspectable['settings'] = _shown(registry.settings or {})

    config.action(
        ('mail', 'settings'), register, order=SETTINGS, introspectables=(introspectable,)
    )


def _shown(settings: Any) -> dict[str, str]:
    """The settings as they were written, without secrets."""
    shown = {}
    for row in TABLE:
        if settings.get(row.name):
            value = str(settings[row.name])
            if row.name == 'mail.url':
                value = mask_url(value)
            elif row.secret:
                value = '***'
            shown[row.name] = value
    return shown


def includeme(config: Configurator) -> None:
    config.add_directive('set_mail_delivery', set_mail_delivery)
    config.add_directive('set_mailer', set_mailer)
    config.add_directive('set_mail_queue', set_mail_queue)
    config.add_subscriber_predicate('mail_tag', MailTagPredicate)
    _set_settings(config)
    config.set_mailer(default_mailer)
    config.set_mail_queue(default_queue)
    config.set_mail_delivery(default_delivery)
