"""E-mail from Pyramid applications, sent if and only if the transaction commits.

.. code-block:: python

    def includeme(config):
        config.include('pyramid_sendmail')

    def sign_up(request):
        to = [(request.params['name'], request.params['address'])]
        message = Message(subject='Welcome', to=to, text='Good to see you.')
        return {'message_id': request.mailer.send(message)}
"""

from __future__ import annotations

from email.headerregistry import Address

from pyramid.config import Configurator
from pyramid.request import Request

from .config import add_directives
from .events.types import MailTagPredicate
from .exceptions import (
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    MessageError,
    NoActiveTransaction,
    QueueError,
    SendmailError,
)
from .interfaces import IMailDelivery
from .message import Attachment, Message

__all__ = [
    'Address',
    'Attachment',
    'MailAmbiguous',
    'MailRefused',
    'MailerUnavailable',
    'Message',
    'MessageError',
    'NoActiveTransaction',
    'QueueError',
    'SendmailError',
    'includeme',
]


def mailer(request: Request) -> IMailDelivery:
    """Return ``request.mailer``: the registered delivery, bound to ``request.tm``."""
    delivery: IMailDelivery = request.registry.getUtility(IMailDelivery)
    return delivery.bind(request.tm, request.environ)


def includeme(config: Configurator) -> None:
    """Register the delivery, mailer and queue that the ``mail.*`` settings describe.

    Adds ``request.mailer``, the directives ``config.set_mail_delivery``, ``config.set_mailer`` and
    ``config.set_mail_queue``, and the subscriber predicate ``mail_tag``. Includes ``pyramid_tm``.
    Starts no thread, opens no connection and creates no file. The commit of the configuration
    raises ConfigurationError for settings that cannot be used, a queue that is neither there nor
    can be made included.
    """
    config.include('pyramid_tm')
    add_directives(config)
    config.add_subscriber_predicate('mail_tag', MailTagPredicate)
    config.add_request_method(mailer, reify=True)
