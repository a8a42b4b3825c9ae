"""The directives, and the actions that register what the settings give.

============================== ==================================================
``config.set_mail_delivery``   what ``request.mailer`` is
``config.set_mailer``          how mail leaves
``config.set_mail_queue``      where mail waits
============================== ==================================================

Each takes an object that provides the interface, a callable that returns one and takes the
registry, or the dotted name of either. Two calls conflict, as with Pyramid's own directives; a
call overrides the settings. A queue that was set has the effect of ``mail.queue_path``.

An adapter from the queue and the registry makes the queue processor: see IMailQueueProcessor. Ours
is registered for every IScannableQueue.

The actions run in this order, whatever the order of the calls:

====================  ========================================================================
``SETTINGS``          the settings are parsed
``PARTS``             the mailer and the queue of the directives are registered
``DEFAULT_PARTS``     those of the settings, if there was no directive
``DELIVERY``          the delivery of the directive, which may look up mailer and queue
``DEFAULT_DELIVERY``  the one of the settings, if there was no directive
====================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import IApplicationCreated, IIntrospectable, INewRequest
from pyramid.registry import Registry
from zope.interface import Interface

from ..exceptions import MessageError, QueueError
from ..interfaces import IMailDelivery, IMailer, IMailEventDispatcher, IMailQueue
from ..message.address import check_senders
from ..settings import TABLE, MailSettings
from ..settings.credentials import Values, mask_url
from ..settings.overrides import current_overrides, is_processor_loading
from ..settings.table import raise_problems, read_settings
from .factories import (
    IProcessorThread,
    default_delivery,
    default_dispatcher,
    default_mailer,
    default_processor_thread,
    default_queue,
    processor_factory,
    register_processor,
    register_settings,
    relay_mailer,
    require_queue,
    settings_of,
)
from .pyramid_mailer import refuse_pyramid_mailer
from .queue_check import check_queue_folder
from .warnings import note_missing_sender, warn_of_default_relay, warn_of_lost_mail

__all__ = ['add_directives', 'set_mail_delivery', 'set_mail_queue', 'set_mailer']

SETTINGS, PARTS, DEFAULT_PARTS, DELIVERY, DEFAULT_DELIVERY = range(-2, 3)

_INTERFACES: Mapping[str, type[Interface]] = {
    'delivery': IMailDelivery,
    'mailer': IMailer,
    'queue': IMailQueue,
}

Maker = Callable[[], object]

Problems = list[ConfigurationError]


class _IPartToCome(Interface):
    """The utility of a part's name says that a directive sets the part: it does so later than the
    settings are read."""


class _IDeliveryMaker(Interface):
    """The utility that makes the delivery again, from the registered mailer and queue."""


def add_directives(config: Configurator) -> None:
    """Add the directives, and the actions that register what the settings give."""
    config.add_directive('set_mail_delivery', set_mail_delivery)
    config.add_directive('set_mailer', set_mailer)
    config.add_directive('set_mail_queue', set_mail_queue)
    _add_settings(config)
    _add_defaults(config)


def set_mail_delivery(config: Configurator, delivery: object) -> None:
    """Use this delivery as ``request.mailer``, instead of the one that the settings describe."""
    _set(config, 'delivery', 'set_mail_delivery', delivery, DELIVERY)


def set_mailer(config: Configurator, mailer: object) -> None:
    """Send with this mailer, instead of the one that ``mail.url`` describes."""
    _set(config, 'mailer', 'set_mailer', mailer, PARTS)


def set_mail_queue(config: Configurator, queue: object) -> None:
    """Keep mail in this queue, instead of the Maildir at ``mail.queue_path``."""
    _set(config, 'queue', 'set_mail_queue', queue, PARTS)


def _set(config: Configurator, title: str, directive: str, part: object, order: int) -> None:
    part = _resolved(config, part, f'config.{directive}')
    introspectable = _introspectable(config, title)
    config.registry.registerUtility(directive, _IPartToCome, name=title)

    def register() -> None:
        _register(config, title, _maker(config.registry, part, title, f'config.{directive}'))
        introspectable[title] = config.registry.getUtility(_INTERFACES[title])

    config.action(('mail', title), register, order=order, introspectables=(introspectable,))


def _resolved(config: Configurator, part: object, where: str) -> object:
    try:
        return config.maybe_dotted(part)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f'{where}: {part} cannot be imported ({error}): write the dotted name of what is there'
        ) from error


def _maker(registry: Registry, part: object, title: str, where: str) -> Maker:
    """Return a function that returns the part, or raises ConfigurationError if it is none."""
    interface = _INTERFACES[title]

    def make() -> object:
        made = part
        if not interface.providedBy(made) and callable(made):
            made = made(registry)
        if interface.providedBy(made):
            return made
        # Name the type only: the repr may hold a password.
        got = 'what was given' if made is part else f'what {_name(part)} returned'
        raise ConfigurationError(
            f'{where}: {got} is of the type {type(made).__name__}, which does not provide '
            f'{interface.__name__}: give an object that provides it, or a callable of the registry '
            f'that returns one'
        )

    return make


def _name(part: object) -> str:
    return getattr(part, '__qualname__', type(part).__name__)


def _introspectable(config: Configurator, title: str) -> IIntrospectable:
    return config.introspectable('mail', title, title, f'mail {title}')


def _register(config: Configurator, title: str, make: Maker) -> None:
    """Register a part.

    If a delivery was made before its mailer or queue (with autocommit, or by an earlier commit),
    make it again from the new parts.
    """
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


def _add_settings(config: Configurator) -> None:
    introspectable = _introspectable(config, 'settings')

    def register() -> None:
        registry = config.registry
        given = registry.settings or {}
        settings = _parse(config, given)
        register_settings(registry, settings)
        register_processor(registry)
        if registry.queryUtility(IMailEventDispatcher) is None:
            registry.registerUtility(default_dispatcher(registry), IMailEventDispatcher)
        introspectable['settings'] = _shown(given, settings)

    config.action(('mail', 'settings'), register, order=SETTINGS, introspectables=(introspectable,))


def _parse(config: Configurator, given: Mapping[str, object]) -> MailSettings:
    """Return the settings. Raises one ConfigurationError about all that is wrong with them: the
    addresses and the queue too, and the URL where anything else is, so that one start shows every
    mistake."""
    refuse_pyramid_mailer(config.registry)
    values, problems = read_settings(given, overrides=current_overrides())
    for check in (_check_senders, _check_queue, _check_relay):
        try:
            check(config, values, problems)
        except ConfigurationError as error:
            problems.append(error)
    raise_problems(problems)
    return MailSettings(**values)


def _check_senders(config: Configurator, values: Values, problems: Problems) -> None:
    """Find a wrong address, even if the application sets its own delivery."""
    for name in ('default_sender', 'envelope_sender'):
        try:
            check_senders(**{name: values.get(name)})
        except MessageError as error:
            problem = ConfigurationError(str(error))
            problem.__cause__ = error
            problems.append(problem)


def _check_queue(config: Configurator, values: Values, problems: Problems) -> None:
    """Find a queue that cannot be used when the process starts, and not at its first mail."""
    path = values.get('queue_path')
    if path is None or 'queue_mode' not in values or _is_set(config, 'queue'):
        return
    if is_processor_loading():
        return
    try:
        check_queue_folder(path, group=values['queue_mode'] == 'group')
    except QueueError as error:
        text = str(error)
        where = '' if 'mail.queue_path' in text else f'mail.queue_path = {path}: '
        raise ConfigurationError(f'{where}{text}') from error


def _check_relay(config: Configurator, values: Values, problems: Problems) -> None:
    """Find a wrong URL beside other problems. Without any, the mailer itself is made later."""
    if problems and 'url' in values and 'hostname' in values and not _is_set(config, 'mailer'):
        names = ('url', 'url_source', 'username', 'password', 'hostname')
        relay_mailer(**{name: values[name] for name in names})


def _is_set(config: Configurator, title: str) -> bool:
    """Return whether the application sets a part of its own, already or in this commit."""
    registry = config.registry
    return (
        registry.queryUtility(_INTERFACES[title]) is not None
        or registry.queryUtility(_IPartToCome, name=title) is not None
    )


def _shown(given: Mapping[str, object], settings: MailSettings) -> dict[str, str]:
    """Return the settings as they were written, and the URL in force, without secrets."""
    shown = {
        row.name: '***' if row.secret else str(given[row.name])
        for row in TABLE
        if given.get(row.name) is not None
    }
    return {**shown, 'mail.url': mask_url(settings.url)}


def _add_defaults(config: Configurator) -> None:
    def parts() -> None:
        registry = config.registry
        settings = settings_of(registry)
        if _register_default(config, 'mailer', lambda: default_mailer(registry)):
            warn_of_default_relay(registry)
        if settings.queue_path is not None:
            _register_default(config, 'queue', lambda: default_queue(registry))
        if settings.processor == 'thread':
            _register_processor_thread(registry)

    def delivery() -> None:
        registry = config.registry
        if _register_default(config, 'delivery', lambda: _delivery_of_settings(config)):
            warn_of_lost_mail(registry)
            note_missing_sender(registry)
        if settings_of(registry).processor == 'thread':
            # Here, where every adapter is registered, and not in the first request.
            processor_factory(registry, registry.getUtility(IMailQueue))

    config.action(('mail', 'default parts'), parts, order=DEFAULT_PARTS)
    config.action(('mail', 'default delivery'), delivery, order=DEFAULT_DELIVERY)


def _register_default(config: Configurator, title: str, make: Maker) -> bool:
    """Register what the settings give, unless the application has set something. Return whether
    it is the settings' own."""
    if config.registry.queryUtility(_INTERFACES[title]) is not None:
        return False
    _register(config, title, make)
    introspectable = _introspectable(config, title)
    introspectable[title] = config.registry.getUtility(_INTERFACES[title])
    introspectable.register(config.introspector, config.action_info)
    return True


def _delivery_of_settings(config: Configurator) -> object:
    named = settings_of(config.registry).delivery
    if named in (None, 'direct', 'queue'):
        return default_delivery(config.registry)
    where = f'mail.delivery = {named}'
    return _maker(config.registry, _resolved(config, named, where), 'delivery', where)()


def _register_processor_thread(registry: Registry) -> None:
    """Have the first request start the processor thread; a server that loads the application does
    so at once if mail waits."""
    require_queue(registry.queryUtility(IMailQueue), 'mail.processor = thread')
    if registry.queryUtility(IProcessorThread) is None:
        thread = default_processor_thread(registry)
        registry.registerUtility(thread, IProcessorThread)
        queue = registry.getUtility(IMailQueue)
        registry.registerHandler(lambda event: thread.serve(), (INewRequest,))
        registry.registerHandler(
            lambda event: thread.application_created(queue), (IApplicationCreated,)
        )
