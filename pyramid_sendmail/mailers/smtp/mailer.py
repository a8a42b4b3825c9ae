"""Sending by SMTP: connect, TLS, authentication; then a session (RFC 5321, 3.1)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Unpack

from zope.interface import implementer

from ...envelope import Reply
from ...exceptions import MailerUnavailable
from ...interfaces import ISMTPMailer
from ..session import describe_error
from .address import Address, TCPAddress
from .authentication import Identity, choose_mechanism, make_identity
from .chunking import ChunkingSession
from .connection import SMTPConnection, reply_text
from .extensions import starttls_remedy
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
from .session import SMTPSession
from .tls import ReloadingContext
from .tls import remedy as tls_remedy

__all__ = ['SMTPMailer']

log = logging.getLogger(__name__)

_HOSTNAME = re.compile(r'[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]')

_NO_EHLO = frozenset({500, 501, 502, 504})

_BAD_ARGUMENT = 501

# Some relays spelt it so before the RFC: AUTH=LOGIN.
_OLD_AUTH = re.compile('^AUTH=', re.IGNORECASE)

_MAX_OFFER_CHARACTERS = 200


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
        self._address = TCPAddress(host, port) if isinstance(host, str) else host
        self.name = self._address.url(self._scheme(tls))
        self._hostname = hostname
        self._tls = tls
        self._identity = identity
        self._timeouts = timeouts
        self._options = options
        self._contexts: ReloadingContext | None = None
        if tls.has_files:
            self._contexts = ReloadingContext(tls)
        if tls.insecure:
            log.warning(
                '%s: the connection is not encrypted; %s sent in plain text',
                self.name,
                f'mail and {identity.secret_name} are' if identity else 'mail is',
            )

    @property
    def host(self) -> str:
        """See ISMTPMailer."""
        return self._address.host

    @property
    def port(self) -> int:
        """See ISMTPMailer."""
        return self._address.port

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name}>'

    def _scheme(self, tls: TLSOptions) -> str:
        return 'smtps' if tls.mode == 'implicit' else 'smtp+insecure' if tls.insecure else 'smtp'

    def connect(self) -> SMTPSession:
        """See IMailer."""
        with self._phase('connecting', self._address.remedy):
            connection = SMTPConnection(
                self._address.open(self._timeouts.connect), block_timeout=self._timeouts.block
            )
        try:
            extensions = self._open_session(connection)
        except MailerUnavailable:
            connection.quit(self._timeouts.quit)
            raise
        except BaseException:
            connection.close()
            raise
        return self._session_class(extensions)(
            connection,
            name=f'{self.name} ({connection.version})' if connection.secure else self.name,
            extensions=extensions,
            timeouts=self._timeouts,
            options=self._options,
            lmtp=self._lmtp,
        )

    def _session_class(self, extensions: dict[str, str]) -> type[SMTPSession]:
        options = self._options
        if (
            options.window > 1
            and options.pipelining
            and not self._lmtp
            and {'PIPELINING', 'CHUNKING'} <= extensions.keys()
        ):
            return ChunkingSession
        return SMTPSession

    def _open_session(self, connection: SMTPConnection) -> dict[str, str]:
        """Do everything up to the first mail, and return the relay's extensions."""
        if self._tls.mode == 'implicit':
            self._encrypt(connection, 'the TLS handshake', self._timeouts.greeting)
        with self._phase('the greeting', self._no_greeting_remedy()):
            greeting = connection.reply(self._timeouts.greeting)
        if greeting.code != 220:
            self._refused('the greeting', greeting)
        extensions = self._hello(connection)
        if self._wants_starttls(extensions):
            self._start_tls(connection)
            # What came before TLS may be an attacker's (RFC 3207, 4.2).
            extensions = self._hello(connection)
        if self._identity is not None:
            self._authenticate(connection, self._identity, extensions)
        return extensions

    def _no_greeting_remedy(self) -> str:
        if self.port == 465 and self._tls.mode != 'implicit':
            return 'port 465 speaks TLS from the first byte: write smtps: in mail.url'
        return ''

    def _hello(self, connection: SMTPConnection) -> dict[str, str]:
        """Send EHLO or LHLO, HELO to a relay older than EHLO, and return the extensions."""
        verb = 'LHLO' if self._lmtp else 'EHLO'
        with self._phase(verb):
            connection.write(f'{verb} {self._hostname}\r\n'.encode('ascii'))
            code, lines = connection.lines(self._timeouts.command)
        if code in _NO_EHLO and not self._lmtp:
            reply = self._ask(connection, 'HELO', self._hostname)
            if reply.code // 100 != 2:
                self._refused('HELO', reply, self._hello_remedy(reply.code, ''))
            return {}
        if code // 100 != 2:
            remedy = self._hello_remedy(code, 'see mail.hostname')
            self._refused(verb, Reply(code, reply_text(lines)), remedy)
        extensions: dict[str, str] = {}
        for line in lines[1:]:
            keyword, _, parameters = _OLD_AUTH.sub('AUTH ', line).partition(' ')
            keyword = keyword.upper()
            extensions[keyword] = f'{extensions.get(keyword, "")} {parameters}'.strip()
        return extensions

    def _hello_remedy(self, code: int, other: str) -> str:
        """Return what to do about a refused greeting; ``other``: for a code of another kind."""
        if code not in _NO_EHLO:
            return other
        if code == _BAD_ARGUMENT:
            return f'it does not accept our name {self._hostname}: see mail.hostname'
        scheme = 'smtp' if self._lmtp else 'lmtp'
        return f'it may speak another protocol: {scheme}: in mail.url'

    def _wants_starttls(self, extensions: dict[str, str]) -> bool:
        offered = 'STARTTLS' in extensions
        mode = self._tls.mode
        if mode == 'starttls' or (mode == 'auto' and self._identity):
            if not offered:
                self._fail('STARTTLS', 'the relay does not offer it', self._no_tls_remedy)
            return True
        return mode == 'auto' and offered and not self._address.is_loopback

    def _start_tls(self, connection: SMTPConnection) -> None:
        reply = self._ask(connection, 'STARTTLS')
        if reply.code // 100 != 2:
            self._refused('STARTTLS', reply)
        self._encrypt(connection, 'STARTTLS', self._timeouts.command)

    def _encrypt(self, connection: SMTPConnection, phase: str, timeout: float) -> None:
        if self._contexts is None:
            self._contexts = ReloadingContext(self._tls)
        try:
            connection.start_tls(self._contexts.context(), self.host.rstrip('.'), timeout)
        except OSError as error:
            remedy = tls_remedy(error, speaks_tls=phase == 'STARTTLS')
            raise self._unavailable(phase, describe_error(error, timeout), remedy) from error

    def _authenticate(
        self, connection: SMTPConnection, identity: Identity, extensions: dict[str, str]
    ) -> None:
        """Authenticate with one attempt: a second guess could lock the account."""
        if not connection.secure and self._tls.mode != 'none':
            raise AssertionError('a password over plain text')
        offered = extensions.get('AUTH')
        if offered is None:
            self._fail(
                'AUTH',
                'the relay does not offer it',
                f'leave out {identity.options}, or use its submission port (587, 465)',
            )
        mechanism = choose_mechanism(offered, identity.mechanisms)
        if mechanism is None:
            supported = ' or '.join(identity.mechanisms)
            offer = offered[:_MAX_OFFER_CHARACTERS] or 'no mechanism'
            self._fail('AUTH', f'the relay offers {offer}, and not {supported}')
        try:
            proof = identity.proof()
        except Exception as error:
            problem = ' '.join(f'there is no token: {error} ({type(error).__name__})'.split())
            raise self._unavailable('AUTH', problem, f'see {identity.options}') from error
        with self._phase('AUTH'):
            reply = proof.present(connection, mechanism, self._timeouts.command)
        if reply.code // 100 != 2:
            reply = Reply(reply.code, proof.hide(reply.text))
            remedy = f'see {identity.options}' if reply.code // 100 == 5 else ''
            remedy = starttls_remedy(reply, secure=connection.secure) or remedy
            self._refused(f'AUTH {mechanism}', reply, remedy)
        connection.secrets = proof.secrets

    def _ask(self, connection: SMTPConnection, verb: str, argument: str = '') -> Reply:
        with self._phase(verb):
            connection.write(f'{verb} {argument}'.strip().encode('ascii') + b'\r\n')
            return connection.reply(self._timeouts.command)

    @contextmanager
    def _phase(self, phase: str, remedy: str = '') -> Iterator[None]:
        """Raise MailerUnavailable, naming the phase, for what goes wrong inside."""
        try:
            yield
        except (OSError, UnicodeError) as error:
            detail = describe_error(error, self._timeouts.connect)
            raise self._unavailable(phase, detail, self._late_remedy(error) or remedy) from error

    def _late_remedy(self, error: BaseException) -> str:
        """Return what to do if our certificate was refused late, by TLS 1.3 (RFC 8446, 4.4.2)."""
        if self._contexts is None:
            return ''
        return tls_remedy(error.__cause__ or error, speaks_tls=True)

    def _refused(self, phase: str, reply: Reply, remedy: str = '') -> NoReturn:
        self._fail(phase, f'the relay answered {reply}', remedy)

    def _fail(self, phase: str, detail: str, remedy: str = '') -> NoReturn:
        raise self._unavailable(phase, detail, remedy)

    def _unavailable(self, phase: str, detail: str, remedy: str) -> MailerUnavailable:
        text = f'{self.name}: {phase}: {detail}'
        return MailerUnavailable(f'{text}; {remedy}' if remedy else text)


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
