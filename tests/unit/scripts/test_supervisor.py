"""The supervisor with children, a clock and a wait of its own: starts, restarts, sums, statuses."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from pyramid_sendmail.scripts.children import Command
from pyramid_sendmail.scripts.signals import Signals
from pyramid_sendmail.scripts.supervisor import HEALTHY_AFTER, Supervisor, supervise
from pyramid_sendmail.scripts.terminal import Terminal
from tests.support.scripts import PseudoTerminal, without_time

BEGIN = ['begin', '/srv/mail', False, 2]


class FakeChild:
    """A child that reports and ends when a test says so."""

    def __init__(self, number: int, processes: int) -> None:
        self.pid = self.number = number
        self.processes = processes
        self.open = True
        self.status: int | None = None
        self.pending: list[list[Any]] = []
        self.stopped_by: list[int] = []
        self.scans = 0

    def fileno(self) -> int:
        raise AssertionError('nothing waits for a file')

    def reports(self) -> list[list[Any]]:
        reports, self.pending = self.pending, []
        return reports

    def poll(self) -> int | None:
        return self.status

    def stop(self, number: int) -> None:
        self.stopped_by.append(number)

    def scan_now(self) -> None:
        self.scans += 1

    def close(self) -> None:
        self.open = False


class Stage:
    """A supervisor in a world of its own. Each wait of the supervisor takes the next step of a
    test, or as many seconds as the supervisor wants to wait."""

    def __init__(self, *, processes: int = 2, once: bool = False, quiet: bool = False) -> None:
        self.now = 1000.0
        self.starts: list[tuple[float, int]] = []
        self.children: dict[int, FakeChild] = {}
        self.steps: list[Callable[[], object]] = []
        self.refused = 0
        self.shown: list[tuple[int, int]] = []
        self.supervisor = Supervisor(
            self.spawn,
            self.wait,
            Terminal(quiet=quiet),
            processes=processes,
            once=once,
            monotonic=lambda: self.now,
        )

    def spawn(self, number: int, processes: int) -> FakeChild:
        if self.refused:
            self.refused -= 1
            raise BlockingIOError(11, 'Resource temporarily unavailable')
        self.starts.append((self.now, number))
        self.children[number] = FakeChild(number, processes)
        return self.children[number]

    def wait(self, children: Sequence[object], seconds: float | None) -> None:
        if seconds is not None and children != ():
            self.now += seconds
        elif self.steps:
            self.steps.pop(0)()

    def reports(self, number: int, *reports: list[Any]) -> None:
        self.children[number].pending += reports

    def ends(self, number: int, status: int, *reports: list[Any]) -> None:
        self.reports(number, *reports)
        self.children[number].status = status

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signal the supervisor; its children end as they should."""
        os.kill(os.getpid(), number)

    def run(self, *steps: Callable[[], object]) -> int:
        self.steps = list(steps)
        with Signals(wake=lambda: None) as signals:
            return self.supervisor.run(signals)

    def end_all(self, status: int = 0) -> None:
        for child in self.children.values():
            child.status = status


def err(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = without_time(capsys.readouterr().err)
    return [line.removeprefix('psendmail-qp: ') for line in text.splitlines()]


# Starts and restarts


def test_the_first_starts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The others start when it has loaded the application, as many as are of use."""
    stage = Stage(processes=3)
    assert stage.children == {}
    status = stage.run(
        lambda: stage.starts == [(1000.0, 1)] or pytest.fail('not alone'),
        lambda: stage.reports(1, BEGIN),
        stage.stop,
        stage.end_all,
    )
    assert status == 0
    assert stage.starts == [(1000.0, 1), (1000.0, 2)]
    assert [child.processes for child in stage.children.values()] == [3, 2]
    assert [child.stopped_by for child in stage.children.values()] == [[signal.SIGTERM]] * 2
    assert err(capsys) == [
        'starting 2 of 3 processes: mail.rate is less than one mail a second for each of them',
        'watching /srv/mail with 2 processes',
        'stopped by SIGTERM; unsent mail stays queued',
        '0 delivered, 0 deferred, 0 failed',
    ]


def test_growing_pauses(capsys: pytest.CaptureFixture[str]) -> None:
    """The pause before a restart doubles from 1 to 60 s. After a child has lived for a while it is
    1 s again. Each restart is a line."""
    stage = Stage()
    kills = [lambda: stage.ends(1, -signal.SIGKILL)] * 8

    def lives_on() -> None:
        stage.now += HEALTHY_AFTER
        stage.ends(1, 0)

    stage.run(lambda: stage.reports(1, BEGIN), *kills, lives_on, stage.stop, stage.end_all)
    moments = [moment for moment, number in stage.starts if number == 1]
    pauses = [after - before for before, after in pairwise(moments)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, HEALTHY_AFTER + 1]
    lines = err(capsys)
    assert lines[1] == 'process 1 of 2 was killed by SIGKILL; it starts again in 1 s'
    assert lines[8] == 'process 1 of 2 was killed by SIGKILL; it starts again in 60 s'
    assert lines[9] == 'process 1 of 2 ended with status 0; it starts again in 1 s'
    assert len(lines) == 12
    assert [number for _, number in stage.starts].count(2) == 1


@pytest.mark.parametrize('status', [2, 3])
def test_a_restart_that_fails(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that become wrong while the others run do not end them."""
    stage = Stage(quiet=True)
    stage.run(
        lambda: stage.reports(1, BEGIN),
        lambda: stage.ends(2, -signal.SIGSEGV),
        lambda: stage.ends(2, status, ['error', 'mail.retry = soon: wrong']),
        stage.stop,
        stage.end_all,
    )
    assert err(capsys) == [
        'process 2 of 2 was killed by SIGSEGV; it starts again in 1 s',
        'process 2 of 2: mail.retry = soon: wrong; it starts again in 2 s',
    ]


def test_a_process_that_cannot_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    """The next try is after the pause; with --once it is the end."""
    stage = Stage()
    stage.refused = 1
    assert stage.run(lambda: stage.reports(1, BEGIN), stage.stop, stage.end_all) == 0
    text = 'the process could not be started: [Errno 11] Resource temporarily unavailable'
    assert err(capsys)[0] == f'process 1 of 2: {text}; it starts again in 1 s'
    assert stage.starts[0] == (1001.0, 1)
    stage = Stage(once=True)
    stage.refused = 1
    assert stage.run() == 1
    assert err(capsys) == [text]


def test_no_restart_after_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    """A child that waits for its restart, or ends while all stop, does not start again."""
    stage = Stage(quiet=True)
    status = stage.run(
        lambda: stage.reports(1, BEGIN),
        stage.stop,
        lambda: stage.ends(2, -signal.SIGKILL),
        lambda: stage.stop(signal.SIGINT),
        stage.end_all,
    )
    assert status == 0
    assert stage.children[1].stopped_by == [signal.SIGTERM, signal.SIGINT]
    assert len(stage.starts) == 2
    assert err(capsys) == []


# Exit statuses


@pytest.mark.parametrize('once', [False, True])
def test_settings_that_are_wrong(once: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """2, and the first child's reason alone."""
    stage = Stage(once=once)
    assert stage.run(lambda: stage.ends(1, 2, ['error', 'mail.retry: wrong'])) == 2
    assert len(stage.starts) == 1
    assert err(capsys) == ['mail.retry: wrong']


def test_a_queue_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    """3, and one reason, although others have started; they are stopped."""
    stage = Stage(once=True)
    failed = ['error', 'the queue is read-only']
    status = stage.run(
        lambda: stage.reports(1, BEGIN, ['progress', 0, 0, 0, 5]),
        lambda: stage.ends(1, 3, failed),
        lambda: stage.ends(2, 128 + signal.SIGTERM, failed),
    )
    assert status == 3
    assert stage.children[2].stopped_by == [signal.SIGTERM]
    assert err(capsys) == ['0 delivered, 0 deferred, 0 failed', failed[1]]


@pytest.mark.parametrize(
    ('statuses', 'status'),
    [((0, 0), 0), ((0, 1), 1), ((1, 1), 1), ((1, 143), 143), ((0, -9), 137)],
)
def test_the_worst_status(
    statuses: tuple[int, int], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --once the highest status of the children counts; each reason is printed once."""
    stage = Stage(once=True)
    reason = [['error', 'relay unavailable'] for each in statuses if each == 1][:1]
    found = stage.run(
        lambda: stage.reports(1, BEGIN, ['progress', 0, 0, 0, 5]),
        lambda: [
            stage.ends(number, each, *reason) for number, each in enumerate(statuses, start=1)
        ],
    )
    assert found == status
    killed = ['process 2 of 2 was killed by SIGKILL'] * (-9 in statuses)
    expected = [*killed, '0 delivered, 0 deferred, 0 failed', *['relay unavailable'] * len(reason)]
    assert err(capsys) == expected


def test_once_ended_by_a_signal() -> None:
    """128 plus the number, even if the children had just ended."""
    stage = Stage(once=True)

    def both() -> None:
        stage.stop(signal.SIGINT)
        stage.ends(1, 0)

    assert stage.run(lambda: stage.reports(1, BEGIN), both) == 130


def test_an_error_of_the_supervisor() -> None:
    """It closes the children's sockets, so that they stop."""
    stage = Stage()

    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(fails)
    assert not stage.children[1].open


# Counts


def test_sums(capsys: pytest.CaptureFixture[str]) -> None:
    """--once prints the sums of all children, failed events included."""
    stage = Stage(once=True)
    status = stage.run(
        lambda: stage.reports(1, BEGIN, ['progress', 1, 0, 0, 9]),
        lambda: stage.ends(1, 0, ['end', 4, 1, 0, 2]),
        lambda: stage.ends(2, 0, ['progress', 3, 0, 0, 1], ['end', 3, 0, 2, 1]),
    )
    assert status == 0
    assert err(capsys) == [
        '7 delivered, 1 deferred, 2 failed',
        'subscribers failed 3 times to handle an event (see the log); what was not handled is '
        'dispatched again later',
    ]


def test_what_waits_and_what_left(capsys: pytest.CaptureFixture[str]) -> None:
    """What the first child has found waiting is printed at the start; at the end the sum of all
    processes that ran, with the time."""
    stage = Stage()

    def later() -> None:
        stage.now += 7200
        stage.ends(1, 0, ['end', 10, 2, 0, 1])
        stage.ends(2, 0, ['end', 20, 0, 3, 0])

    stage.run(
        lambda: stage.reports(1, [*BEGIN, [3, 0.0]]),
        lambda: stage.reports(1, ['counted', '/srv/mail', [7000, None, False]]),
        lambda: stage.ends(2, 1, ['end', 5, 0, 0, 0]),
        lambda: stage.reports(2, [*BEGIN, [9, 0.0]], ['counted', '/srv/mail', [8, None, False]]),
        stage.stop,
        later,
    )
    first, second, *_, stopped, summary, last = capsys.readouterr().err.splitlines()
    assert second == 'psendmail-qp: /srv/mail: 7000 mails wait, none is due yet'
    assert 'watching /srv/mail with 2 processes: 3 mails wait, the oldest since 19' in first
    assert stopped == 'psendmail-qp: stopped by SIGTERM; unsent mail stays queued'
    assert last.startswith('psendmail-qp: subscribers failed once to handle an event')
    assert summary == 'psendmail-qp: 35 delivered, 2 deferred, 3 failed in 2 h'


def test_scans_are_passed_on() -> None:
    """SIGUSR1 reaches each child, once each time."""
    stage = Stage(quiet=True)
    stage.run(
        lambda: stage.reports(1, BEGIN),
        lambda: os.kill(os.getpid(), signal.SIGUSR1),
        lambda: None,
        lambda: os.kill(os.getpid(), signal.SIGUSR1),
        stage.stop,
        stage.end_all,
    )
    assert [child.scans for child in stage.children.values()] == [2, 2]


def test_a_scan_starts_a_child_that_waits() -> None:
    """SIGUSR1 ends the pause before a restart."""
    stage = Stage(quiet=True)
    stage.refused = 1
    wait = stage.wait

    def interrupted(children: Sequence[object], seconds: float | None) -> None:
        if not stage.starts:
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            wait(children, seconds)

    stage.supervisor._wait = interrupted
    stage.run(lambda: stage.reports(1, BEGIN), stage.stop, stage.end_all)
    assert stage.starts[0] == (1000.0, 1)


def test_the_others_start_for_mail_that_is_left() -> None:
    """With --once the others start when the first has more mail than it could send at once."""
    stage = Stage(once=True)
    stage.run(
        lambda: stage.reports(1, BEGIN, ['progress', 0, 0, 0, 0]),
        lambda: stage.ends(1, 0, ['progress', 1, 0, 0, 1], ['end', 2, 0, 0, 0]),
    )
    assert len(stage.starts) == 1


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar's total is the number of mails at the start, although each child counts what it
    knows; in a queue longer than the children's lists it grows; at the end nothing is left."""
    shown: list[tuple[int, int]] = []

    class Bar:
        def __enter__(self) -> Callable[..., None]:
            return lambda tally, left: shown.append((tally.total, left))

        def __exit__(self, *exc_info: object) -> None: ...

    stage = Stage(once=True)
    monkeypatch.setattr(Terminal, 'progress', lambda self: Bar())
    stage.run(
        lambda: stage.reports(1, BEGIN, ['progress', 0, 0, 0, 100]),
        lambda: stage.reports(2, ['progress', 20, 0, 0, 75]),
        lambda: stage.reports(1, ['progress', 30, 0, 0, 60]),
        lambda: stage.reports(2, ['progress', 90, 0, 0, 40]),
        lambda: stage.ends(2, -9),
        lambda: stage.ends(1, 0, ['end', 70, 0, 0, 0], ['progress', 70, 0, 0, 0]),
    )
    assert shown == [(0, 100), (20, 80), (50, 50), (120, 10), (120, 10), (160, 0)]


# With real children


def report(*reports: object, end: str = '') -> Command:
    """Return the command of a child that makes reports and ends with a statement."""
    code = (
        'import json, os, signal, sys, time\n'
        'link = int(sys.argv[1].partition(":")[2])\n'
        f'for each in {reports!r}: os.write(link, json.dumps(each).encode() + b"\\n")\n{end}'
    )
    return Command([sys.executable, '-S', '-c', code], [])


def test_real_children(capfd: pytest.CaptureFixture[str]) -> None:
    """The reports and the exit status of a real process arrive; the handlers are restored."""
    before = signal.getsignal(signal.SIGCHLD)
    command = report(['begin', '/q', True, 1], ['end', 1, 2, 3, 0], end='sys.exit(1)')
    assert supervise(command, 2, Terminal(), once=True) == 1
    assert err(capfd) == [
        'starting 1 of 2 processes: mail.rate is less than one mail a second for each of them',
        '/q does not exist yet: creating a new queue',
        '1 delivered, 2 deferred, 3 failed',
    ]
    assert signal.getsignal(signal.SIGCHLD) == before
    assert supervise(report(end='os.kill(os.getpid(), 9)'), 2, Terminal(), once=True) == 137


def test_a_real_program_that_does_not_exist(capfd: pytest.CaptureFixture[str]) -> None:
    """The line says what could not be started."""
    assert supervise(Command(['/nowhere/python'], []), 2, Terminal(), once=True) == 1
    assert '/nowhere/python' in capfd.readouterr().err


def test_what_children_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is a bar, the supervisor prints the lines of its children, to the last one."""
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    end = 'sys.stderr.write("a line\\nhalf a "); sys.stderr.flush(); sys.stderr.write("line")'
    with PseudoTerminal() as terminal:
        command = report(['begin', '/q', False, 1], ['end', 1, 0, 0, 0], end=end)
        assert supervise(command, 1, Terminal(), once=True) == 0
    for text in ('1/1', 'a line\r\n', 'half a line\r\n', '1 delivered, 0 deferred, 0 failed\r\n'):
        assert text in without_time(terminal.text)
