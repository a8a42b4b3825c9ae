"""Subscribers that fail, that do not return, and that fork: the log and the thread."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.events import dispatcher as dispatcher_module
from pyramid_sendmail.events import failures
from pyramid_sendmail.events.dispatcher import THREAD
from pyramid_sendmail.events.failures import FORGET_AFTER, MAX_KINDS, REPEAT_INTERVAL, FailureLog
from tests.support.queues import Clock, make_envelope, sent, until
from tests.unit.events.test_dispatcher import WAIT, Application, Claim


@pytest.fixture
def application() -> Application:
    return Application()


def event_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(THREAD)]


def traced(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that have a traceback."""
    return [record.getMessage() for record in caplog.records if record.exc_info]


def fail(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        return raised


def fail_elsewhere(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        return raised


# Failures


def test_a_failure_is_logged_once_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand events with the same failure write one traceback and a line a minute."""
    clock = Clock(0.0)
    log = FailureLog(clock)
    for number in range(10_000):
        log.add(f'event {number} failed', fail(ValueError(f'no {number}\nor so')))
        clock.now += REPEAT_INTERVAL / 1_000
    log.flush()
    log.flush()
    assert traced(caplog) == ['event 0 failed']
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 11
    assert lines[-1].endswith('the last: event 9999 failed: ValueError: no 9999 or so')
    counted = [int(line.split(' times')[0].rpartition(' ')[2]) for line in lines[1:]]
    assert sum(counted) == 9_999


def test_one_failure_more(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog(Clock(0.0))
    for number in range(2):
        log.add(f'event {number} failed', fail(ValueError('no')))
    log.flush()
    text = 'event 1 failed: ValueError: no (its traceback was logged before)'
    assert caplog.messages == ['event 0 failed', text]


def test_kinds_of_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Another type or another line is another kind, and has its traceback; so has one that did not
    happen for an hour."""
    clock = Clock(0.0)
    log = FailureLog(clock)
    made: list[Callable[[], Exception]] = [
        lambda: fail(ValueError('a')),
        lambda: fail(KeyError('a')),
        lambda: fail_elsewhere(ValueError('a')),
        lambda: ValueError('never raised'),
    ]
    for _ in range(3):
        for make in made:
            log.add('failed', make())
    assert len(traced(caplog)) == len(made)
    clock.now += FORGET_AFTER + 1
    log.add('failed', made[0]())
    assert len(traced(caplog)) == len(made) + 1


def test_a_bounded_number_of_kinds(caplog: pytest.LogCaptureFixture) -> None:
    """Failures of ever new kinds take no memory; the oldest is forgotten."""
    log = FailureLog(Clock(0.0))
    types = [type(f'Error{number}', (Exception,), {}) for number in range(2 * MAX_KINDS)]
    for each in types:
        log.add('failed', fail(each()))
    assert len(log._kinds) == MAX_KINDS
    log.add('failed', fail(types[-1]()))
    assert len(traced(caplog)) == len(types)
    log.add('failed', fail(types[0]()))
    assert len(traced(caplog)) == len(types) + 1


def test_events_whose_subscriber_always_fails(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """The dispatcher logs them so: nothing is lost when it has caught up."""
    application.subscribe(lambda event: 1 / 0)
    dispatcher = application.dispatcher
    claims: list[Any] = []
    for _ in range(50):
        claim: Any = Claim(make_envelope())
        dispatcher.dispatch(claim, [sent(claim.envelope)])
        claims.append(claim)
    assert dispatcher.flush(WAIT)
    until(lambda: claims[-1].envelope.message_id in caplog.text)
    assert len(traced(caplog)) == 1
    assert len(caplog.records) < 50
    assert all(done[0] == 'retry_events' for claim in claims for done in claim.done)


# A subscriber that does not return


def waits_in_shop_code(going_on: threading.Event) -> None:
    going_on.wait(WAIT)


def test_a_subscriber_that_does_not_return(
    application: Application, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the event, the subscriber and the line, again and again, less and less often;
    and has no word about subscribers that return."""
    monkeypatch.setattr(failures, 'STALL_TIME', 0.1)
    going_on = threading.Event()

    def never_returns(event: Any) -> None:
        if event.tag == 'stalls':
            waits_in_shop_code(going_on)

    application.subscribe(never_returns)
    for tag in (None, 'stalls'):
        claim: Any = Claim(make_envelope(tag=tag))
        dispatcher = application.dispatcher
        dispatcher.dispatch(claim, [sent(claim.envelope)])
    until(lambda: len(caplog.records) >= 2)
    going_on.set()
    assert dispatcher.flush(WAIT)
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        text = record.getMessage()
        assert text.startswith(f'{claim.envelope.message_id}: sent event ')
        assert f'{__name__}.test_a_subscriber_that_does_not_return.<locals>.never_returns' in text
        assert 'threading.py:' in text


# A subscriber that forks


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
@pytest.mark.parametrize(
    ('leave', 'status'),
    [
        (lambda: exit_with(3), 3),
        (lambda: exit_with(None), 0),
        (lambda: exit_with('said why'), 1),
        (lambda: 1 / 0, 1),
        (lambda: None, 1),
    ],
)
def test_a_subscriber_that_forks(
    application: Application, tmp_path: Any, leave: Callable[[], object], status: int
) -> None:
    """The child ends with its status, and neither commits nor handles an event: its parent does,
    once."""
    committed = tmp_path / 'committed'

    def commits(done: bool) -> None:
        with committed.open('a') as file:
            file.write(f'{os.getpid()}\n')

    statuses: list[int] = []

    def subscriber(event: Any) -> None:
        event.request.tm.get().addAfterCommitHook(commits)
        pid = os.fork()
        if not pid:
            leave()
            return
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    application.subscribe(subscriber)
    claim = application.dispatch()
    assert statuses == [status]
    assert [done[0] for done in claim.done] == ['acknowledge']
    assert committed.read_text() == f'{os.getpid()}\n'


def exit_with(status: object) -> None:
    raise SystemExit(status)


# The thread


def test_an_idle_thread_ends(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it goes the application: what is left of an application that sent mail is nothing. An
    event that comes later has another thread."""
    monkeypatch.setattr(dispatcher_module, 'IDLE_TIME', 0.05)
    seen: list[Any] = []
    application.subscribe(lambda event: seen.append(threading.current_thread()))
    dispatcher = application.dispatcher
    before = set(event_threads())
    for count in range(1, 4):
        claim: Any = Claim(make_envelope())
        dispatcher.dispatch(claim, [sent(claim.envelope)])
        until(lambda count=count: len(seen) == count)
        until(lambda: not set(event_threads()) - before)
    assert len(set(seen)) == 3
    reference = weakref.ref(dispatcher)
    del dispatcher
    gc.collect()
    assert reference() is None


def test_events_beside_the_end_of_the_thread(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that comes while the thread ends is handled."""
    monkeypatch.setattr(dispatcher_module, 'IDLE_TIME', 0.0)
    count = 0

    def subscriber(event: Any) -> None:
        nonlocal count
        count += 1

    application.subscribe(subscriber)
    dispatcher = application.dispatcher
    for number in range(1, 301):
        claim: Any = Claim(make_envelope())
        dispatcher.dispatch(claim, [sent(claim.envelope)])
        if number % 3:
            until(lambda number=number: count == number)
    until(lambda: count == 300)
