"""What an application is warned of when it starts: settings that work, and may lose mail."""

from __future__ import annotations

import logging
import os

from pyramid.registry import Registry

from ..interfaces import IMailer, IMailQueue
from ..mailers.failover import FailoverMailer
from ..mailers.sendmail import SendmailMailer
from ..mailers.smtp.mailer import SMTPMailer
from ..settings.credentials import mask_url, split_urls
from ..settings.given import text_of
from ..settings.overrides import current_overrides, is_processor_loading
from .factories import settings_of

__all__ = ['note_missing_sender', 'warn_of_default_relay', 'warn_of_lost_mail']

log = logging.getLogger(__name__)


def warn_of_default_relay(registry: Registry) -> None:
    """Warn if the settings do not say where mail goes."""
    settings = settings_of(registry)
    given = {**(registry.settings or {}), **current_overrides()}
    if settings.url_source in ('MAIL_URL', '--set mail.url') or any(
        text_of(name, given.get(name)) for name in ('mail.url', 'mail.host')
    ):
        return
    log.warning(
        'neither mail.url nor mail.host is set: mail goes to %s. Write mail.url; a setting in '
        '[DEFAULT], or given to pserve as key=value, does not reach the application',
        mask_url(settings.url),
    )


def warn_of_lost_mail(registry: Registry) -> None:
    """Warn if mail goes to a relay and no queue keeps what the relay cannot take.

    A mailer of the application's own, ``null:`` and ``file:`` take everything. Tests are not
    warned: pytest says in the environment that they run.
    """
    if 'PYTEST_VERSION' in os.environ:
        return
    mailer = registry.getUtility(IMailer)
    last_url = split_urls(settings_of(registry).url)[-1]
    if (
        registry.queryUtility(IMailQueue) is not None
        or not isinstance(mailer, SMTPMailer | SendmailMailer | FailoverMailer)
        or (isinstance(mailer, FailoverMailer) and last_url.startswith(('file:', 'null:')))
    ):
        return
    log.warning(
        'mail.queue_path is not set: mail that %s does not take at once is lost, and so is mail on '
        'its way when the process ends. Write mail.queue_path = %%(here)s/mail',
        mailer.name,
    )


def note_missing_sender(registry: Registry) -> None:
    """Log that each message needs a sender of its own. Many applications give one: no warning, and
    no word in a process that only delivers."""
    if settings_of(registry).default_sender is None and not is_processor_loading():
        log.info(
            'mail.default_sender is not set: send refuses a message without a sender of its own'
        )
