"""The way to a local delivery agent by LMTP (RFC 2033), over TCP or a Unix socket."""

from __future__ import annotations

import os
import socket
from typing import Any

from zope.interface import implementer_only

from ...interfaces import IMailer
from .connection import TIMEOUTS, Timeouts
from .extensions import SessionOptions
from .mailer import Security, SMTPMailer

__all__ = ['LMTPMailer']

_SMTP_PORT = 25


@implementer_only(IMailer)
class LMTPMailer(SMTPMailer):
    """Delivers into mailboxes: each recipient has an answer of its own to the whole message.

    The arguments are those of SMTPMailer. Raises ValueError for port 25, which speaks SMTP
    (RFC 2033, 5), as well.
    """

    _lmtp = True
    _unencrypted = 'have it offer STARTTLS, or use lmtp+unix: where it is on this machine'

    _path: str | None = None

    def __init__(self, host: str, port: int = 24, **arguments: Any) -> None:
        if port == _SMTP_PORT:
            raise ValueError('LMTP is not spoken on port 25: write the port of the LMTP service')
        super().__init__(host, port, **arguments)

    @classmethod
    def unix(
        cls,
        path: str,
        *,
        hostname: str,
        timeouts: Timeouts = TIMEOUTS,
        options: SessionOptions | None = None,
    ) -> LMTPMailer:
        """Return a mailer to the Unix socket at an absolute path; there is neither TLS nor a
        password, since who may open the socket is known by its permissions."""
        if not os.path.isabs(path):
            raise ValueError(f'lmtp+unix:{path} is not absolute')
        mailer = cls(
            'localhost',
            hostname=hostname,
            tls='none',
            timeouts=timeouts,
            options=options or SessionOptions(),
        )
        mailer._path = path
        mailer._look = (
            'mail.url must name the socket of a running service, which this process may write to'
        )
        mailer.name = f'lmtp+unix:{path}'
        return mailer

    def _scheme(self, tls: Security, insecure: bool) -> str:
        return 'lmtp'

    def _dial(self) -> socket.socket:
        if self._path is None:
            return super()._dial()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeouts.connect)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection
