"""A processor renews the heartbeat of its queue as long as it runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from pyramid_sendmail.processor.heartbeat import HEARTBEAT_INTERVAL, Heartbeat
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.processors import ProcessorSetup, make_maildir
from tests.support.queues import NOW, Clock, until


class CountingQueue(MaildirQueue):
    """A queue on disk that records each renewal."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.renewals: list[float] = []

    def renew_heartbeat(self, since: float) -> None:
        super().renew_heartbeat(since)
        self.renewals.append(since)


def test_the_interval(tmp_path: Path) -> None:
    """By a clock that is never set, and not more often."""
    queue = make_maildir(tmp_path / 'mail', cls=CountingQueue)
    clock, monotonic = Clock(), Clock(100.0)
    heartbeat = Heartbeat(queue, clock=clock, monotonic=monotonic)
    for _ in range(300):
        heartbeat.beat()
        clock.now -= 1000
        monotonic.now += 1
    assert queue.renewals == [NOW] * 10
    assert heartbeat.due_at == 100 + 10 * HEARTBEAT_INTERVAL
    heartbeat.beat(last=True)
    heartbeat.beat(last=True)
    assert len(queue.renewals) == 12


def test_a_queue_without_one() -> None:
    """A queue that has no heartbeat is served like any other."""
    heartbeat = Heartbeat(MemoryQueue(), clock=Clock(), monotonic=Clock())
    heartbeat.beat()
    heartbeat.beat(last=True)


def test_a_processor_that_waits(tmp_path: Path) -> None:
    """It renews the heartbeat at its start, and while nothing is to do."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail', cls=CountingQueue))
    jump = [0.0]
    with setup.running(monotonic=lambda: time.monotonic() + jump[0]) as processor:
        until(lambda: setup.queue.renewals)
        assert setup.queue.last_heartbeat() is not None
        jump[0] += HEARTBEAT_INTERVAL
        processor.wake()
        until(lambda: len(setup.queue.renewals) == 2)
    assert len(set(setup.queue.renewals)) == 1


def test_once(tmp_path: Path) -> None:
    """A single pass renews it at its start, meanwhile and at its end: a cron job counts from there
    on."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail', cls=CountingQueue))
    setup.put_many(3)
    jump = [0.0]
    renewed = threading.Event()

    def before(envelope: object) -> None:
        if not renewed.is_set():
            jump[0] += HEARTBEAT_INTERVAL
            until(lambda: len(setup.queue.renewals) == 2)
            renewed.set()

    setup.mailer.before = before
    assert setup.processor(monotonic=lambda: time.monotonic() + jump[0]).run_once().delivered == 3
    assert len(setup.queue.renewals) == 3
