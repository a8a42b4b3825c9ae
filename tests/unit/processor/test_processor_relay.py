"""The queue processor and a relay that becomes unavailable, for all workers or for some."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.circuit_breaker import CircuitBreaker
from tests.support.doubles import RecordingMailer
from tests.support.processors import (
    DEFERRED,
    SENDING_RESUMED,
    SENDING_STOPPED,
    ProcessorSetup,
    is_empty,
    log_levels,
    make_maildir,
    record_scans,
)
from tests.support.queues import files, until


class Timed(RecordingMailer):
    """Records the time of each connect."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def connect(self) -> Any:
        self.times.append(time.monotonic())
        return super().connect()


@pytest.mark.parametrize('kind', ['maildir', 'memory'])
def test_an_unavailable_relay_costs_no_attempt(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 mails: one connect for each pause, growing pauses, no attempt counted, one log line.
    Then the relay is available: one log line, and each mail is delivered once."""
    setup = ProcessorSetup(MemoryQueue() if kind == 'memory' else make_maildir(tmp_path / 'mail'))
    setup.mailer = mailer = Timed()
    setup.dispatcher.kinds = ('deferred', 'error')
    mailer.unavailable = 'Connection refused'
    setup.put_many(1000)
    before = files(setup.queue) if kind == 'maildir' else []
    with setup.running(poll=0.05):
        until(lambda: mailer.connections >= 5)
        assert log_levels(caplog, SENDING_STOPPED) == ['ERROR']
        pauses = [b - a for a, b in zip(mailer.times, mailer.times[1:], strict=False)]
        for step, pause in enumerate(pauses):
            assert pause >= 0.8 * 0.02 * 2**step
        if before:
            assert files(setup.queue) == before
        mailer.unavailable = None
        mailer.wait_for(1000)
        until(lambda: is_empty(setup))
    assert log_levels(caplog, SENDING_RESUMED) == ['WARNING']
    assert log_levels(caplog, SENDING_STOPPED) == ['ERROR']
    assert set(setup.sent_ids().values()) == {1}
    assert setup.dispatcher.pending_events == []
    setup.queue.close()


def test_the_relay_becomes_unavailable_on_a_session(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """After 421 at MAIL the mail is released, and found again with the next try, not with the next
    poll."""
    troubles = iter([True, True, False, True, False])

    def before(envelope: Envelope) -> None:
        if next(troubles, False):
            raise MailerUnavailable('421')

    setup.mailer.before = before
    setup.dispatcher.kinds = ('deferred', 'error')
    setup.put_many(5)
    with setup.running(workers=1):
        setup.mailer.wait_for(5)
        until(lambda: is_empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    assert setup.dispatcher.pending_events == []
    assert log_levels(caplog, SENDING_STOPPED) == ['ERROR', 'ERROR']


def test_a_relay_that_takes_two_connections(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of four workers send everything, and the log reports no unavailable relay."""
    lock = threading.Lock()

    class Narrow(RecordingMailer):
        def connect(self) -> Any:
            with lock:
                if len(self.open_sessions) >= 2:
                    self.connections += 1
                    raise MailerUnavailable('421 4.7.0 too many connections')
                return super().connect()

    setup.mailer = mailer = Narrow()
    barrier = threading.Barrier(2)
    met: set[int] = set()

    def before(envelope: Envelope) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            barrier.wait(10)

    mailer.before = before
    setup.put_many(400)
    with setup.running(batch=1000):
        mailer.wait_for(400)
    assert log_levels(caplog, SENDING_STOPPED) == []
    assert set(setup.sent_ids().values()) == {1}
    assert mailer.connections < 20


def test_mail_published_while_the_relay_is_unavailable(setup: ProcessorSetup) -> None:
    """New mail causes no scan while other mail waits for the relay, and leaves with it."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running(pause=0.5):
        until(lambda: setup.mailer.connections >= 1)
        scans = record_scans(setup.queue)
        for _ in range(20):
            setup.put()
        assert len(scans) <= 2
        setup.mailer.unavailable = None
        setup.mailer.wait_for(21)
    assert is_empty(setup)


def test_mail_released_during_a_scan_for_new_mail(on_disk: ProcessorSetup) -> None:
    """The relay becomes unavailable during a retry and a scan for new mail: later the retry does
    not wait for the next poll."""
    scan = on_disk.queue.scan
    coming, scanning, closed = threading.Event(), threading.Event(), threading.Event()
    retrying, sent = threading.Event(), []

    def slow_scan(now: float, *, fresh: bool = False, **options: Any) -> Any:
        found = scan(now, fresh=fresh, **options)
        if fresh and coming.is_set() and not scanning.is_set():
            scanning.set()
            closed.wait(10)
            time.sleep(0.03)
        return found

    def close_once(envelope: Envelope) -> None:
        sent.append(envelope)
        if len(sent) == 2:
            retrying.set()
            scanning.wait(10)
            closed.set()
            raise MailerUnavailable('unavailable for a moment')

    on_disk.queue.scan = slow_scan
    on_disk.mailer.script('ann@example.org', DEFERRED)
    on_disk.mailer.before = close_once
    with on_disk.running(policy=RetryPolicy(delays=(0.5,), jitter=0.0), pause=1.5):
        on_disk.put('ann@example.org')
        assert retrying.wait(10)
        coming.set()
        on_disk.put('bob@example.org')
        on_disk.queue.wake()  # which does not say what is new
        on_disk.mailer.wait_for(3, 5)
    assert on_disk.mailer.accepted('ann@example.org') == 1


def test_run_once_tries_an_unavailable_relay_once(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """One connect, no pause, an exception with the reason; the mail is unchanged."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put_many(100)
    start = time.monotonic()
    processor = setup.processor(pause=60.0)
    for connections in (1, 2):
        with pytest.raises(MailerUnavailable, match='Connection refused'):
            processor.run_once()
        assert setup.mailer.connections == connections, 'each run tries once'
    assert time.monotonic() - start < 5
    setup.mailer.unavailable = None
    assert processor.run_once() == Tally(delivered=100)


def test_run_once_sends_what_a_worker_released(
    setup: ProcessorSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose connection is stale, and that gets no other, releases its mail, and another
    worker sends it in the same run."""
    lock, both = threading.Lock(), threading.Barrier(2, timeout=10)
    seen: list[int] = []
    recorded = threading.Event()
    record_failure = CircuitBreaker.record_failure

    def record(breaker: CircuitBreaker, error: Exception, worker: Hashable) -> float:
        pause = record_failure(breaker, error, worker)
        recorded.set()
        return pause

    monkeypatch.setattr(CircuitBreaker, 'record_failure', record)

    def before(envelope: Envelope) -> None:
        me = threading.get_ident()
        with lock:
            new = me not in seen
            if new:
                seen.append(me)
        if new:
            both.wait()
        elif me == seen[0] and setup.mailer.unavailable is None:
            setup.mailer.unavailable = 'too many connections'
            raise MailerUnavailable('a stale connection', stale=True)
        elif me != seen[0]:
            # The other worker must still be sending when this one fails.
            recorded.wait(10)

    setup.mailer.before = before
    sent = setup.put_many(20)
    assert setup.processor(workers=2).run_once().delivered == 20
    assert setup.sent_ids() == Counter({each.message_id: 1 for each in sent})
    assert is_empty(setup)
