"""Whom to trust: the TLS context of a mailer, and what to say when a handshake fails."""

from __future__ import annotations

import ssl

__all__ = ['client_context', 'remedy']


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


def remedy(error: BaseException) -> str:
    """What to do about a handshake that failed, or ''."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            return 'write the name that its certificate carries as the host in mail.url'
        if error.verify_code in _EXPIRED:
            return 'its certificate must be renewed, or the clock here is wrong'
        return 'for an authority of your own add ?ca_file=/path/to/ca.pem to mail.url'
    if getattr(error, 'reason', None) == 'WRONG_VERSION_NUMBER':
        return 'the port may speak plain SMTP first: write smtp: (STARTTLS) instead of smtps:'
    return ''
