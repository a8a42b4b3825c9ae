"""A worker of the loop: it has one connection at a time, and sends due mail over it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf

from ..envelope import Envelope, Outcome, Tally
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailer, IScannableQueue
from ..mailers.attempts import Attempts, connection_attempts
from ..mailers.smtp.mailer import SMTPMailer
from ..mailers.smtp.protocol.state import SessionEnd
from ..sending.attempt import Batch
from ..sending.outcome import OutcomeRecorder
from .claims import Claimer, DueClaims
from .loop_connection import LoopConnection
from .loop_roles import Poller
from .token_request import TokenRequest

__all__ = ['LoopWorker']

log = logging.getLogger(__name__)


class LoopWorker:
    """See the module. ``batch``: mails on one connection. ``idle``: seconds without mail after
    which the connection is closed.

    ``working``: it has begun, and holds mail or connects. ``began_at``: when it began, and
    ``paused_until``: when it may begin again, by the monotonic clock.
    """

    def __init__(
        self,
        poller: Poller,
        mailer: IMailer,
        claimer: Claimer,
        queue: IScannableQueue,
        recorder: OutcomeRecorder,
        tally: Tally,
        *,
        batch: int,
        idle: float,
        on_change: Callable[[], object],
    ) -> None:
        self.working = False
        self.paused_until = 0.0
        self.began_at = 0.0
        self._poller = poller
        self._mailer = mailer
        self._run = claimer.run
        self._claimer = claimer
        self._queue = queue
        self._recorder = recorder
        self._tally = tally
        self._batch_size = batch
        self._idle = idle
        self._on_change = on_change
        self._claims = DueClaims(claimer, self)
        self._token_request: TokenRequest | None = None
        """What comes before a connection with an access token."""
        self._connection: LoopConnection | None = None
        self._last_connection: LoopConnection | None = None
        """The connection before, which may still wait for the reply to QUIT."""
        self._attempts: Attempts | None = None
        self._waits_to_connect = False
        self._batch: Batch | None = None
        self._mails_on_session = 0

    # What the loop asks

    @property
    def has_session(self) -> bool:
        """Whether a connection is open that can be used again."""
        return self._connection is not None and self._connection.state == 'idle'

    @property
    def leaving(self) -> bool:
        """Whether QUIT has no reply yet: the relay may count this connection beside another."""
        return any(
            each is not None and each.state == 'quitting'
            for each in (self._connection, self._last_connection)
        )

    @property
    def connecting(self) -> bool:
        """Whether it has begun, and its connection is not open yet."""
        return self.working and self._attempts is not None

    @property
    def mails(self) -> int:
        """How many mails wait for their answer, or to be sent once more."""
        batch = self._batch  # other threads ask
        return batch.waiting if batch is not None else 0

    def begin(self) -> None:
        """Send due mail. Raises QueueError if the queue cannot be written."""
        self.working = True
        self.began_at = self._poller.monotonic()
        self._queue.check_writable()
        self._recorder.write_unrecorded()
        run = self._run
        self._batch = Batch(
            self._claims, self, self._recorder, self._tally, run.refusals, run.throttle
        )
        if self.has_session:
            assert self._connection is not None
            self._start_session()
            self._connection.send()
        else:
            self._connect()

    def go_on(self) -> None:
        """Connect, if that had to wait and need not any more."""
        if self._waits_to_connect and not self.leaving:
            self._connect()

    def close(self) -> None:
        """Stop: close the connection, and wait for its QUIT at most."""
        self._waits_to_connect = False
        self._stop_fetching()
        connection, self._connection = self._connection, None
        if self._attempts is not None:
            self._attempts.close()
        if connection is not None:
            connection.quit()
        if self._batch is not None:
            self._batch.release()

    def failed(self, error: Exception) -> None:
        """Something went wrong that is not a matter of the relay's replies."""
        if not isinstance(error, MailerUnavailable | QueueError):
            try:
                log.error(
                    '%s: the session failed; its connection is closed', self.name, exc_info=error
                )
                self._session_failed(' '.join(f'{type(error).__name__}: {error}'.split()))
            except (MailerUnavailable, QueueError) as final:
                error = final
            else:
                return
        self._give_up(error)

    # What the batch asks

    @property
    def name(self) -> str:
        """Where the session sends to."""
        return self._connection.name if self._connection is not None else self._mailer.name

    def record_answer(self) -> None:
        """Count one answered mail."""
        self._mails_on_session += 1

    def is_used_up(self, waiting: int = 0) -> bool:
        """Return whether the session has sent as many mails as it may."""
        return self._mails_on_session + waiting >= self._batch_size

    # What the connection says

    def before_final_dot(self, envelope: Envelope, recipients: Sequence[str]) -> None:
        """See IMailSession.send."""
        assert self._batch is not None
        self._batch.before_final_dot(envelope, recipients)

    def opened(self) -> None:
        """The connection can send mail."""
        attempts, self._attempts = self._attempts, None
        assert attempts is not None
        with suppress(StopIteration):
            attempts.send(None)
        self._mails_on_session = 0
        self._start_session()

    def next_envelope(self) -> Envelope | None:
        """Return the next mail; None if there is none now, or the session is used up."""
        return self._batch.next_envelope() if self._batch is not None else None

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of the first mail without one. Raises QueueError."""
        assert self._batch is not None
        self._batch.record(outcome)
        if self._batch.error is None:
            self._run.breaker.record_success(self)

    def out_of_work(self) -> None:
        """Every mail has its outcome, and there is no further one now. Raises MailerUnavailable if
        the relay refuses or throttles every mail."""
        connection, batch = self._connection, self._batch
        assert connection is not None
        if batch is not None and batch.error is not None:
            raise batch.error
        if batch is not None and batch.holding:
            # The session is used up, and a mail of the one before is to be sent once more.
            self._connection, self._last_connection = None, connection
            connection.quit()
            self._connect()
            return
        if self.is_used_up() or self._run.active_queue.closed:
            self._connection, self._last_connection = None, connection
            connection.quit()
        else:
            connection.deadline = self._poller.monotonic() + self._idle
        self._finish()

    def ended(self, end: SessionEnd) -> None:
        """Nothing more can be sent over the connection. Raises what ended it."""
        self._connection, self._last_connection = None, self._connection
        batch = self._batch
        if batch is None:
            return
        if end.error is not None:
            raise end.error
        if not batch.waiting or batch.session_throttled(end.reply):
            if batch.error is not None:
                raise batch.error
            # It takes further mail over another connection.
            self._finish()
        elif batch.session_ended(stale=end.stale and self._mails_on_session > 0):
            self._connect()
        else:
            raise MailerUnavailable(f'{self.name}: {end.reason}')

    def unavailable(self, error: MailerUnavailable) -> None:
        """The connection could not be opened: try the next relay. Raises MailerUnavailable if
        there is none."""
        self._connection = None
        attempts = self._attempts
        assert attempts is not None
        self._open(attempts.send(error))

    def _connect(self) -> None:
        """Connect, once the connection before has its reply to QUIT."""
        self._waits_to_connect = self.leaving
        if self._waits_to_connect:
            return
        self._attempts = connection_attempts(self._mailer)
        self._open(next(self._attempts))

    def _open(self, mailer: SMTPMailer) -> None:
        bearer = mailer.bearer
        if bearer is None:
            self._open_connection(mailer)
            return
        self._token_request = TokenRequest(
            self._poller, mailer, bearer, self, then=self._open_connection
        )
        self._token_request.open()

    def _open_connection(self, mailer: SMTPMailer) -> None:
        self._connection = LoopConnection(self._poller, mailer, self)
        self._connection.open()

    def _start_session(self) -> None:
        assert self._batch is not None
        self._batch.session_opened()
        self._run.breaker.session_opened(self)
        self._on_change()

    def _stop_fetching(self) -> None:
        """Take no token any more that is being fetched."""
        request, self._token_request = self._token_request, None
        if request is not None:
            request.close()

    def _session_failed(self, reason: str) -> None:
        self._stop_fetching()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self._batch is None:
            raise MailerUnavailable(f'{self.name}: {reason}')
        self._batch.session_failed(reason)
        if self._batch.holding:
            self._connect()
        else:
            self._finish()

    def _give_up(self, error: MailerUnavailable | QueueError) -> None:
        """Release the mail, and leave it to the breaker when to go on."""
        run = self._run
        self._waits_to_connect = False
        self._stop_fetching()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.quit()
        if self._attempts is not None:
            self._attempts.close()
            self._attempts = None
        if self._batch is not None:
            self._batch.release()
        pause = 0.0
        if not run.active_queue.closed:
            pause = run.breaker.record_failure(error, self)
            if run.once and not pause:
                # Do this first, so that no other worker connects in the meantime.
                run.fail(error)
            if isinstance(error, MailerUnavailable) and not pause:
                with suppress(QueueError):
                    self._claimer.settle_without_relay()
        self.paused_until = self._poller.monotonic() + pause if pause else -inf
        self._finish(retry=bool(pause))

    def _finish(self, *, retry: bool = False) -> None:
        """The work is done, or given up."""
        run = self._run
        self.working, self._batch = False, None
        run.breaker.release(self)
        run.active_queue.task_done(self, retry=retry or bool(run.breaker.retry_in()))
        if run.active_queue.should_request_refill():
            run.wake()
        self._on_change()
