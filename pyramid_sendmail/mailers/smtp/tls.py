"""TLS contexts of a mailer, and what to do when a handshake fails."""

from __future__ import annotations

import errno
import logging
import os
import re
import ssl
from typing import Any

from .options import TLSOptions

__all__ = ['HandshakeSettings', 'ReloadingContext', 'client_context', 'remedy']

log = logging.getLogger(__name__)


class ReloadingContext:
    """Returns a TLS context, made anew when one of its files was replaced.

    Raises ValueError for files that cannot be used. If files become unusable later (as a rule a
    certificate was replaced and its key not yet), a warning is logged and the former context is
    used until they are good again.
    """

    def __init__(self, options: TLSOptions) -> None:
        self._options = options
        self._stamps = self._warned = self._read_stamps()
        self._context = self._make()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection."""
        stamps = self._read_stamps()
        if stamps != self._stamps:
            try:
                self._context = self._make()
                self._stamps = stamps
            except ValueError as error:
                if stamps != self._warned:
                    log.warning('%s; the former files stay in use', error)
                self._warned = stamps
        return self._context

    def _make(self) -> ssl.SSLContext:
        return client_context(
            ca_file=self._options.ca_file,
            client_cert=self._options.client_cert,
            client_key=self._options.client_key,
        )

    def _read_stamps(self) -> list[tuple[int, ...]]:
        options = self._options
        paths = (options.ca_file, options.client_cert, options.client_key)
        return [_stamp(path) for path in paths if path is not None]


class HandshakeSettings:
    """What a TLS handshake with a relay needs: its ``host`` name, and a context.

    Raises ValueError for files of ``options`` that cannot be used.
    """

    def __init__(self, host: str, options: TLSOptions) -> None:
        self.host = host
        self._options = options
        self._contexts = ReloadingContext(options) if options.has_files else None

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection."""
        if self._contexts is None:
            self._contexts = ReloadingContext(self._options)
        return self._contexts.context()


def _stamp(path: str) -> tuple[int, ...]:
    """Return what changes when the file is replaced; () if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino


class _Socket(ssl.SSLSocket):
    """Closes itself if the connection was reset before the handshake.

    ssl.SSLSocket would go on without TLS, or leave the descriptor open with no owner.
    """

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error


def client_context(
    *, ca_file: str | None = None, client_cert: str | None = None, client_key: str | None = None
) -> ssl.SSLContext:
    """Return a context that verifies chain and host name, by TLS 1.2 or newer (RFC 8314).

    For the files see TLSOptions. Raises ValueError naming the option.
    """
    if client_key is not None and client_cert is None:
        raise ValueError('client_key= needs client_cert= beside it')
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f'ca_file={ca_file} cannot be used: {_reason(error)}') from error
    context.sslsocket_class = _Socket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525, 2
    if client_cert is not None:
        try:
            context.load_cert_chain(client_cert, client_key, password=_no_password)
        except OSError as error:
            files = f'client_cert={client_cert}'
            if client_key is not None:
                files += f', client_key={client_key}'
            raise ValueError(f'{files} cannot be used: {_reason(error)}') from error
    return context


def _no_password() -> str:
    raise ValueError('client_key= is encrypted: give a key without a pass phrase')


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f'no PEM file of the right kind ({error.reason or error})'
    return error.strerror or str(error)


# X509_V_ERR_* of OpenSSL's x509_vfy.h
_EXPIRED = frozenset({9, 10})
_WRONG_NAME = frozenset({62, 64})

# OpenSSL's names, in one version or another, for a peer that does not speak TLS.
_NO_TLS = frozenset({'WRONG_VERSION_NUMBER', 'PACKET_LENGTH_TOO_LONG', 'RECORD_LAYER_FAILURE'})

_OLD_TLS = frozenset({'TLSV1_ALERT_PROTOCOL_VERSION', 'UNSUPPORTED_PROTOCOL', 'WRONG_SSL_VERSION'})

# Alerts of a peer about our certificate, or about our having none.
_OUR_CERTIFICATE = re.compile('ALERT_(.*CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)')


def remedy(error: BaseException, *, speaks_tls: bool = False) -> str:
    """Return what to do about TLS that failed, or ''.

    ``speaks_tls``: the relay has shown that it speaks TLS.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            return (
                'write the name that its certificate carries as the host in mail.url; a common '
                'name alone does not count (RFC 9525)'
            )
        if error.verify_code in _EXPIRED:
            return 'its certificate must be renewed, or the clock here is wrong'
        return 'for an authority of your own add ?ca_file=/path/to/ca.pem to mail.url'
    reason = getattr(error, 'reason', None) or ''
    if reason in _NO_TLS and not speaks_tls:
        return 'the port may speak plain SMTP first: write smtp: (STARTTLS) instead of smtps:'
    if reason in _OLD_TLS:
        return 'it must speak TLS 1.2 or newer'
    if _OUR_CERTIFICATE.search(reason):
        return 'it may want another certificate of ours: see client_cert= in mail.url'
    return ''
