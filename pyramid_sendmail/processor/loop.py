"""The loop: all connections to the relay, in one thread.

It claims mail, sends it and records what became of it. Nothing in it waits, except for the disk:
names are resolved, access tokens are fetched, folders are synced and subscribers run in threads of
their own.
A slow connection holds up no other one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from selectors import EVENT_READ, DefaultSelector
from socket import socket
from typing import ParamSpec

from ..envelope import Tally
from ..interfaces import IMailer, IScannableQueue
from ..mailers.smtp.resolver import Resolver
from ..mailers.smtp.token_fetcher import TokenFetcher
from ..sending.outcome import OutcomeRecorder
from ..threads import BackgroundThread
from .claims import Claimer
from .loop_roles import Sender, Watcher
from .loop_worker import LoopWorker
from .options import ProcessorOptions

__all__ = ['TICKET_PATIENCE', 'DeliveryLoop']

log = logging.getLogger(__name__)

P = ParamSpec('P')

TICKET_PATIENCE = 1.0
"""Seconds for which a mail is kept for a worker that connects: so one mail opens one connection,
and a relay connection that stalls holds up no mail."""


class DeliveryLoop:
    """See the module, Senders and Poller."""

    def __init__(
        self,
        mailer: IMailer,
        claimer: Claimer,
        queue: IScannableQueue,
        recorder: OutcomeRecorder,
        options: ProcessorOptions,
    ) -> None:
        self.monotonic = options.monotonic
        self.resolver = Resolver()
        self.token_fetcher = TokenFetcher()
        self._run = claimer.run
        self._queue = self._run.active_queue
        self._selector = DefaultSelector()
        self._connections: set[Watcher] = set()
        self._calls: deque[Callable[[], object]] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken = False
        self._waking = threading.Lock()
        self._over = False
        """Whether the pipe is closed: its numbers may be those of other files."""
        self._assign_at = 0.0
        """When to look for work for the workers again."""
        self._check_at = 0.0
        """When to look at the deadlines of all connections again: no one is earlier."""
        self._ended = False
        self._tally: Tally = self._run.new_tally()
        self._workers = [
            LoopWorker(
                self,
                mailer,
                claimer,
                queue,
                recorder,
                self._tally,
                batch=options.batch,
                idle=options.idle,
                on_change=self._look_for_work,
            )
            for _ in range(options.workers)
        ]
        self._thread = BackgroundThread(
            target=self._work, name='pyramid_sendmail loop', daemon=True
        )
        self._queue.on_change = self.wake

    # Senders

    def start(self) -> None:
        self._thread.start()

    @property
    def in_flight(self) -> int:
        return sum(worker.mails for worker in self._workers)

    def stop(self, seconds_left: Callable[[], float]) -> list[str]:
        self.wake()
        while self._thread.is_alive() and seconds_left():
            self._thread.join(0.05)
        late = self.in_flight if self._thread.is_alive() else 0
        return [f'{late} mails' if late > 1 else 'a mail'] if late else []

    def wake(self) -> None:
        """Have the loop look for work. Thread-safe."""
        self.call_soon(self._look_for_work)

    # Poller

    def call_soon(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        if not self._woken and threading.current_thread() is not self._thread:
            with self._waking:
                if not self._over:
                    self._woken = True
                    with suppress(BlockingIOError):
                        os.write(self._wake_write, b'x')

    def add(self, connection: Watcher) -> None:
        self._connections.add(connection)
        self._check_at = 0.0

    def watch(self, connection: socket, events: int, owner: Watcher) -> None:
        known = self._selector.get_map()
        if not events:
            if connection in known:
                self._selector.unregister(connection)
        elif connection in known:
            self._selector.modify(connection, events, owner)
        else:
            self._selector.register(connection, events, owner)

    # The thread

    def _work(self) -> None:
        self._selector.register(self._wake_read, EVENT_READ, None)
        try:
            done = False
            while not done:
                try:
                    done = self._is_done()
                    if not done:
                        self._turn()
                except Exception:
                    log.exception('the loop failed and continues')
                    time.sleep(1.0)
        finally:
            self.resolver.close()
            self._selector.close()
            with self._waking:
                self._over = True
                os.close(self._wake_read)
                os.close(self._wake_write)

    def _is_done(self) -> bool:
        """Return whether nothing is left to do: the queue is closed, and all connections are."""
        if not self._queue.closed:
            return False
        self._check_at = 0.0
        for worker in self._workers:
            if worker.working and not worker.mails:
                worker.close()  # it connects, and holds no mail
                worker.working = False
        if any(worker.working for worker in self._workers):
            return False
        if not self._ended:
            self._ended = True
            for worker in self._workers:
                worker.close()
        return not any(each.state != 'closed' for each in self._connections)

    def _turn(self) -> None:
        """Wait until something happens, and have it handled."""
        now = self.monotonic()
        if self._assign_at <= now:
            self._assign(now)
            self._check_at = 0.0
        if self._check_at <= now:
            self._check_at = self._check_deadlines(now)
        wait = 0.0 if self._calls else min(self._check_at, self._assign_at) - now
        ready = self._selector.select(None if wait == inf else max(wait, 0.0))
        for key, _ in ready:
            owner: Watcher | None = key.data
            if owner is None:
                self._read_wake_up()
            elif owner.state != 'closed':
                self._guarded(owner.sender, owner.on_ready, key.fileobj)
                if owner.state == 'closed':
                    self._look_for_work()
                elif owner.deadline < self._check_at:
                    self._check_at = owner.deadline
        while self._calls:
            self._calls.popleft()()
            self._check_at = 0.0

    def _check_deadlines(self, now: float) -> float:
        """Have what is overdue handled; return the earliest deadline, now if something was."""
        earliest = inf
        for connection in list(self._connections):
            if connection.deadline <= now:
                self._guarded(connection.sender, connection.on_deadline)
                earliest = now
            if connection.state == 'closed':
                self._connections.discard(connection)
                self._look_for_work()
            else:
                earliest = min(earliest, connection.deadline)
        return earliest

    def _guarded(
        self, worker: Sender, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call, and have the worker bear what goes wrong."""
        try:
            call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the worker logs it
            worker.failed(error)

    def _read_wake_up(self) -> None:
        # In this order: a wake-up in between is handled in this turn; a later one wakes again.
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self._woken = False

    def _look_for_work(self) -> None:
        self._assign_at = 0.0

    def _assign(self, now: float) -> None:
        """Have workers begin, as many as there is mail for and the breaker allows: first those
        that have a connection."""
        self._assign_at = inf
        for worker in self._workers:
            self._guarded(worker, worker.go_on)
        if self._queue.closed:
            return
        self._forget_overdue(now)
        for worker in sorted(self._workers, key=lambda each: not each.has_session):
            if worker.working or worker.leaving:
                continue
            wait = worker.paused_until - now
            if wait > 0:
                self._assign_at = min(self._assign_at, worker.paused_until)
                continue
            connected = worker.has_session
            wait = self._queue.wait_for_start(connected=connected)
            wait = wait or self._run.breaker.acquire(worker)
            if wait:
                self._assign_at = min(self._assign_at, now + wait)
                return
            if not self._queue.start(worker, connected=connected):
                self._run.breaker.release(worker)
                return
            self._guarded(worker, worker.begin)

    def _forget_overdue(self, now: float) -> None:
        """Keep no mail for workers that take long to connect."""
        for worker in self._workers:
            if not worker.connecting:
                continue
            overdue_at = worker.began_at + TICKET_PATIENCE
            if overdue_at <= now:
                self._queue.overdue(worker)
            elif len(self._queue):
                self._assign_at = min(self._assign_at, overdue_at)
