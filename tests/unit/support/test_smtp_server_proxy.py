"""The proxy cuts after exactly the bytes that it was given."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.support.smtp.client import MAIL, connected
from tests.support.smtp.server import CuttingProxy, ScriptedSMTPServer

DIALOGUE = b'EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n' + MAIL + b'.\r\n'


def push(proxy: CuttingProxy, sent: bytes) -> bytes:
    """Send without waiting for replies, and return all that comes back."""
    with connected(proxy.port, greeted=False) as client:
        client.write(sent)
        return client.rest()


@pytest.mark.parametrize('how', ['rst', 'fin'])
@pytest.mark.parametrize('after', [0, 1, len(b'EHLO me\r\n'), len(b'EHLO me\r\nMAIL')])
def test_cut_from_the_client(
    smtp_server: ScriptedSMTPServer, how: Literal['rst', 'fin'], after: int
) -> None:
    """Exactly that many bytes of the client reach the server; both sides see the same end."""
    with CuttingProxy(smtp_server.port, after=after, how=how) as proxy:
        if how == 'rst':
            with pytest.raises(ConnectionError):
                push(proxy, DIALOGUE)
        else:
            push(proxy, DIALOGUE)
        smtp_server.wait_for(lambda server: server.connections and not server.open_connections)
        assert smtp_server.raw(1) == DIALOGUE[:after]
        assert (proxy.cuts, proxy.connections) == (1, 1)


@pytest.mark.parametrize('after', [0, 3, 30])
def test_cut_from_the_server(smtp_server: ScriptedSMTPServer, after: int) -> None:
    """Exactly that many bytes of the server reach the client."""
    with CuttingProxy(smtp_server.port, after=after, side='server', how='fin') as proxy:
        received = push(proxy, b'NOOP\r\n')
        smtp_server.wait_for(lambda server: server.connections == 1)
        assert len(received) == after
        assert smtp_server.sent(1).startswith(received)


def test_cuts_come_to_an_end(smtp_server: ScriptedSMTPServer) -> None:
    """After that many cuts the proxy is transparent, byte by byte, for big messages too."""
    data = MAIL + b'x' * 900 + (b'\r\n' + b'y' * 900) * 5_000 + b'\r\n'

    def deliver() -> None:
        with connected(proxy.port) as client:
            assert client.transaction(data=data).startswith(b'250')

    with CuttingProxy(smtp_server.port, after=200, times=1) as proxy:
        with pytest.raises(ConnectionError):
            deliver()
        deliver()
        assert (proxy.cuts, proxy.connections) == (1, 2)
    assert [message.data for message in smtp_server.messages] == [data]
    assert [sent > 200 for sent, _ in proxy.forwarded] == [False, True]


def test_every_byte_boundary(smtp_server: ScriptedSMTPServer) -> None:
    """A session can be cut at each of its bytes, quickly, and no message is accepted."""
    for after in range(len(DIALOGUE)):
        with (
            CuttingProxy(smtp_server.port, after=after) as proxy,
            pytest.raises(ConnectionError),
        ):
            push(proxy, DIALOGUE)
    smtp_server.wait_for(
        lambda server: server.connections == len(DIALOGUE) and not server.open_connections
    )
    assert smtp_server.messages == []
    received = {smtp_server.raw(n) for n in range(1, smtp_server.connections + 1)}
    assert {DIALOGUE[:after] for after in range(len(DIALOGUE))} - received == set()


def test_proxy_of_a_dead_server(smtp_server: ScriptedSMTPServer) -> None:
    """If there is no server, the client sees its connection reset."""
    smtp_server.stop()
    with CuttingProxy(smtp_server.port, after=None) as proxy, pytest.raises(ConnectionError):
        push(proxy, b'')
