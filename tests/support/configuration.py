"""Configured registries for tests, and parts that settings and directives can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.registry import Registry
from pyramid.request import Request, apply_request_extensions
from zope.interface import implementer

from pyramid_sendmail import Message
from pyramid_sendmail.interfaces import IBrowsableQueue, IMailDelivery, IMailer, IMailQueue
from pyramid_sendmail.settings import MailSettings, parse_settings
from tests.support.doubles import RecordingMailer

SECRET = 's3kr1t'

HELLO = Message(subject='Hi', to='ann@example.org', text='Hello', sender='shop@example.org')


def configured(*includes: Any, **given: Any) -> Configurator:
    """Return a configurator as in an application's main, not yet committed.

    ``given``: the settings, without their ``mail.``.
    """
    settings = {f'mail.{name}': value for name, value in given.items()}
    config = Configurator(settings=settings)
    config.include('pyramid_sendmail')
    for include in includes:
        config.include(include)
    return config


def committed(*includes: Any, **given: Any) -> Registry:
    """Return the registry of a committed configuration."""
    config = configured(*includes, **given)
    config.commit()
    return config.registry


def failure(config: Configurator) -> str:
    """Return the text of the ConfigurationError that the commit raises."""
    with pytest.raises(ConfigurationError) as caught:
        config.commit()
    return text_of(caught.value)


def text_of(error: ConfigurationError) -> str:
    """Return the text of an error; Pyramid wraps one that an action raises."""
    return str(getattr(error, 'evalue', error))


def parse(environ: Mapping[str, str] | None = None, **given: Any) -> MailSettings:
    """Parse settings given without their ``mail.``, in an empty environment."""
    return parse_settings({f'mail.{name}': value for name, value in given.items()}, environ or {})


def refusal(environ: Mapping[str, str] | None = None, **given: Any) -> str:
    """Return the text of the ConfigurationError about these settings."""
    with pytest.raises(ConfigurationError) as caught:
        parse(environ, **given)
    return str(caught.value)


def request_of(registry: Registry) -> Any:
    """Return a request of the application, with its extensions."""
    request = Request.blank('/')
    request.registry = registry
    apply_request_extensions(request)
    return request


def parts(registry: Registry) -> tuple[Any, Any, Any]:
    """Return the registered delivery, mailer and queue, None for a missing one."""
    delivery, mailer, queue = map(registry.queryUtility, (IMailDelivery, IMailer, IMailQueue))
    return delivery, mailer, queue


def sends_by(delivery: Any, mailer: RecordingMailer) -> bool:
    """Return whether a delivery uses this mailer, by sending a mail."""
    before = mailer.accepted('ann@example.org')
    delivery.send_now(HELLO)
    return mailer.accepted('ann@example.org') == before + 1


def puts_into(queue: IBrowsableQueue, registry: Registry) -> bool:
    """Return whether a mail that a request sends is in this queue when its transaction ends."""
    before = len(list(queue.mails()))
    request = request_of(registry)
    with request.tm:
        request.mailer.send(HELLO)
    return len(list(queue.mails())) == before + 1


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


# What dotted names lead to:

delivery = Delivery()
mailer = RecordingMailer('of the module:')
nothing = None
number = 25


def url_with_password(registry: Registry) -> str:
    """Return what is no mailer, and must not be shown."""
    return f'smtp://ann:{SECRET}@relay'
