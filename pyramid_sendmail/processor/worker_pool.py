"""The worker pool of a queue processor: one thread for each connection of a mailer that blocks.

Mail by SMTP goes through the loop. This is for ``sendmail:``, ``file:`` and mailers of the
application's own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from ..envelope import Tally
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IScannableQueue
from ..sending.attempt import attempt
from ..sending.outcome import OutcomeRecorder
from ..sending.relay_connection import RelayConnection
from ..threads import BackgroundThread
from .claims import Claimer, DueClaims

__all__ = ['WorkerPool']

log = logging.getLogger(__name__)


class WorkerPool:
    """The workers of one run, each named by its connection. See Senders."""

    def __init__(
        self,
        connections: Sequence[RelayConnection],
        claimer: Claimer,
        queue: IScannableQueue,
        recorder: OutcomeRecorder,
    ) -> None:
        self._run = claimer.run
        self._claimer = claimer
        self._queue = queue
        self._recorder = recorder
        self._recording = threading.Lock()
        self._workers = [
            (
                connection,
                BackgroundThread(
                    target=self._work,
                    args=(connection, self._run.new_tally()),
                    name=f'pyramid_sendmail worker {number}',
                    daemon=True,
                ),
            )
            for number, connection in enumerate(connections, 1)
        ]

    def start(self) -> None:
        for _, thread in self._workers:
            thread.start()

    @property
    def in_flight(self) -> int:
        return sum(connection.mails_waiting for connection, _ in self._workers)

    def stop(self, seconds_left: Callable[[], float]) -> list[str]:
        for connection, thread in self._workers:
            while _holds_mail(connection, thread) and seconds_left():
                thread.join(0.05)
        return [thread.name for each, thread in self._workers if _holds_mail(each, thread)]

    def _work(self, connection: RelayConnection, tally: Tally) -> None:
        run, queue = self._run, self._run.active_queue
        acquire = partial(run.breaker.acquire, connection)
        while queue.wait_for_work(connection, acquire, on_idle=connection.close):
            try:
                pause = self._drain(connection, tally)
            except Exception as error:
                log.exception('a worker failed and continues')
                pause = run.breaker.record_failure(error, connection)
                if run.once:
                    run.fail(MailerUnavailable(f'a worker failed: {error!r}'))
            run.breaker.release(connection)
            queue.task_done(connection, retry=bool(pause or run.breaker.retry_in()))
            if queue.should_request_refill():
                run.wake()
            if pause:
                queue.sleep(pause)
        connection.close()

    def _drain(self, connection: RelayConnection, tally: Tally) -> float:
        """Send due mail over one session; return the seconds that this worker should pause."""
        run = self._run
        before = connection.mails_total
        try:
            self._queue.check_writable()
            with self._recording:
                self._recorder.write_unrecorded()
            claims = _AnsweredClaims(self._claimer, connection)
            attempt(claims, connection, self._recorder, tally, run.refusals, run.throttle)
            if connection.mails_total > before:
                run.breaker.record_success(connection)
        except (MailerUnavailable, QueueError) as error:
            return self._end_drain(error, connection)
        return 0.0

    def _end_drain(
        self, error: MailerUnavailable | QueueError, connection: RelayConnection
    ) -> float:
        run = self._run
        if run.active_queue.closed:
            return 0.0
        pause = run.breaker.record_failure(error, connection)
        if run.once and not pause:
            # Do this first, so that no other worker connects in the meantime.
            run.fail(error)
        if isinstance(error, MailerUnavailable) and not pause:
            with suppress(QueueError):
                self._claimer.settle_without_relay()
        return pause


class _AnsweredClaims(DueClaims):
    """Due claims, which tell the breaker of the session, and of each mail that was answered."""

    def __init__(self, claimer: Claimer, connection: RelayConnection) -> None:
        super().__init__(claimer, connection)
        self._connection = connection
        self._before = connection.mails_total
        self._begun = False

    def __next__(self) -> IMailClaim:
        if not self._begun:
            self._begun = True
            self._run.breaker.session_opened(self._connection)
            self._run.active_queue.notify_waiters()
        if self._connection.mails_total > self._before:
            self._before = self._connection.mails_total
            self._run.breaker.record_success(self._connection)
        return super().__next__()


def _holds_mail(connection: RelayConnection, thread: threading.Thread) -> bool:
    return thread.is_alive() and not connection.connecting
