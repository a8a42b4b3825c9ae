"""A day of an operator: 500 mails, a relay that is down for an hour, 40 refused; and what the log
says of it.

The clocks are simulated: they go on only when the processor has nothing to do.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyramid.registry import Registry

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.interfaces import IMailQueue
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.scripts import qp
from tests.support.processors import POLICY, ProcessorSetup
from tests.support.queues import Clock, until

MORNING = datetime(2026, 3, 2, 8, tzinfo=UTC)
DOWN, UP = MORNING.replace(hour=10), MORNING.replace(hour=11)
EVENING = MORNING.replace(hour=18)

MAILS, REFUSED = 500, 40

RELAY = 'smtp://relay.example.org:587'
WHY = 'connecting: 192.0.2.25: Connection refused; see the host and port in mail.url'


class Day(MaildirQueue):
    """The queue of that day. While the processor waits at it, the time passes: a mail every 72
    seconds, and each twelfth or so to an address that the relay refuses."""

    processor: QueueProcessor
    setup: ProcessorSetup

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(str(path), sync=False, longest=POLICY.longest, clock=clock)
        self.time = clock
        self.put_so_far = 0

    def mail_at(self, number: int) -> float:
        return (MORNING + timedelta(seconds=72 * number)).timestamp()

    def wait(self, timeout: float) -> bool:
        self.check_idle()
        if super().wait(0):
            return True
        run = self.processor.current
        assert run is not None
        pause = run.breaker.retry_in() if len(run.active_queue) else 0.0
        end = self.time.now + min(timeout, pause or timeout)
        moments = [DOWN.timestamp(), UP.timestamp(), EVENING.timestamp()]
        if self.put_so_far < MAILS:
            moments.append(self.mail_at(self.put_so_far))
        self.time.now = min([end, *(each for each in moments if each > self.time.now)])
        self.happen()
        run.active_queue.notify_waiters()
        return super().wait(0)

    def happen(self) -> None:
        now = self.time.now
        is_down = DOWN.timestamp() <= now < UP.timestamp()
        self.setup.mailer.unavailable = WHY if is_down else None
        while self.put_so_far < MAILS and self.mail_at(self.put_so_far) <= now:
            number, self.put_so_far = self.put_so_far, self.put_so_far + 1
            name = f'unknown{number}' if number % 12 == 5 and number < 480 else f'ann{number}'
            self.setup.put(f'{name}@example.org')
        if now >= EVENING.timestamp():
            os.kill(os.getpid(), signal.SIGTERM)

    def check_idle(self) -> None:
        """Wait until the workers have done what can be done now."""
        run = self.processor.current
        assert run is not None
        active, breaker = run.active_queue, run.breaker
        until(lambda: not active.working and (not len(active) or breaker.retry_in()))


class Log(logging.Handler):
    """The log, with the simulated time of each line."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self.clock = clock
        self.lines: list[tuple[str, str, str]] = []
        """Time, level and text."""

    def emit(self, record: logging.LogRecord) -> None:
        now = datetime.fromtimestamp(self.clock.now, UTC).strftime('%H:%M')
        self.lines.append((now, record.levelname, record.getMessage()))

    def found(self, words: str) -> list[tuple[str, str, str]]:
        return [line for line in self.lines if words in line[2]]


@contextmanager
def logged(clock: Clock) -> Iterator[Log]:
    own, handler = logging.getLogger('pyramid_sendmail'), Log(clock)
    level = own.level
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        own.removeHandler(handler)
        own.setLevel(level)


