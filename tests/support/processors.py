"""A queue processor at work in a test, and the doubles around it."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from zope.interface import implementer

from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailEventDispatcher
from pyramid_sendmail.processor.options import ProcessorOptions
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.ticket import Ticket
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.support.doubles import RecordingMailer
from tests.support.queues import files, make_envelope

__all__ = [
    'DEFERRED',
    'NEVER',
    'POLICY',
    'READ_ONLY',
    'RELAY_REFUSED',
    'SENDING_RESUMED',
    'SENDING_STOPPED',
    'FailingQueue',
    'ProcessorSetup',
    'RecordingDispatcher',
    'UnwritableClaim',
    'WorkerThread',
    'is_empty',
    'log_levels',
    'make_maildir',
    'put_pending_event',
    'record_scans',
    'running_processor',
    'worker_threads',
]

DEFERRED = Verdict('deferred', Reply(450, '4.2.0 greylisted'))

RELAY_REFUSED = MailerUnavailable('smtp://relay.example.org:25: connecting: Connection refused')

READ_ONLY = QueueError(errno.EROFS, 'the queue cannot record what becomes of its mail')

NEVER = 3600.0
"""Seconds between scans in a test whose processor must not depend on the next scan."""

POLICY = RetryPolicy(delays=(60.0,), jitter=0.0)

SENDING_STOPPED = 'unavailable, mail stays queued'
"""In the log line of a relay or a queue that becomes unavailable."""

SENDING_RESUMED = 'failed attempts'
"""In the log line of a relay or a queue that is available again."""


@implementer(IMailEventDispatcher)
class RecordingDispatcher:
    """Records the events of these kinds and handles them at once, in the caller's thread.

    ``takes`` False: the events stay pending, and ``claims`` has their claims, still locked.
    """

    failures = 0

    def __init__(self, *kinds: str, takes: bool = True) -> None:
        self.kinds = kinds
        self.takes = takes
        self.pending_events: list[PendingEvent] = []
        self.claims: list[Any] = []

    def wants(self, kind: str) -> bool:
        return kind in self.kinds

    def dispatch(self, claim: Any, events: Sequence[PendingEvent]) -> None:
        self.pending_events += [event for event in events if event.kind in self.kinds]
        lasting = [event for event in events if event.kind != 'deferred']
        if self.takes and lasting:
            claim.acknowledge(lasting)
            claim.release()
        elif lasting:
            self.claims.append(claim)

    def flush(self, timeout: float) -> bool:
        return True

    def dispatched(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return kind and recipients of each event."""
        return [(event.kind, event.recipients) for event in self.pending_events]


class ProcessorSetup:
    """A queue, a mailer, and the processors between them."""

    def __init__(self, queue: Any, *, clock: Callable[[], float] = time.time) -> None:
        self.queue = queue
        self.clock = clock
        self.mailer = RecordingMailer()
        self.dispatcher = RecordingDispatcher()

    def put(self, *recipients: str, **options: Any) -> Envelope:
        """Put one mail into the queue."""
        options.setdefault('queued_at', self.clock())
        envelope = make_envelope(*recipients, **options)
        self.queue.put([envelope]).publish()
        return envelope

    def put_many(self, count: int, **options: Any) -> list[Envelope]:
        """Put several mails into the queue, in one transaction."""
        options.setdefault('queued_at', self.clock())
        envelopes = [make_envelope(**options) for _ in range(count)]
        self.queue.put(envelopes).publish()
        return envelopes

    def processor(
        self, *, policy: RetryPolicy = POLICY, queue: Any = None, **options: Any
    ) -> QueueProcessor:
        """Return a processor with these ProcessorOptions, with short pauses and no polling."""
        options = {'pause': 0.02, 'poll': NEVER} | options
        recorder = OutcomeRecorder(policy, self.dispatcher, clock=self.clock)
        return QueueProcessor(
            self.queue if queue is None else queue,
            self.mailer,
            self.dispatcher,
            recorder,
            ProcessorOptions(**options),
        )

    @contextmanager
    def running(self, **options: Any) -> Iterator[QueueProcessor]:
        """Run a processor in a thread; it must end without an error."""
        processor = self.processor(**options)
        with running_processor(processor):
            yield processor

    def sent_ids(self) -> Counter[str]:
        """Return how often each Message-ID was sent."""
        return Counter(envelope.message_id for envelope in self.mailer.sent)


