"""Fixtures around the scripted SMTP server, for ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .server import CuttingProxy, ScriptedSMTPServer, TLSAuthority

__all__ = [
    'cutting_proxy',
    'smtp_server',
    'start_checked_server',
    'start_smtp_server',
    'tls_authority',
]


@pytest.fixture(scope='session')
def tls_authority(tmp_path_factory: pytest.TempPathFactory) -> TLSAuthority:
    """Return the authority that issues certificates to servers."""
    return TLSAuthority(tmp_path_factory.mktemp('authority'))


@pytest.fixture
def smtp_server() -> Iterator[ScriptedSMTPServer]:
    """Return a running server with default replies, in plain text."""
    with ScriptedSMTPServer() as server:
        yield server


@pytest.fixture
def start_smtp_server() -> Iterator[Callable[..., ScriptedSMTPServer]]:
    """Return a function that starts a server, with the arguments of ScriptedSMTPServer."""
    with ExitStack() as stack:

        def start(**options: Any) -> ScriptedSMTPServer:
            return stack.enter_context(ScriptedSMTPServer(**options))

        yield start


@pytest.fixture
def start_checked_server(
    start_smtp_server: Callable[..., ScriptedSMTPServer],
) -> Iterator[Callable[..., ScriptedSMTPServer]]:
    """Return a function that starts a server, with the arguments of ScriptedSMTPServer.

    At the end of the test each server must have seen no violation of the protocol, and its script
    must be used up.
    """
    servers = []

    def start(**options: Any) -> ScriptedSMTPServer:
        servers.append(start_smtp_server(**options))
        return servers[-1]

    yield start
    for server in servers:
        assert not server.violations
        assert not server.script_left()


@pytest.fixture
def cutting_proxy() -> Iterator[Callable[..., CuttingProxy]]:
    """Return a function that starts a proxy, with the arguments of CuttingProxy."""
    with ExitStack() as stack:

        def start(port: int, **options: Any) -> CuttingProxy:
            return stack.enter_context(CuttingProxy(port, **options))

        yield start