@pytest.fixture(scope='module')
def day(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let the day pass; return its log, the lines of psendmail-qp, and the queue."""
    clock = Clock(MORNING.timestamp() - 60)
    queue = Day(tmp_path_factory.mktemp('day') / 'mail', clock)
    queue.prepare()
    setup = queue.setup = ProcessorSetup(queue, clock=clock)
    setup.mailer.name = RELAY
    refuse(setup)
    queue.processor = setup.processor(
        workers=2, monotonic=clock, poll=30.0, pause=1.0, chance=lambda: 0.5
    )
    registry = Registry('day')
    registry.registerUtility(queue, IMailQueue)
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch, logged(clock) as log:
        patch.setattr('pyramid_sendmail.scripts.terminal.print_line', printed.append)
        status = qp.run(
            ['production.ini'],
            load=lambda uri, options: SimpleNamespace(registry=registry),
            make=lambda registry, **options: queue.processor,
        )
    assert status == 0
    return SimpleNamespace(log=log, printed=printed, queue=queue, mailer=setup.mailer)


def refuse(setup: ProcessorSetup) -> None:
    """Have the relay refuse each ``unknown``, in words of its own."""
    for number in range(5, 480, 12):
        reply = Reply(550, f'5.1.1 no such user unknown{number}')
        setup.mailer.always(f'unknown{number}@example.org', Verdict('failed', reply))


def test_the_outage(day: Any) -> None:
    """When the relay went down and why is a line; reminders after 1, 5 and 15 minutes say since
    when, how much waits, for how long and when the next try is; its return is a line with counts.
    Nothing else is said of it."""
    first, *reminders = day.log.found('unavailable')
    assert first == ('10:00', 'ERROR', f'relay unavailable, mail stays queued: {RELAY}: {WHY}')
    pattern = (
        r'relay still unavailable, after \d+ failed attempts in (\d+ \w+); mails that wait: (\d+), '
        r'the oldest for (\d+ \w+); next try in (\d+) s: ' + re.escape(f'{RELAY}: {WHY}')
    )
    found = []
    for when, level, text in reminders:
        match = re.fullmatch(pattern, text)
        assert match is not None, text
        assert level == 'ERROR'
        found.append((when, int(match[2])))
        assert int(match[4]) <= 60
    [(_, one), (_, five), (_, fifteen)] = found
    minutes = [int(when.removeprefix('10:')) for when, _ in found]
    assert minutes == [pytest.approx(each + 1, abs=1) for each in (1, 5, 15)]
    # A mail comes every 72 seconds.
    assert (one, five, fifteen) == tuple(pytest.approx(each / 1.2, abs=2) for each in minutes)
    [(when, level, text)] = day.log.found('available again')
    assert ('11:00', 'WARNING') <= (when, level) <= ('11:01', 'WARNING')
    match = re.fullmatch(
        r'relay available again, after (\d+) failed attempts in 6[01] min; mails that wait: (\d+), '
        r'the oldest for (\d+) min: ' + re.escape(RELAY),
        text,
    )
    assert match is not None, text
    assert 55 <= int(match[1]) <= 80
    assert 40 <= int(match[2]) <= 51
    assert 57 <= int(match[3]) <= 61


def test_each_refusal(day: Any) -> None:
    """Each of the 40 is an ERROR, once, with its address, its reason and where the mail is now."""
    refused = day.log.found('refused for')
    assert len(refused) == REFUSED
    assert {level for _, level, _ in refused} == {'ERROR'}
    for number in range(5, 480, 12):
        [(_, _, text)] = [line for line in refused if f'unknown{number}@' in line[2]]
        assert f'550 5.1.1 no such user unknown{number} ' in text
        assert 'failed/' in text
    assert len(list((Path(day.queue.path) / 'failed').iterdir())) == REFUSED


def test_the_totals_add_up(day: Any) -> None:
    """What the last line says is what the log, the relay and the queue say."""
    first, stopped, last = day.printed
    assert first.endswith('/mail: no mail waits')
    assert stopped == 'psendmail-qp: stopped by SIGTERM; unsent mail stays queued'
    assert last.startswith(f'psendmail-qp: {MAILS - REFUSED} delivered, 0 deferred, 40 failed in ')
    assert len(day.log.found(': sent for ')) == MAILS - REFUSED
    assert len(set(day.mailer.sent)) == len(day.mailer.sent) == MAILS
    assert not list((Path(day.queue.path) / 'new').iterdir())


def test_no_more_than_that(day: Any) -> None:
    """Besides a line for each mail, the day takes twenty lines at most; an operator who reads
    warnings alone misses nothing."""
    mails = {*day.log.found(': sent for '), *day.log.found('refused for')}
    others = [line for line in day.log.lines if line not in mails]
    assert len(others) + len(day.printed) <= 20, '\n'.join(map(str, others))
    assert {level for _, level, _ in others} <= {'WARNING', 'ERROR'}
    assert {level for _, level, _ in day.log.found(': sent for ')} == {'INFO'}
