"""Fixtures: the peers, each started once for all tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.peers.dovecot import Dovecot
from tests.peers.nodejs import NodeRelay, missing_package
from tests.peers.relay import Certificate, Relay
from tests.peers.relays import RELAYS
from tests.peers.roots import HOST, missing


@pytest.fixture(scope='session')
def authority() -> trustme.CA:
    """The authority that issues the certificates of the relays."""
    return trustme.CA()


@pytest.fixture(scope='session')
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its own certificate, for clients to trust."""
    path = tmp_path_factory.mktemp('peers') / 'ca.pem'
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope='session', params=RELAYS)
def relay(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[Relay]:
    """Each of the relays, running."""
    yield from _running(request.param, authority)


def _running(name: str, authority: trustme.CA) -> Iterator[Relay]:
    kind = RELAYS[name]
    if reason := missing_package(name) if issubclass(kind, NodeRelay) else missing(name):
        pytest.skip(reason)
    relay = kind(Certificate(authority.issue_cert(HOST, 'localhost')))
    try:
        relay.start()
        yield relay
    finally:
        relay.remove()


@pytest.fixture(scope='session')
def dovecot() -> Iterator[Dovecot]:
    """Dovecot's LMTP server, running."""
    if reason := missing('dovecot'):
        pytest.skip(reason)
    server = Dovecot()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def sender() -> str:
    """Return a new sender, by which a test recognises its mail."""
    return f'{secrets.token_hex(6)}@example.org'


@pytest.fixture
def wrong_ca_file(tmp_path: Path) -> str:
    """The certificate of an authority that has nothing to do with the relays."""
    path = tmp_path / 'other.pem'
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)
