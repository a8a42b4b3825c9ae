"""Delivery to mailboxes by LMTP (RFC 2033), over TCP or a Unix socket."""

from __future__ import annotations

from typing import Unpack

from zope.interface import implementer_only

from ...interfaces import IMailer
from .address import Address, UnixAddress
from .authentication import Identity
from .mailer import SMTPMailer
from .options import (
    DEFAULT_SESSION,
    DEFAULT_TIMEOUTS,
    DEFAULT_TLS,
    SessionOptions,
    SpelledOut,
    Timeouts,
    TLSMode,
    TLSOptions,
)

__all__ = ['LMTPMailer']

_SMTP_PORT = 25


@implementer_only(IMailer)
class LMTPMailer(SMTPMailer):
    """Delivers by LMTP: each recipient has a reply of its own to the whole message.

    The arguments are those of SMTPMailer. Raises ValueError for port 25 as well, which is SMTP's
    (RFC 2033, 5).
    """

    _lmtp = True
    _no_tls_remedy = 'have it offer STARTTLS, or use lmtp+unix: where it is on this machine'

    def __init__(
        self,
        host: str | Address,
        port: int = 24,
        *,
        hostname: str,
        tls: TLSOptions | TLSMode = DEFAULT_TLS,
        identity: Identity | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        options: SessionOptions = DEFAULT_SESSION,
        **spelled_out: Unpack[SpelledOut],
    ) -> None:
        if port == _SMTP_PORT:
            raise ValueError('LMTP is not spoken on port 25: write the port of the LMTP service')
        super().__init__(
            host,
            port,
            hostname=hostname,
            tls=tls,
            identity=identity,
            timeouts=timeouts,
            options=options,
            **spelled_out,
        )

    @classmethod
    def unix(
        cls,
        path: str,
        *,
        hostname: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        options: SessionOptions = DEFAULT_SESSION,
    ) -> LMTPMailer:
        """Return a mailer to the Unix socket at an absolute path. Raises ValueError for another.

        There is neither TLS nor a password: the permissions of the socket decide who may use it.
        """
        return cls(
            UnixAddress(path),
            hostname=hostname,
            tls=TLSOptions('none'),
            timeouts=timeouts,
            options=options,
        )

    def _scheme(self, tls: TLSOptions) -> str:
        return 'lmtp'
