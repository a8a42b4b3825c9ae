"""Sending by SMTP: connect, TLS, authentication; then a session (RFC 5321, 3.1)."""

from __future__ import annotations

import logging
import re
from copy import copy
from typing import Unpack

from zope.interface import implementer

from ...exceptions import MailerUnavailable
from ...interfaces import ISMTPMailer
from ..session import describe_error
from .address import Address, TCPAddress
from .authentication import Bearer, Identity, make_identity
from .connection import SMTPConnection
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
from .protocol.client import SMTPClient
from .protocol.opening import Opening
from .protocol.relay_memory import RelayMemory
from .session import SMTPSession
from .tls import HandshakeSettings

__all__ = ['SMTPMailer']

log = logging.getLogger(__name__)

_HOSTNAME = re.compile(r'[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]')


@implementer(ISMTPMailer)
class SMTPMailer:
    """Sends to a relay by SMTP.

    ``host``: a host name or IP address beside ``port``, or an Address in place of both.
    ``hostname``: our own name, for EHLO. ``tls``: how the connection is encrypted.
    ``identity``: Credentials or Bearer. ``options``: how to speak to the relay.

    In code, ``tls`` may be a mode alone, and the rest be given one by one: ``tls='starttls',
    ca_file='/etc/ca.pem', username='shop', password=password``.

    Raises ValueError for arguments that cannot be used or contradict each other, files of ``tls``
    included. Warns if mail, or a secret, is sent in plain text with ``insecure``.
    """

    _lmtp = False
    _no_tls_remedy = (
        'write smtps: in mail.url for TLS from the first byte (port 465 as a rule), or '
        'smtp+insecure: for plain text over a network that only you can read'
    )

    def __init__(
        self,
        host: str | Address,
        port: int = 25,
        *,
        hostname: str,
        tls: TLSOptions | TLSMode = DEFAULT_TLS,
        identity: Identity | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        options: SessionOptions = DEFAULT_SESSION,
        **spelled_out: Unpack[SpelledOut],
    ) -> None:
        if spelled_out or isinstance(tls, str):
            tls, identity = _grouped(tls, identity, spelled_out)
        if not _HOSTNAME.fullmatch(hostname):
            raise ValueError(f'mail.hostname: {hostname!r} is no host name')
        if identity is not None and tls.mode == 'none' and not tls.insecure:
            raise ValueError(
                f'a {identity.secret_name} is not sent in clear: {self._no_tls_remedy}'
            )
        self.address = TCPAddress(host, port) if isinstance(host, str) else host
        self.name = self.address.url(self._scheme(tls))
        self._hostname = hostname
        self._tls = tls
        self._identity = identity
        self.timeouts = timeouts
        self._options = options
        self._memory = RelayMemory()
        self.handshake = HandshakeSettings(self.host.rstrip('.'), tls)
        if tls.insecure:
            log.warning(
                '%s: the connection is not encrypted; %s sent in plain text',
                self.name,
                f'mail and {identity.secret_name} are' if identity else 'mail is',
            )

    @property
    def host(self) -> str:
        """See ISMTPMailer."""
        return self.address.host

    @property
    def port(self) -> int:
        """See ISMTPMailer."""
        return self.address.port

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name}>'

    def _scheme(self, tls: TLSOptions) -> str:
        return 'smtps' if tls.mode == 'implicit' else 'smtp+insecure' if tls.insecure else 'smtp'

    def connect(self) -> SMTPSession:
        """See IMailer."""
        client = self.client()
        try:
            connection = self.address.open(self.timeouts.connect)
        except (OSError, UnicodeError) as error:
            raise self.connect_error(error) from error
        session = SMTPSession(
            SMTPConnection(connection, block_timeout=self.timeouts.block),
            client,
        )
        try:
            session.open(self.handshake)
        except MailerUnavailable:
            session.close()
            raise
        except BaseException:
            session.abandon()
            raise
        return session

    def client(self) -> SMTPClient:
        """Return the protocol of a new connection, which a driver takes from the greeting on."""
        client = SMTPClient(
            self.name,
            timeouts=self.timeouts,
            options=self._options,
            memory=self._memory,
            lmtp=self._lmtp,
        )
        client.open(
            Opening(
                name=self.name,
                address=self.address,
                hostname=self._hostname,
                tls=self._tls,
                identity=self._identity,
                timeouts=self.timeouts,
                lmtp=self._lmtp,
                no_tls_remedy=self._no_tls_remedy,
                write=client.write,
            )
        )
        return client

    @property
    def bearer(self) -> Bearer | None:
        """What returns the access token of each connection, if there is one: it may block."""
        return self._identity if isinstance(self._identity, Bearer) else None

    def with_identity(self, identity: Identity) -> SMTPMailer:
        """Return the same mailer, with another identity."""
        mailer = copy(self)
        mailer._identity = identity
        return mailer

    def token_error(self, detail: str) -> MailerUnavailable:
        """Return the error for a connection for which there is no access token."""
        return MailerUnavailable(f'{self.name}: AUTH: {detail}; see {Bearer.options}')

    def connect_error(self, error: Exception) -> MailerUnavailable:
        """Return the error for an address to which there is no connection."""
        detail = describe_error(error, self.timeouts.connect)
        return MailerUnavailable(f'{self.name}: connecting: {detail}; {self.address.remedy}')


def _grouped(
    tls: TLSOptions | TLSMode, identity: Identity | None, spelled_out: SpelledOut
) -> tuple[TLSOptions, Identity | None]:
    """Return the options and the identity for arguments that were given one by one.

    Raises ValueError if one was given in both ways, and TypeError for a name that is unknown: a
    misspelt option of TLS must not be ignored.
    """
    given = set(spelled_out)
    if unknown := given - SpelledOut.__annotations__.keys():
        raise TypeError(f'unknown argument {", ".join(sorted(unknown))}')
    if given & {'username', 'password', 'token'}:
        if identity is not None:
            raise ValueError('identity: leave out username, password and token beside it')
        identity = make_identity(
            spelled_out.get('username'), spelled_out.get('password'), spelled_out.get('token')
        )
    if tls is DEFAULT_TLS:
        tls = 'auto'
    if isinstance(tls, TLSOptions):
        if given & {'insecure', 'ca_file', 'client_cert', 'client_key'}:
            raise ValueError('tls: leave out insecure and the files beside TLSOptions')
        return tls, identity
    options = TLSOptions(
        tls,
        spelled_out.get('ca_file'),
        spelled_out.get('client_cert'),
        spelled_out.get('client_key'),
        spelled_out.get('insecure', False),
    )
    return options, identity
