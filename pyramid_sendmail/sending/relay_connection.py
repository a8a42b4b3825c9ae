"""The connection to the relay: a mailer, and the session that is kept open with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sized

from ..interfaces import IMailer, IMailSession

__all__ = ['RelayConnection']


class RelayConnection:
    """A mailer and the one session that is kept open with it, for use by one thread.

    ``batch``: mails after which the session is closed. ``idle``: seconds without a mail after
    which a session is not used again.
    """

    def __init__(
        self,
        mailer: IMailer,
        *,
        batch: int = 100,
        idle: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mailer = mailer
        self.idle = idle
        self.mails_total = 0
        """How many mails were answered, over all sessions."""
        self.mails_on_session = 0
        """How many of them over the present session."""
        self.in_flight: tuple[Sized, ...] = ()
        """The mails that wait for their answer, or to be sent once more."""
        self.connecting = False
        """Whether the thread waits for a session, and holds no claim meanwhile."""
        self._batch = batch
        self._monotonic = monotonic
        self._session: IMailSession | None = None
        self._pid = os.getpid()
        self._used = 0.0

    def session(self, *, holding: bool = False) -> IMailSession:
        """Return the session; connect if there is none, or none that can be used again.

        ``holding``: whether the caller holds claims already. Raises MailerUnavailable.
        """
        if self._pid != os.getpid() or self._monotonic() - self._used > self.idle:
            self.close()
        if self._session is None:
            self.connecting = not holding
            try:
                self._session = self.mailer.connect()
            finally:
                self.connecting = False
            self._pid = os.getpid()
            self.mails_on_session = 0
        self._used = self._monotonic()
        return self._session

    @property
    def mails_waiting(self) -> int:
        """How many mails wait for their answer, or to be sent once more."""
        return sum(map(len, self.in_flight))

    @property
    def name(self) -> str:
        """Where the session sends to; a failover mailer's session names the relay in use."""
        name: str = getattr(self._session, 'name', self.mailer.name)
        return name

    def record_answer(self) -> None:
        """Count one answered mail."""
        self.mails_total += 1
        self.mails_on_session += 1
        self._used = self._monotonic()

    def is_used_up(self, waiting: int = 0) -> bool:
        """Return whether the session has sent ``batch`` mails, ``waiting`` ones included."""
        return self.mails_on_session + waiting >= self._batch

    def close(self) -> None:
        """Close the session, if there is one."""
        session, self._session = self._session, None
        if session is None:
            return
        if self._pid == os.getpid():
            session.close()
        else:
            session.abandon()  # inherited by a fork: the parent process goes on using it
