"""The wait for an access token, in front of a connection of the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from ..mailers.smtp.authentication import Bearer, Proof
from ..mailers.smtp.mailer import SMTPMailer
from .loop_roles import Poller, Sender

__all__ = ['TokenRequest']


class TokenRequest:
    """Fetches the token of one connection, within the time-out to connect.

    It calls ``then`` with a mailer that presents the token, or the sender's ``unavailable``; none
    of them once it is closed.
    """

    def __init__(
        self,
        poller: Poller,
        mailer: SMTPMailer,
        bearer: Bearer,
        sender: Sender,
        then: Callable[[SMTPMailer], object],
    ) -> None:
        self.state = 'fetching'
        self.sender = sender
        self._poller = poller
        self._mailer = mailer
        self._bearer = bearer
        self._then = then
        self.deadline = poller.monotonic() + mailer.timeouts.connect

    def open(self) -> None:
        """Begin to wait."""
        self._poller.add(self)
        self._poller.token_fetcher.fetch(
            self._bearer,
            lambda fetched: self._poller.call_soon(partial(self._fetched, fetched)),
        )

    def close(self) -> None:
        """Wait no longer."""
        self.state, self.deadline = 'closed', inf

    def on_ready(self, socket: object) -> None:
        """It watches no socket."""

    def on_deadline(self) -> None:
        """The function has not returned in time."""
        self.close()
        self._poller.token_fetcher.give_up(self._bearer)
        timeout = self._mailer.timeouts.connect
        self.sender.unavailable(
            self._mailer.token_error(
                f'there is no token: the function has not returned within {timeout:g} s'
            )
        )

    def _fetched(self, fetched: Proof | str) -> None:
        if self.state == 'closed':
            return
        self.close()
        try:
            if isinstance(fetched, str):
                self.sender.unavailable(self._mailer.token_error(fetched))
            else:
                self._then(self._mailer.with_identity(fetched))
        except Exception as error:  # noqa: BLE001 - the sender logs it
            self.sender.failed(error)
