"""``send`` warns where no queue processor serves the queue."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transaction
from zope.interface import implementer

from pyramid_sendmail import Message
from pyramid_sendmail.delivery import processor_watch
from pyramid_sendmail.delivery.processor_watch import (
    CHECK_INTERVAL,
    STALE_AFTER,
    WARNING_INTERVAL,
    ProcessorWatch,
)
from pyramid_sendmail.interfaces import IMailDelivery, IMonitoredQueue
from pyramid_sendmail.processor.heartbeat import HEARTBEAT_INTERVAL
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.configuration import committed
from tests.support.queues import NOW, Clock

MINUTE = 60.0
HOUR = 3600.0


@implementer(IMonitoredQueue)
class Queue:
    """A queue that counts how often its heartbeat is looked at."""

    def __init__(self, seen: float | None = None) -> None:
        self.seen = seen
        self.looks = 0

    def renew_heartbeat(self, since: float) -> None:
        raise NotImplementedError

    def last_heartbeat(self) -> float | None:
        self.looks += 1
        return self.seen

    def count_waiting(self, limit: int | None = None) -> tuple[int, float | None] | None:
        raise NotImplementedError


class Site:
    """A web process, a processor, and their clocks."""

    def __init__(self, seen: float | None = None) -> None:
        self.queue = Queue(seen)
        self.clock, self.monotonic = Clock(), Clock(5000.0)
        self.watch = ProcessorWatch(
            self.queue,
            '/srv/mail',
            'start "psendmail-qp production.ini"',
            clock=self.clock,
            monotonic=self.monotonic,
        )

    def passes(self, seconds: float, *, served: bool = False) -> None:
        """Let time pass, and send a mail every ten seconds."""
        end = self.monotonic.now + seconds
        while self.monotonic.now < end:
            self.monotonic.now += 10
            self.clock.now += 10
            if served:
                self.queue.seen = self.clock.now - HEARTBEAT_INTERVAL
            self.watch.check()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_no_processor_ever_ran(caplog: pytest.LogCaptureFixture) -> None:
    """One warning an hour, with the remedy; none in the first minute, in which a processor may be
    starting as well."""
    site = Site()
    site.passes(CHECK_INTERVAL - 10)
    assert (site.queue.looks, warnings(caplog)) == (0, [])
    site.passes(MINUTE)
    assert warnings(caplog) == [
        'queue /srv/mail: no queue processor runs (none has run yet), and mail waits there until '
        'one does; start "psendmail-qp production.ini"'
    ]
    site.passes(WARNING_INTERVAL - 2 * MINUTE)
    assert len(warnings(caplog)) == 1
    site.passes(3 * MINUTE)
    assert len(warnings(caplog)) == 2


def test_one_look_a_minute() -> None:
    """However much mail is sent, the file is looked at once a minute."""
    site = Site()
    for _ in range(100_000):
        site.watch.check()
    assert site.queue.looks == 0
    site.passes(10 * MINUTE, served=True)
    assert site.queue.looks == 10


def test_a_processor_that_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """The warning says for how long none was seen."""
    site = Site()
    site.passes(HOUR, served=True)
    site.passes(STALE_AFTER - 2 * MINUTE)
    assert warnings(caplog) == []
    site.passes(3 * HOUR)
    first, *rest = warnings(caplog)
    assert 'the last sign of one is 10 min old' in first
    assert len(rest) == 2
    assert 'the last sign of one is 2 h old' in rest[-1]


def test_a_cron_job(caplog: pytest.LogCaptureFixture) -> None:
    """``--once`` every five minutes is a processor too."""
    site = Site()
    for _ in range(20):
        site.queue.seen = site.clock.now
        site.passes(5 * MINUTE)
    assert warnings(caplog) == []


@pytest.mark.parametrize('step', [-HOUR, HOUR, 365 * 24 * HOUR])
def test_the_clock_is_set(step: float, caplog: pytest.LogCaptureFixture) -> None:
    """A processor that runs gives no cause for a warning whatever the clock does; one that has
    ended is noticed all the same."""
    site = Site()
    site.passes(5 * MINUTE, served=True)
    site.clock.now += step  # and the processor renews within half a minute
    site.passes(20)
    site.passes(5 * MINUTE, served=True)
    assert warnings(caplog) == []
    site.clock.now += step
    site.passes(HOUR)
    assert len(warnings(caplog)) == 1
    assert ('dated in the future' in caplog.text) == (step < 0)


# In an application


def sends(registry: Any) -> None:
    with transaction.manager:
        message = Message(to='ann@example.org', sender='shop@example.org', subject='x', text='x')
        registry.getUtility(IMailDelivery).send(message)


@pytest.mark.parametrize(
    ('settings', 'remedy'),
    [
        ({'url': 'smtp://relay'}, 'start "psendmail-qp production.ini", or set mail.processor'),
        ({'url': 'smtp://relay', 'processor': 'thread'}, 'start the web process'),
        ({'url': 'null:'}, ''),
    ],
)
def test_an_application(
    settings: dict[str, str],
    remedy: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``send`` warns with the remedy for its settings; not where mail is dropped anyway."""
    monkeypatch.setattr(processor_watch, 'CHECK_INTERVAL', 0.0)
    registry = committed(queue_path=str(tmp_path / 'mail'), **settings)
    caplog.clear()
    for _ in range(3):
        sends(registry)
    assert len(warnings(caplog)) == bool(remedy)
    assert remedy in caplog.text


def test_a_processor_serves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat of another process is enough."""
    monkeypatch.setattr(processor_watch, 'CHECK_INTERVAL', 0.0)
    registry = committed(url='smtp://relay', queue_path=str(tmp_path / 'mail'))
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False)
    queue.prepare()
    queue.renew_heartbeat(NOW)
    caplog.clear()
    sends(registry)
    assert warnings(caplog) == []


def test_queues_without_a_heartbeat() -> None:
    """A queue in memory has none: nothing is looked at, and nothing is warned of."""
    assert not IMonitoredQueue.providedBy(MemoryQueue())
