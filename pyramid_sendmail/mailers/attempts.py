"""Which mailer to connect with, for a driver that does not block."""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

from ..exceptions import MailerUnavailable
from ..interfaces import IMailer
from .failover import FailoverMailer
from .smtp.mailer import SMTPMailer

__all__ = ['Attempts', 'can_be_driven', 'connection_attempts']

Attempts = Generator[SMTPMailer, MailerUnavailable | None, None]
"""Yields the mailer to connect with. Send its error, or None when it has connected; close the
generator if it has done neither. Raises MailerUnavailable when no mailer is left."""


def can_be_driven(mailer: IMailer) -> bool:
    """Return whether the connections of a mailer can be driven without blocking: by SMTP or LMTP,
    and with a ``connect`` that is ours."""
    if isinstance(mailer, FailoverMailer):
        return all(map(can_be_driven, mailer.mailers))
    connect = getattr(type(mailer), 'connect', None)
    return connect is SMTPMailer.connect and 'connect' not in vars(mailer)


def connection_attempts(mailer: IMailer) -> Attempts:
    """Return the attempts of one connection, for a mailer that can be driven."""
    if isinstance(mailer, FailoverMailer):
        return cast(Attempts, mailer.attempts())
    return _one_attempt(cast(SMTPMailer, mailer))


def _one_attempt(mailer: SMTPMailer) -> Attempts:
    error = yield mailer
    if error is not None:
        raise error
