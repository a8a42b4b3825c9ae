"""The server that most tests of sessions run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.smtp.server import ScriptedSMTPServer


@pytest.fixture(params=['pipelining', 'lock-step'])
def server(
    request: pytest.FixtureRequest, smtp_server: ScriptedSMTPServer
) -> Iterator[ScriptedSMTPServer]:
    """A server that must see no violation of the protocol."""
    if request.param == 'lock-step':
        smtp_server.extensions = tuple(
            each for each in smtp_server.extensions if each != 'PIPELINING'
        )
    yield smtp_server
    assert not smtp_server.violations
    assert not smtp_server.script_left()