@contextmanager
def running_processor(processor: QueueProcessor) -> Iterator[threading.Event]:
    """Run a processor in a thread, and yield the event that stops it."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            processor.run(stop)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        processor.wake()
        thread.join(20)
    assert not thread.is_alive()
    assert failures == []


def make_maildir(
    path: Path, *, clock: Callable[[], float] = time.time, cls: Any = MaildirQueue
) -> Any:
    """Return a prepared queue on disk, without sync."""
    queue = cls(str(path), sync=False, longest=POLICY.longest, clock=clock)
    queue.prepare()
    return queue


def is_empty(setup: ProcessorSetup) -> bool:
    """Return whether no mail is left in the queue, in any state."""
    if isinstance(setup.queue, MaildirQueue):
        return not files(setup.queue)
    return not len(setup.queue)


def log_levels(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return the level of each log line that has this text."""
    return [record.levelname for record in caplog.records if text in record.getMessage()]


def worker_threads() -> list[threading.Thread]:
    """Return the workers of all processors in this process."""
    return [each for each in threading.enumerate() if each.name.startswith('pyramid_sendmail wor')]


def record_scans(queue: Any) -> list[float]:
    """Return a list that grows by the time of each scan from now on."""
    scans: list[float] = []
    original = queue.scan

    def scan(now: float, **options: Any) -> Any:
        found = original(now, **options)
        scans.append(now)
        return found

    queue.scan = scan
    return scans


def put_pending_event(setup: ProcessorSetup) -> None:
    """Put a delivered mail into the queue whose event no subscriber has handled."""
    setup.dispatcher = RecordingDispatcher('sent', takes=False)
    setup.put('eve@example.org')
    setup.processor().run_once()
    for claim in setup.dispatcher.claims:
        claim.release()
    setup.dispatcher = RecordingDispatcher('sent', 'error')


class UnwritableClaim:
    """A claim whose outcome cannot be recorded as long as ``broken`` is true."""

    broken = True

    def __init__(self, claim: Any) -> None:
        self._claim = claim
        self.releases = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    def settle(self, events: Any, **options: Any) -> None:
        if UnwritableClaim.broken:
            raise QueueError(errno.ENOSPC, 'the queue cannot record: No space left on device')
        self._claim.settle(events, **options)

    def release(self) -> None:
        self.releases += 1
        self._claim.release()


class FailingQueue(MaildirQueue):
    """A queue that raises ``errors[what]``, where ``what`` is a method, a ticket's state or its
    order; ``calls`` counts them all."""

    errors: dict[str, BaseException]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.errors = {}
        self.calls: Counter[str] = Counter()

    def _call(self, what: str) -> None:
        self.calls[what] += 1
        if what in self.errors:
            error = self.errors[what]
            raise type(error)(*error.args)

    def check_writable(self) -> None:
        self._call('check_writable')
        super().check_writable()

    def scan(self, *args: Any, **options: Any) -> Any:
        self._call('scan')
        return super().scan(*args, **options)

    def claim(self, ticket: Ticket, **options: Any) -> Any:
        self._call('claim')
        self._call(ticket.state)
        self._call(ticket.order)
        claim = super().claim(ticket, **options)
        return claim and UnwritableClaim(claim)

    def sync(self) -> None:
        self._call('sync')


class WorkerThread(threading.Thread):
    """A thread that does one job at a time, for a test that plays several workers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._jobs: list[Callable[[], Any]] = []
        self._changed = threading.Condition()
        self._results: list[Any] = []
        self.start()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs.pop()
            result = job()
            with self._changed:
                self._results.append(result)
                self._changed.notify_all()
            if job == self.end:
                return

    def begin(self, job: Callable[[], Any]) -> None:
        """Start a job."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def result(self) -> Any:
        """Wait for the job, and return its result."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._results, 10)
            return self._results.pop()

    def do(self, job: Callable[[], Any]) -> Any:
        """Do a job, and return its result."""
        self.begin(job)
        return self.result()

    def end(self) -> None:
        """The last job."""
