"""A certificate authority for test servers, with valid and invalid certificates."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

__all__ = ['TLSAuthority']


class TLSAuthority:
    """An authority whose certificate is the PEM file ``path``, for clients to trust.

    Its methods return contexts for servers.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / 'ca.pem'
        self._directory = directory
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.path))

    def context(self, *names: str) -> ssl.SSLContext:
        """Return a context with a valid certificate, for 127.0.0.1 and localhost as a rule."""
        return _context(self._authority.issue_cert(*(names or ('127.0.0.1', 'localhost'))))

    def wrong_host(self) -> ssl.SSLContext:
        """Return a context with a valid certificate for another host."""
        return self.context('elsewhere.example.org')

    def common_name(self) -> ssl.SSLContext:
        """Return a context whose certificate has the right name, as common name alone."""
        return _context(self._authority.issue_cert(common_name='localhost'))

    def expired(self) -> ssl.SSLContext:
        """Return a context with a certificate that ended yesterday."""
        now = datetime.now(UTC)
        return _context(
            self._authority.issue_cert(
                '127.0.0.1',
                'localhost',
                not_before=now - timedelta(days=9),
                not_after=now - timedelta(days=1),
            )
        )

    def untrusted(self) -> ssl.SSLContext:
        """Return a context with a certificate of an unknown authority."""
        return _context(trustme.CA().issue_cert('127.0.0.1', 'localhost'))

    def demanding(self) -> ssl.SSLContext:
        """Return a context that demands a client certificate of this authority."""
        context = self.context()
        self._authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_certificate(self, name: str = 'client.example.org') -> Path:
        """Issue a certificate for a client and return the PEM file of its key and chain."""
        path = self._directory / f'{name}.pem'
        self._authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
