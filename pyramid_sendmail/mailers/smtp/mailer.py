"""The way to a relay by SMTP: connect, TLS, credentials; then a session (RFC 5321, 3.1)."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

from zope.interface import implementer

from ...envelope import Reply
from ...exceptions import MailerUnavailable
from ...interfaces import ISMTPMailer
from .authentication import Bearer, Credentials, Identity, Token, mechanism
from .connection import TIMEOUTS, SMTPConnection, Timeouts, describe, dial, said
from .extensions import SessionOptions
from .session import SMTPSession

if TYPE_CHECKING:
    import socket

    from .tls import Trust

__all__ = ['SMTPMailer', 'Security']

log = logging.getLogger(__name__)

Security = Literal['auto', 'starttls', 'implicit', 'none']

_HOSTNAME = re.compile(r'[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]')

_NO_EHLO = frozenset({500, 501, 502, 504})

_OLD_SPELLING = re.compile('^AUTH=', re.IGNORECASE)

_SHOWN = 200
"""Characters of the mechanisms that a relay offers."""

_OPTIONS = SessionOptions()


@implementer(ISMTPMailer)
class SMTPMailer:
    """Sends to a relay host by SMTP.

    ``hostname``: our own name, for EHLO. ``tls``: 'implicit' is TLS from the first byte;
    'starttls' demands STARTTLS; 'auto' demands it beside a password, uses it where the relay
    offers it, and leaves it be on a loopback address; 'none' speaks plain text. Whatever is
    TLS is verified, chain and host name. A password goes over TLS, or with tls='none' and
    ``insecure``, which logs a warning.

    ``token``: returns an access token, which is asked for at each connection, in place of a
    password. ``options``: how we speak.

    ``ca_file``, ``client_cert``, ``client_key``: PEM files, see
    :func:`~pyramid_sendmail.mailers.smtp.tls.client_context`.

    Raises ValueError for arguments that cannot be used or contradict each other.
    """

    _lmtp = False
    _look = 'see the host and port in mail.url'
    _unencrypted = (
        'write smtps: in mail.url for TLS from the first byte (port 465 as a rule), or '
        'smtp+insecure: to speak plain text over a line that nobody else can read'
    )

    def __init__(
        self,
        host: str,
        port: int = 25,
        *,
        hostname: str,
        tls: Security = 'auto',
        username: str | None = None,
        password: str | None = None,
        token: Token | None = None,
        insecure: bool = False,
        ca_file: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        timeouts: Timeouts = TIMEOUTS,
        options: SessionOptions = _OPTIONS,
    ) -> None:
        if not _HOSTNAME.fullmatch(hostname):
            raise ValueError(f'mail.hostname: {hostname!r} is no host name')
        if token is not None and (password or not username):
            raise ValueError('a token goes with a user name, and without a password')
        if token is None and bool(username) != bool(password):
            raise ValueError('mail.username and mail.password need each other')
        if insecure and tls != 'none':
            raise ValueError(f"insecure goes with tls='none', not with tls={tls!r}")
        if username and tls == 'none' and not insecure:
            secret = 'a token' if token else 'a password'
            raise ValueError(f'{secret} is not sent in clear: {self._unencrypted}')
        self.host = host
        self.port = port
        place = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
        self.name = f'{self._scheme(tls, insecure)}://{place}'
        self._hostname = hostname
        self._tls = tls
        self._identity: Identity | None = None
        if username:
            self._identity = (
                Bearer(username, token) if token else Credentials(username, password or '')
            )
        self._files = {'ca_file': ca_file, 'client_cert': client_cert, 'client_key': client_key}
        self._timeouts = timeouts
        self._options = options
        self._trust: Trust | None = None
        if any(self._files.values()):
            self._trust = self._new_trust()
        if insecure:
            log.warning(
                '%s speaks plain text: whoever is on the line reads the mail%s',
                self.name,
                f' and the {"token" if token else "password"}' if self._identity else '',
            )

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name}>'

    def _scheme(self, tls: Security, insecure: bool) -> str:
        return 'smtps' if tls == 'implicit' else 'smtp+insecure' if insecure else 'smtp'

    def _dial(self) -> socket.socket:
        return dial(self.host, self.port, self._timeouts.connect)

    def connect(self) -> SMTPSession:
        """See IMailer."""
        with self._phase('connecting', self._look):
            connection = SMTPConnection(self._dial(), block=self._timeouts.block)
        try:
            extensions = self._introduce(connection)
        except MailerUnavailable:
            connection.farewell(self._timeouts.quit)
            raise
        except BaseException:
            connection.close()
            raise
        return self._kind(extensions)(
            connection,
            name=f'{self.name} ({connection.version})' if connection.secure else self.name,
            extensions=extensions,
            timeouts=self._timeouts,
            options=self._options,
            lmtp=self._lmtp,
        )

    def _kind(self, extensions: dict[str, str]) -> type[SMTPSession]:
        """How the mail goes: by LMTP, and where the relay cannot do better, one by one."""
        options = self._options
        if (
            options.window > 1
            and options.pipelining
            and not self._lmtp
            and {'PIPELINING', 'CHUNKING'} <= extensions.keys()
        ):
            from .chunking import ChunkingSession

            return ChunkingSession
        return SMTPSession

    def _introduce(self, connection: SMTPConnection) -> dict[str, str]:
        if self._tls == 'implicit':
            self._upgrade(connection, 'the TLS handshake', self._timeouts.greeting)
        with self._phase('the greeting', self._mute()):
            greeting = connection.reply(self._timeouts.greeting)
        if greeting.code != 220:
            self._refused('the greeting', greeting)
        extensions = self._hello(connection)
        if self._wants_starttls(extensions):
            self._start_tls(connection)
            # What was said before came from anybody (RFC 3207, 4.2).
            extensions = self._hello(connection)
        if self._identity is not None:
            self._authenticate(connection, self._identity, extensions)
        return extensions

    def _mute(self) -> str:
        if self.port == 465 and self._tls != 'implicit':
            return 'port 465 speaks TLS from the first byte: write smtps: in mail.url'
        return ''

    def _hello(self, connection: SMTPConnection) -> dict[str, str]:
        """Say EHLO, or HELO to a relay of before 1995, and return what it can do."""
        verb = 'LHLO' if self._lmtp else 'EHLO'
        with self._phase(verb):
            connection.write(f'{verb} {self._hostname}\r\n'.encode('ascii'))
            code, lines = connection.lines(self._timeouts.command)
        if code in _NO_EHLO and not self._lmtp:
            reply = self._ask(connection, 'HELO', self._hostname)
            if reply.code // 100 != 2:
                self._refused('HELO', reply, _stranger('lmtp') if reply.code in _NO_EHLO else '')
            return {}
        if code // 100 != 2:
            remedy = _stranger('smtp') if code in _NO_EHLO else 'see mail.hostname'
            self._refused(verb, Reply(code, said(lines)), remedy)
        extensions: dict[str, str] = {}
        for line in lines[1:]:
            # AUTH=LOGIN is how some relays spelt it before the RFC.
            keyword, _, parameters = _OLD_SPELLING.sub('AUTH ', line).partition(' ')
            keyword = keyword.upper()
            extensions[keyword] = f'{extensions.get(keyword, "")} {parameters}'.strip()
        return extensions

    def _wants_starttls(self, extensions: dict[str, str]) -> bool:
        offered = 'STARTTLS' in extensions
        if self._tls == 'starttls' or (self._tls == 'auto' and self._identity):
            if not offered:
                self._fail('STARTTLS', 'the relay does not offer it', self._unencrypted)
            return True
        return self._tls == 'auto' and offered and not _is_loopback(self.host)

    def _start_tls(self, connection: SMTPConnection) -> None:
        reply = self._ask(connection, 'STARTTLS')
        if reply.code // 100 != 2:
            self._refused('STARTTLS', reply)
        self._upgrade(connection, 'STARTTLS', self._timeouts.command)

    def _upgrade(self, connection: SMTPConnection, phase: str, timeout: float) -> None:
        from . import tls

        if self._trust is None:
            self._trust = self._new_trust()
        try:
            connection.upgrade(self._trust.context(), self.host.rstrip('.'), timeout)
        except OSError as error:
            remedy = tls.remedy(error, agreed=phase == 'STARTTLS')
            raise self._unavailable(phase, describe(error, timeout), remedy) from error

    def _new_trust(self) -> Trust:
        from . import tls

        return tls.Trust(**self._files)

    def _authenticate(
        self, connection: SMTPConnection, identity: Identity, extensions: dict[str, str]
    ) -> None:
        """Say who we are, once: another guess could lock us out."""
        if not connection.secure and self._tls != 'none':
            raise AssertionError('a password over plain text')
        offered = extensions.get('AUTH')
        if offered is None:
            self._fail(
                'AUTH',
                'the relay does not offer it',
                f'leave out {identity.options}, or use its submission port (587, 465)',
            )
        chosen = mechanism(offered, identity.mechanisms)
        if chosen is None:
            spoken = ' or '.join(identity.mechanisms)
            self._fail('AUTH', f'the relay offers {offered[:_SHOWN]}, and not {spoken}')
        try:
            proof = identity.proof()
        except Exception as error:
            problem = ' '.join(f'there is no token: {error} ({type(error).__name__})'.split())
            raise self._unavailable('AUTH', problem, f'see {identity.options}') from error
        with self._phase('AUTH'):
            reply = proof.present(connection, chosen, self._timeouts.command)
        if reply.code // 100 != 2:
            reply = Reply(reply.code, proof.hide(reply.text))
            remedy = f'see {identity.options}' if reply.code // 100 == 5 else ''
            self._refused(f'AUTH {chosen}', reply, remedy)
        connection.secrets = proof.secrets

    def _ask(self, connection: SMTPConnection, verb: str, argument: str = '') -> Reply:
        with self._phase(verb):
            connection.write(f'{verb} {argument}'.strip().encode('ascii') + b'\r\n')
            return connection.reply(self._timeouts.command)

    @contextmanager
    def _phase(self, phase: str, remedy: str = '') -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeError) as error:
            detail = describe(error, self._timeouts.connect)
            raise self._unavailable(phase, detail, self._late_remedy(error) or remedy) from error

    def _late_remedy(self, error: BaseException) -> str:
        """What to do where our certificate was looked at after the handshake (RFC 8446, 4.4.2)."""
        if self._trust is None:
            return ''
        from . import tls

        return tls.remedy(error.__cause__ or error, agreed=True)

    def _refused(self, phase: str, reply: Reply, remedy: str = '') -> NoReturn:
        self._fail(phase, f'the relay answered {reply}', remedy)

    def _fail(self, phase: str, detail: str, remedy: str = '') -> NoReturn:
        raise self._unavailable(phase, detail, remedy)

    def _unavailable(self, phase: str, detail: str, remedy: str) -> MailerUnavailable:
        text = f'{self.name}: {phase}: {detail}'
        return MailerUnavailable(f'{text}; {remedy}' if remedy else text)


def _stranger(scheme: str) -> str:
    return f'it may speak another protocol: {scheme}: in mail.url'


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip('.').lower() == 'localhost'
