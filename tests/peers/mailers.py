"""A mailer for a running relay."""

from __future__ import annotations

from typing import Any

from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.peers.relay import Relay
from tests.peers.roots import HOST, TIMEOUT

__all__ = ['mailer']


TIMEOUTS = Timeouts().capped(TIMEOUT)


def mailer(relay: Relay, port: int | None = None, **options: Any) -> SMTPMailer:
    """Return a mailer for the relay's plain port, unless another is given."""
    options.setdefault('hostname', 'web.example.org')
    return SMTPMailer(HOST, port or relay.ports.plain, timeouts=TIMEOUTS, **options)
