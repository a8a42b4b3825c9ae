"""The queue processor when it is stopped: idle, connecting, or with mail in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.exceptions import MailerUnavailable
from tests.support.doubles import RecordingMailer
from tests.support.processors import (
    SENDING_STOPPED,
    ProcessorSetup,
    is_empty,
    log_levels,
    record_scans,
    running_processor,
    worker_threads,
)
from tests.support.queues import until


def test_stop_while_idle(setup: ProcessorSetup) -> None:
    """An idle processor stops at once, and closes its sessions."""
    start = time.monotonic()
    with setup.running():
        setup.put()
        setup.mailer.wait_for(1)
    assert time.monotonic() - start < 5
    assert setup.mailer.open_sessions == []


def test_stop_while_connecting(setup: ProcessorSetup, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that waits for a relay is not waited for, and claims nothing later."""
    entered, leave = threading.Event(), threading.Event()

    class Hanging(RecordingMailer):
        def connect(self) -> Any:
            entered.set()
            assert leave.wait(10)
            raise MailerUnavailable('the greeting: timed out')

    setup.mailer = Hanging()
    setup.put()
    start = time.monotonic()
    with setup.running(grace=30):
        assert entered.wait(10)
        workers = worker_threads()
    assert time.monotonic() - start < 5
    scans = record_scans(setup.queue)
    leave.set()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    assert (scans, log_levels(caplog, SENDING_STOPPED)) == ([], [])
    assert not is_empty(setup)


def test_stop_in_the_middle_of_a_mail(setup: ProcessorSetup) -> None:
    """Mail in flight is finished, other mail stays; nothing is sent twice."""
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    setup.mailer.before = before
    setup.put_many(5)
    processor = setup.processor(workers=1)
    with running_processor(processor) as stop:
        assert entered.wait(10)
        stop.set()
        processor.wake()
        pool = processor.current
        assert pool is not None
        until(lambda: pool.active_queue.closed)
        leave.set()
    assert len(setup.mailer.sent) == 1
    assert setup.processor().run_once() == Tally(delivered=4)
    assert set(setup.sent_ids().values()) == {1}


def test_stop_and_a_mail_that_never_finishes(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """After the grace it is not waited for any longer, and the log says so."""
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    setup.mailer.before = before
    setup.put()
    with setup.running(grace=0.1):
        assert entered.wait(10)
        workers = worker_threads()
    assert log_levels(caplog, 'still sending') == ['WARNING']
    leave.set()
    for worker in workers:
        worker.join(10)


def test_run_once_stopped(setup: ProcessorSetup) -> None:
    """``stop`` ends the run after the mail in flight, and the counts say how far it came."""
    stop = threading.Event()
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    def progress(tally: Tally, left: int) -> None:
        if entered.is_set():
            assert left == 5
            stop.set()
            leave.set()

    setup.mailer.before = before
    setup.put_many(5)
    tally = setup.processor(workers=1).run_once(progress_until(stop, progress), stop)
    assert tally.delivered == len(setup.mailer.sent) < 5


def progress_until(stop: threading.Event, progress: Callable[[Tally, int], None]) -> Any:
    def show(tally: Tally, left: int) -> None:
        if not stop.is_set():
            progress(tally, left)

    return show


def test_run_once_stopped_while_connecting(setup: ProcessorSetup) -> None:
    """``stop`` does not wait for the greeting of a relay that hangs."""
    entered, leave = threading.Event(), threading.Event()
    stop = threading.Event()

    class Hanging(RecordingMailer):
        def connect(self) -> Any:
            entered.set()
            assert leave.wait(10)
            raise MailerUnavailable('the greeting: timed out')

    setup.mailer = Hanging()
    setup.put()
    start = time.monotonic()
    tally = setup.processor().run_once(lambda tally, left: entered.is_set() and stop.set(), stop)  # type: ignore[arg-type, return-value]
    assert tally == Tally()
    assert time.monotonic() - start < 5
    workers = worker_threads()
    leave.set()
    for worker in workers:
        worker.join(10)
