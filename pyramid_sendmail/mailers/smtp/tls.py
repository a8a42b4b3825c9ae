"""Whom to trust: the TLS context of a mailer, and what to say when a handshake fails."""

from __future__ import annotations

import errno
import logging
import os
import re
import ssl
from typing import Any

__all__ = ['Trust', 'client_context', 'remedy']

log = logging.getLogger(__name__)


class Trust:
    """Gives a mailer's context, made anew when one of its files has been replaced.

    ``files``: the arguments of :func:`client_context`, which raises ValueError for them. Files
    that become unusable later (a certificate whose key is still to come, as a rule) are warned
    of, and what they were before is used until they are good.
    """

    def __init__(self, **files: str | None) -> None:
        self._files = files
        self._stamps = self._warned = self._look()
        self._context = client_context(**files)

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection."""
        stamps = self._look()
        if stamps != self._stamps:
            try:
                self._context = client_context(**self._files)
                self._stamps = stamps
            except ValueError as error:
                if stamps != self._warned:
                    log.warning('%s; it is used as it was before', error)
                self._warned = stamps
        return self._context

    def _look(self) -> list[tuple[int, ...]]:
        return [_stamp(path) for path in self._files.values() if path is not None]


def _stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino


class _Socket(ssl.SSLSocket):
    """Is closed where its connection has been reset before the handshake: of such a connection
    ssl.SSLSocket makes one without TLS, or leaves it open and belonging to nobody."""

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

    ``ca_file``: PEM file of the authorities to trust instead of the system's.
    ``client_cert``, ``client_key``: PEM files of our own certificate, and of its key where
    that is not in the same file. Raises ValueError naming the option.
    """
    if client_key is not None and client_cert is None:
        raise ValueError('client_key= needs client_cert= beside it')
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f'ca_file={ca_file} cannot be used: {_reason(error)}') from error
    context.sslsocket_class = _Socket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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

# What OpenSSL calls a peer that speaks something else, in one version or another.
_NO_TLS = frozenset({'WRONG_VERSION_NUMBER', 'PACKET_LENGTH_TOO_LONG', 'RECORD_LAYER_FAILURE'})

_OLD_TLS = frozenset({'TLSV1_ALERT_PROTOCOL_VERSION', 'UNSUPPORTED_PROTOCOL', 'WRONG_SSL_VERSION'})

# What a peer says about our certificate, or about our having none.
_OUR_CERTIFICATE = re.compile('ALERT_(.*CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)')


def remedy(error: BaseException, *, agreed: bool = False) -> str:
    """What to do about TLS that failed, or ''. ``agreed``: the relay speaks TLS, as it has said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            return 'write the name that its certificate carries as the host in mail.url'
        if error.verify_code in _EXPIRED:
            return 'its certificate must be renewed, or the clock here is wrong'
        return 'for an authority of your own add ?ca_file=/path/to/ca.pem to mail.url'
    reason = getattr(error, 'reason', None) or ''
    if reason in _NO_TLS and not agreed:
        return 'the port may speak plain SMTP first: write smtp: (STARTTLS) instead of smtps:'
    if reason in _OLD_TLS:
        return 'it must speak TLS 1.2 or newer'
    if _OUR_CERTIFICATE.search(reason):
        return 'it may want another certificate of ours: see client_cert= in mail.url'
    return ''
