"""What a connection of the loop needs of the loop, and of the one that sends over it."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Protocol

from ..envelope import Envelope, Outcome
from ..exceptions import MailerUnavailable
from ..mailers.session import BeforeFinalDot
from ..mailers.smtp.protocol.state import SessionEnd
from ..mailers.smtp.resolver import Resolver
from ..mailers.smtp.token_fetcher import TokenFetcher

__all__ = ['Poller', 'Sender', 'Watcher']


class Watcher(Protocol):
    """What watches sockets, and waits for a time."""

    sender: Sender

    @property
    def state(self) -> str:
        """What it waits for, or 'closed'."""

    @property
    def deadline(self) -> float:
        """When the present wait is over, by the monotonic clock."""

    def on_ready(self, socket: object) -> None:
        """A socket is ready."""

    def on_deadline(self) -> None:
        """The present wait is over."""


class Poller(Protocol):
    """What a connection needs of its loop."""

    resolver: Resolver
    token_fetcher: TokenFetcher

    def monotonic(self) -> float:
        """Return the time of the deadlines, in seconds."""

    def watch(self, connection: socket, events: int, owner: Watcher) -> None:
        """Call ``owner.on_ready`` when one of these events happens; 0: never again."""

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call in the thread of the loop. Thread-safe."""

    def add(self, connection: Watcher) -> None:
        """Keep the deadline of a connection, until it is closed."""


class Sender(Protocol):
    """Who sends mail over a connection."""

    @property
    def before_final_dot(self) -> BeforeFinalDot:
        """See IMailSession.send."""

    def opened(self) -> None:
        """The connection is past EHLO and AUTH."""

    def next_envelope(self) -> Envelope | None:
        """Return the next mail; None if there is none now."""

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of the first mail without one."""

    def out_of_work(self) -> None:
        """Every mail has its outcome, and there is no further one now."""

    def ended(self, end: SessionEnd) -> None:
        """Nothing more can be sent. The connection may still say QUIT by itself."""

    def unavailable(self, error: MailerUnavailable) -> None:
        """The connection could not be opened."""

    def failed(self, error: Exception) -> None:
        """A call of this connection has raised."""
