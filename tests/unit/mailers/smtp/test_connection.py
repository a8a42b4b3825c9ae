"""SMTPConnection: what has left when a write fails, and how long anything may take."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import pytest

from pyramid_sendmail.mailers.session import describe_error
from pyramid_sendmail.mailers.smtp.connection import (
    BLOCK_BYTES,
    ConnectionLost,
    SMTPConnection,
)
from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.support.sessions import session_on


class Failing:
    """A socket that takes a number of bytes, and then fails."""

    def __init__(self, takes: int) -> None:
        self.left = takes
        self._null = os.open(os.devnull, os.O_WRONLY)

    def fileno(self) -> int:
        """Return a descriptor that can always be written to."""
        return self._null

    def settimeout(self, seconds: float) -> None:
        assert seconds == 0, 'the time-outs are those of poll'

    def close(self) -> None:
        os.close(self._null)

    def send(self, data: memoryview) -> int:
        if not self.left:
            raise BrokenPipeError(32, 'Broken pipe')
        taken = min(self.left, len(data))
        self.left -= taken
        return taken


@pytest.mark.parametrize(
    ('takes', 'secure', 'unsent'),
    [
        (0, False, 100),
        (0, True, 0),
        (60, False, 40),
        (60, True, 0),
        (99, False, 1),
    ],
)
def test_what_has_certainly_not_left(takes: int, secure: bool, unsent: int) -> None:
    """A plain socket says how much it took; TLS may have sent part of a block that failed."""
    connection: Any = Failing(takes)
    wire = SMTPConnection(connection, block_timeout=1)
    wire.secure = secure
    with pytest.raises(ConnectionLost, match='while sending: Broken pipe') as caught:
        wire.write(b'x' * 100)
    assert caught.value.unsent == unsent
    assert wire.lost
    wire.close()


def test_only_the_failing_block_is_at_risk() -> None:
    """Nothing behind the block that failed in TLS can have left."""
    connection: Any = Failing(BLOCK_BYTES)
    wire = SMTPConnection(connection, block_timeout=1)
    wire.secure = True
    with pytest.raises(ConnectionLost) as caught:
        wire.write(b'x' * (5 * BLOCK_BYTES))
    assert caught.value.unsent == 3 * BLOCK_BYTES
    wire.close()


def pair() -> tuple[SMTPConnection, socket.socket]:
    ours, theirs = socket.socketpair()
    return SMTPConnection(ours, block_timeout=0.1), theirs


def test_no_time_left() -> None:
    """Nothing is waited for after its deadline."""
    wire, peer = pair()
    with peer, pytest.raises(ConnectionLost, match='timed out after 0 s'):
        wire.receive(time.monotonic(), 0)
    wire.close()


def test_quit_does_not_wait_to_write() -> None:
    """QUIT into a full connection takes no longer than its own time-out."""
    wire, peer = pair()
    with peer:
        with pytest.raises(ConnectionLost, match='timed out'):
            wire.write(b'x' * 10_000_000)
        wire.lost = False
        session = session_on(wire, timeouts=Timeouts(quit=0.01))
        began = time.monotonic()
        session.close()
        assert time.monotonic() - began < 5
    assert wire.lost


def test_timeouts_can_be_capped() -> None:
    """No phase is longer than the cap, and the cap makes none longer."""
    assert Timeouts().capped(60) == Timeouts(30, 60, 60, 60, 60, 60, 5)
    assert Timeouts().capped(9999) == Timeouts()


def test_describe_error() -> None:
    """An error without a text is named by its class."""
    assert describe_error(OSError(), 1) == 'OSError'
    assert describe_error(OSError('x'), 1) == 'x'
    assert describe_error(OSError(2, 'No such file'), 1) == 'No such file'
    assert describe_error(TimeoutError(), 1.5) == 'timed out after 1.5 s'


def test_a_closed_connection_is_lost() -> None:
    """A connection that was closed here is lost, for each operation."""
    wire, peer = pair()
    with peer:
        wire.close()
        with pytest.raises(ConnectionLost, match='closed on our side'):
            wire.receive(time.monotonic() + 1, 1)
        for size in (1, 100_000):
            with pytest.raises(ConnectionLost, match='while sending'):
                wire.write(b'x' * size)
