"""``psendmail-qp`` in this process: arguments, the application, statuses, the terminal."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from pyramid.registry import Registry
from zope.interface.verify import verifyObject

from pyramid_sendmail.config.factories import register_settings, settings_of
from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.events.dispatcher import EventDispatcher
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import (
    IMailEventDispatcher,
    IMailQueue,
    IMailQueueProcessor,
)
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.scripts import qp
from pyramid_sendmail.settings.overrides import current_overrides
from tests.support import applications
from tests.support.applications import write_ini
from tests.support.configuration import parse
from tests.support.queues import NOW, make_envelope, until
from tests.support.scripts import Processor, PseudoTerminal, application, run, without_time

pytestmark = pytest.mark.usefixtures('logging_as_before')


def once(tally: Tally, *, total: int = 0) -> Callable[..., Tally]:
    def run_once(progress: Any, stop: Any) -> Tally:
        progress(Tally(delivered=1), total - 1)
        progress(tally, 0)
        return tally

    return run_once


def raises(error: Exception) -> Callable[..., Tally]:
    def run_once(progress: Any, stop: Any) -> Tally:
        progress(Tally(delivered=2), 3)
        raise error

    return run_once


def test_double() -> None:
    """The processor of these tests implements the interface."""
    assert verifyObject(IMailQueueProcessor, Processor())


# Arguments


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the options, and every setting with its default."""
    assert qp.run(['--help']) == 0
    text = capsys.readouterr().out
    for word in ('--once', '--workers', '--batch', '--processes', '--reload', '--quiet'):
        assert word in text
    for word in ('key=value', '4', 'USR1'):
        assert word in text
    assert 'mail.queue_path' in text
    assert '--child' not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Name and version, on standard output."""
    assert qp.run(['--version']) == 0
    assert capsys.readouterr().out.startswith('psendmail-qp 1.')


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['x.ini', '--workers', '0'],
        ['x.ini', '--workers', 'many'],
        ['x.ini', '--batch', '-1'],
        ['x.ini', '--batch', '²'],
        ['x.ini', '--processes', '0'],
        ['x.ini', '--processes', 'all'],
        ['x.ini', '--reload', '--once'],
        ['x.ini', '--reload', '--processes', '2'],
        ['x.ini', '--child', '1/2'],
        ['x.ini', '--child', '1/2:9999'],
        ['x.ini', '--nonsense'],
    ],
)
def test_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line: status 2, and the usage."""
    assert qp.run(argv) == 2
    assert 'usage: psendmail-qp' in capsys.readouterr().err


def test_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments it says what to write."""
    assert qp.run([]) == 2
    assert 'name the .ini file of the application' in capsys.readouterr().err


def test_arguments() -> None:
    """Options may stand anywhere among the variables."""
    processor = Processor(run_once=once(Tally()))
    seen: list[Any] = []
    app = application()

    def load(uri: str, options: dict[str, str]) -> Any:
        seen.append((uri, options))
        return app

    def make(registry: Registry, **arguments: Any) -> Any:
        seen.append(arguments)
        return processor

    argv = ['x.ini#name', '--once', 'a=1', '--workers', '2', 'b=x=y', '--batch', '7', '--quiet']
    assert qp.run(argv, load=load, make=make) == 0
    assert seen == [('x.ini#name', {'a': '1', 'b': 'x=y'}), {'workers': 2, 'batch': 7}]


@pytest.mark.parametrize('word', ['nonsense', '=x'])
def test_bad_variables(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable without = or without a name is named, with the remedy."""
    assert qp.run(['x.ini', word]) == 2
    assert f"'{word}': write variables as key=value" in capsys.readouterr().err


def test_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script takes its arguments from the command line."""
    monkeypatch.setattr(sys, 'argv', ['psendmail-qp', '--nonsense'])
    ends: list[str] = []
    monkeypatch.setattr(gc, 'freeze', lambda: ends.append('frozen'))
    assert qp.main() == 2
    assert qp.main(['--version']) == 0
    assert ends == ['frozen'] * 2


# Several processes


def with_settings(**settings: Any) -> Any:
    """Return an application with these settings."""
    app = application()
    register_settings(app.registry, parse(**settings))
    return app


def test_the_setting_for_several_processes(tmp_path: Path) -> None:
    """With mail.processes the process becomes a supervisor: another program in place of the one
    that has loaded the application, with the environment from before."""
    os.environ.pop('TESTS_LOADED', None)
    commands: list[list[str]] = []

    def load(uri: str, options: dict[str, str]) -> Any:
        os.environ['TESTS_LOADED'] = '1'
        return with_settings(processes=3, rate='2/s')

    def execute(path: str, command: list[str], environ: dict[str, str]) -> int:
        assert path == sys.executable
        assert 'TESTS_LOADED' not in environ
        assert environ['PATH'] == os.environ['PATH']
        commands.append(command)
        return 7

    try:
        assert qp.run(['x.ini', '--once'], load=load, execute=execute) == 7
    finally:
        del os.environ['TESTS_LOADED']
    module = 'pyramid_sendmail.scripts.qp'
    assert commands == [[sys.executable, '-m', module, '--processes=2', 'x.ini', '--once']]


@pytest.mark.parametrize(
    ('settings', 'options'),
    [({'processes': 3}, ['--processes', '1']), ({'processes': 3, 'rate': '1/s'}, []), ({}, [])],
)
def test_one_process(settings: dict[str, Any], options: list[str]) -> None:
    """The option wins over the setting; a rate that one process is enough for needs no others."""
    processor = Processor(run_once=once(Tally()))
    app = with_settings(**settings)
    assert run('x.ini', '--once', *options, processor=processor, app=app) == 0


def test_a_supervisor_in_this_process(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With --processes nothing is loaded here; a child finds what is wrong."""
    assert qp.run([str(tmp_path / 'x.ini'), '--processes', '2']) == 2
    assert capfd.readouterr().err.endswith('x.ini: No such file or directory\n')


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, Callable[[str], str]]]:
    """Return the supervisor's end of a socket, and a function from ``1/2`` to the argument of
    --child."""
    ours, theirs = socket.socketpair()
    with ours:
        yield ours, lambda which: f'--child={which}:{theirs.detach()}'


def reports_of(link: socket.socket) -> list[Any]:
    link.setblocking(False)
    return [json.loads(line) for line in link.recv(65536).splitlines()]


def test_a_child(
    link: tuple[socket.socket, Callable[[str], str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes its share of workers and rate, prints nothing, and reports everything."""
    ours, child = link
    app = with_settings(workers=8, rate='7/s')
    processor = Processor(run_once=once(Tally(delivered=3), total=3))
    argv = ['x.ini', '--once', '--workers', '5', child('1/3')]
    assert run(*argv, processor=processor, app=app) == 0
    assert processor.arguments == {'workers': 2, 'batch': None}
    settings = settings_of(app.registry)
    assert (settings.workers, settings.rate) == (3, (3, 1))
    assert [report[0] for report in reports_of(ours)] == ['begin', 'progress', 'progress', 'end']
    assert capsys.readouterr().err == ''


def test_the_first_child_knows_how_many_are_of_use(
    link: tuple[socket.socket, Callable[[str], str]],
) -> None:
    """mail.rate may be too low for all of them: it takes the share of one among fewer."""
    ours, child = link
    app = with_settings(rate='2/s')
    processor = Processor(run=lambda self, stop: None)
    assert run('x.ini', child('1/8'), processor=processor, app=app) == 0
    assert settings_of(app.registry).rate == (1, 1)
    [begin] = reports_of(ours)
    assert begin[3] == 2


def test_a_child_that_fails(link: tuple[socket.socket, Callable[[str], str]]) -> None:
    """It reports why."""
    ours, child = link
    processor = Processor(run_once=raises(MailerUnavailable('refused')))
    assert run('x.ini', '--once', child('2/2'), processor=processor) == 1
    assert reports_of(ours)[-1] == ['error', 'relay unavailable, mail stays queued: refused']


def test_a_child_scans(link: tuple[socket.socket, Callable[[str], str]]) -> None:
    """It scans when the supervisor says so, and goes on; a signal that comes with it still
    counts."""
    ours, child = link
    scanned = threading.Event()

    def work(processor: Processor, stop: threading.Event) -> None:
        ours.sendall(b'%d\n' % signal.SIGUSR1)
        assert scanned.wait(10)
        assert not stop.is_set()
        scanned.clear()
        ours.sendall(b'%d\n%d\n' % (signal.SIGTERM, signal.SIGUSR1))
        # The handler runs between two steps of this thread: it must not sleep in one wait.
        until(stop.is_set)
        assert scanned.wait(10)

    processor: Any = Processor(run=work)
    processor.scan_now = scanned.set
    assert run('x.ini', child('2/2'), processor=processor) == 0


@pytest.mark.parametrize('dies', [False, True])
def test_a_child_is_stopped(
    link: tuple[socket.socket, Callable[[str], str]], dies: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops when the supervisor says so, or has died."""
    ours, child = link

    def work(processor: Processor, stop: threading.Event) -> None:
        if dies:
            ours.close()
        else:
            ours.sendall(b'%d\n' % signal.SIGINT)
        assert processor.woken.wait(10)
        assert stop.wait(10)

    assert run('x.ini', child('2/2'), processor=Processor(run=work)) == 0
    assert ('has died' in caplog.text) == dies


# Exit statuses


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    """0 when everything due was tried; without a terminal one plain line, no bar."""
    processor = Processor(run_once=once(Tally(delivered=3, deferred=2, failed=1), total=6))
    assert run('x.ini', '--once', processor=processor) == 0
    captured = capsys.readouterr()
    first, last = without_time(captured.err).splitlines()
    assert first.endswith(': no mail waits')
    assert last == 'psendmail-qp: 3 delivered, 2 deferred, 1 failed'
    assert captured.out == ''


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """--quiet prints nothing but errors."""
    processor = Processor(run_once=once(Tally(delivered=3)), run=lambda self, stop: None)
    assert run('x.ini', '--once', '--quiet', processor=processor) == 0
    assert run('x.ini', '--quiet', processor=processor) == 0
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('error', 'status', 'text'),
    [
        (
            MailerUnavailable('smtp://relay:25: connecting: refused'),
            1,
            'relay unavailable, mail stays queued',
        ),
        (QueueError(30, 'the queue cannot be made: read-only', '/q'), 3, 'read-only'),
    ],
)
def test_errors(
    error: Exception, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """1: no relay could be used; 3: the queue cannot be used. The counts so far are printed."""
    processor = Processor(run_once=raises(error))
    assert run('x.ini', '--once', processor=processor) == status
    lines = without_time(capsys.readouterr().err).splitlines()
    assert lines[1] == 'psendmail-qp: 2 delivered, 0 deferred, 0 failed'
    assert text in lines[2]
    assert lines[2].startswith('psendmail-qp: ')


def test_watch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without --once it runs until it is stopped, and says what it watches, what waits there, and
    whether the queue is a new one: its path may be mistyped."""
    (tmp_path / 'mail').mkdir()
    for name, lines in (
        ('mail', ['watching {}: no mail waits']),
        ('mial', ['{} does not exist yet: creating a new queue', 'watching {}']),
    ):
        app = application(MaildirQueue(str(tmp_path / name)))
        processor = Processor(run=lambda self, stop: None)
        assert run('x.ini', processor=processor, app=app) == 0
        expected = [f'psendmail-qp: {line}\n'.format(tmp_path / name) for line in lines]
        assert capsys.readouterr().err == ''.join(expected)


def test_a_queue_that_cannot_be_seen(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue below a folder that this user may not enter is not called a new one."""

    def denied(path: str) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    app = application(MaildirQueue(str(tmp_path / 'mail')))
    monkeypatch.setattr(os, 'lstat', denied)
    assert run('x.ini', processor=Processor(run=lambda self, stop: None), app=app) == 0
    assert 'does not exist' not in capsys.readouterr().err


@pytest.mark.parametrize('options', [[], ['--once']])
def test_what_waits(options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The first line says how much mail waits, and since when; scheduled mail is not late."""
    queue = MaildirQueue(str(tmp_path))
    app = application(queue)

    def first_line() -> str:
        processor = Processor(run=lambda self, stop: None, run_once=once(Tally()))
        assert run('x.ini', *options, processor=processor, app=app) == 0
        return capsys.readouterr().err.splitlines()[0]

    before = f'psendmail-qp: {"" if options else "watching "}{tmp_path}: '
    queue.put([make_envelope(due=4e9)]).publish()
    assert first_line() == f'{before}1 mail waits, none is due yet'
    queue.put([make_envelope(due=NOW)]).publish()
    when = time.strftime('%Y-%m-%d %H:%M', time.localtime(NOW))
    line = first_line()
    assert line.startswith(f'{before}2 mails wait, the oldest since {when} (')
    assert line.endswith(' d)')


class Counting(MaildirQueue):
    """A queue whose mail is not counted to the end before the processor runs."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.running = threading.Event()

    def stats(self) -> Any:
        raise NotImplementedError

    def count_waiting(self, limit: int | None = None) -> Any:
        assert limit is not None or self.running.is_set()
        return super().count_waiting(limit)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    monkeypatch.setattr(qp, 'COUNTED_AT_ONCE', 2)
    queue = Counting(tmp_path)
    queue.put([make_envelope(due=NOW + number) for number in range(3)]).publish()
    return queue


def test_more_waits_than_is_counted_at_once(
    counting: Counting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line says so. The number is printed while the processor runs."""
    monkeypatch.setattr(qp, 'COUNT_DELAY', 0.01)
    printed = ''

    def work(processor: Any, stop: threading.Event) -> None:
        nonlocal printed
        counting.running.set()
        while '3 mails wait' not in printed:
            printed += capsys.readouterr().err
            time.sleep(0.005)

    assert run('x.ini', processor=Processor(run=work), app=application(counting)) == 0
    first, second = printed.splitlines()
    assert first == f'psendmail-qp: watching {counting.path}: more than 2 mails wait'
    assert second.startswith(f'psendmail-qp: {counting.path}: 3 mails wait, the oldest since 20')


def test_a_run_that_ends_before_what_waits_is_counted(
    counting: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    """No number is printed, and no thread stays."""
    processor = Processor(run_once=once(Tally()))
    assert run('x.ini', '--once', processor=processor, app=application(counting)) == 0
    first, summary = without_time(capsys.readouterr().err).splitlines()
    assert first == f'psendmail-qp: {counting.path}: more than 2 mails wait'
    assert summary == 'psendmail-qp: 0 delivered, 0 deferred, 0 failed'
    until(lambda: qp.COUNTING not in [each.name for each in threading.enumerate()])


def test_a_queue_that_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """The run itself says what is wrong with it; nothing is counted for --quiet."""

    class Queue(MemoryQueue):
        def stats(self) -> Any:
            raise QueueError(5, 'unreadable')

        def __str__(self) -> str:
            return 'memory'

    for options, text in (([], 'psendmail-qp: watching memory\n'), (['--quiet'], '')):
        processor = Processor(run=lambda self, stop: None)
        assert run('x.ini', *options, processor=processor, app=application(Queue())) == 0
        assert capsys.readouterr().err == text


def test_what_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says what a processor that was stopped had sent, and for how long it ran."""

    def work(processor: Any, stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        processor.tally = Tally(delivered=5, deferred=2, failed=1)

    assert run('x.ini', processor=Processor(run=work)) == 0
    stopped, last = capsys.readouterr().err.splitlines()[-2:]
    assert stopped == 'psendmail-qp: stopped by SIGTERM; unsent mail stays queued'
    assert last.startswith('psendmail-qp: 5 delivered, 2 deferred, 1 failed in ')
    assert last.endswith(' s')


@pytest.mark.parametrize(('failures', 'times'), [(1, 'once'), (2, '2 times')])
def test_events_that_subscribers_failed_to_handle(
    failures: int, times: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """--once says how often subscribers failed to handle an event, so that it does not look like a
    success. It is a number of times: --once dispatches an event that failed once more."""
    app = application()
    dispatcher = EventDispatcher(app.registry)
    app.registry.registerUtility(dispatcher, IMailEventDispatcher)
    dispatcher.failures = failures
    processor = Processor(run_once=once(Tally(delivered=2)))
    assert run('x.ini', '--once', processor=processor, app=app) == 0
    text = without_time(capsys.readouterr().err)
    assert text.partition('\n')[2] == (
        'psendmail-qp: 2 delivered, 0 deferred, 0 failed\n'
        f'psendmail-qp: subscribers failed {times} to handle an event (see the log); what was not '
        'handled is dispatched again later\n'
    )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM, SIGINT and SIGHUP stop it with status 0 and a line, and it restores the handlers."""
    # The tests may run under nohup.
    started_with = signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)

    def work(processor: Processor, stop: threading.Event) -> None:
        os.kill(os.getpid(), number)
        assert processor.woken.wait(10)
        assert stop.is_set()
        assert signal.getsignal(number) == signal.SIG_DFL, 'a second one ends the process'

    assert run('x.ini', processor=Processor(run=work)) == 0
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'psendmail-qp: stopped by {signal.Signals(number).name}; unsent mail stays queued'
    )
    assert run('x.ini', '--quiet', processor=Processor(run=work)) == 0
    assert capsys.readouterr().err == ''
    signal.signal(number, started_with)


@pytest.mark.parametrize('does', ['scan_now', 'wake'])
def test_a_signal_to_scan(does: str) -> None:
    """SIGUSR1 has the processor scan now, or wakes one of the application's own that has no such
    method; it stops nothing. After the run its handler is the one from before."""
    before = signal.getsignal(signal.SIGUSR1)
    scans: list[int] = []

    def work(processor: Any, stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert len(scans) + processor.woken.is_set() == 1
        assert not stop.is_set()

    processor: Any = Processor(run=work)
    if does == 'scan_now':
        processor.scan_now = lambda: scans.append(1)
    assert run('x.ini', processor=processor) == 0
    assert len(scans) == (does == 'scan_now')
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_to_scan_with_nothing_to_do() -> None:
    """While the application is loaded, and with --once, SIGUSR1 is ignored: everything is scanned
    anyway."""

    def load(uri: str, options: dict[str, str]) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return application()

    def run_once(progress: Any, stop: threading.Event) -> Tally:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.is_set()
        return Tally()

    processor = Processor(run_once=run_once)
    assert qp.run(['x.ini', '--once'], load=load, make=lambda *_, **__: processor) == 0


def test_nohup() -> None:
    """Under nohup SIGHUP does not stop it."""

    def work(processor: Processor, stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.wait(0.02)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run('x.ini', processor=Processor(run=work)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_once_ended_by_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    """The status of an unfinished run is 128 plus the number of the signal."""

    def run_once(progress: Any, stop: threading.Event) -> Tally:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
        progress(Tally(delivered=1), 4)
        return Tally(delivered=1)

    assert run('x.ini', '--once', processor=Processor(run_once=run_once)) == 130
    assert '1 delivered' in capsys.readouterr().err


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('options', [[], ['--once']])
def test_a_signal_while_loading(number: int, options: list[str]) -> None:
    """It ends at once, without a traceback."""

    def load(uri: str, options: dict[str, str]) -> Any:
        os.kill(os.getpid(), number)
        threading.Event().wait(10)
        raise AssertionError('not interrupted')

    assert qp.run(['x.ini', *options], load=load) == (128 + number if options else 0)


# The terminal


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """--once shows how many mails are done, of how many, below the log; then the counts."""
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    with PseudoTerminal() as terminal:
        handler = logging.StreamHandler(sys.stderr)
        logging.root.addHandler(handler)
        stream = handler.stream

        def run_once(progress: Any, stop: Any) -> Tally:
            progress(Tally(delivered=1), 2)
            assert handler.stream is not stream
            logging.getLogger('x').warning('a line of the log')
            progress(Tally(delivered=3), 0)
            return Tally(delivered=3)

        assert run('x.ini', '--once', processor=Processor(run_once=run_once)) == 0
        assert handler.stream is stream
        logging.root.removeHandler(handler)
    assert '3/3' in terminal.text
    assert '\x1b[' in terminal.text
    assert 'a line of the log' in terminal.text
    assert without_time(terminal.text).endswith(
        'psendmail-qp: 3 delivered, 0 deferred, 0 failed\r\n'
    )


def test_no_bar_when_quiet() -> None:
    """--quiet on a terminal shows nothing."""
    with PseudoTerminal() as terminal:
        processor = Processor(run_once=once(Tally(delivered=1), total=1))
        assert run('x.ini', '--once', '--quiet', processor=processor) == 0
    assert terminal.text == ''


# The application in the file


def load_only(uri: str, *options: str) -> tuple[int, Any, str]:
    """Load as the script does, without running; return status, registry, and stderr."""
    found: list[Any] = []

    def make(registry: Registry, **arguments: Any) -> Any:
        found.append(registry)
        return Processor(run=lambda self, stop: None)

    stderr = io.StringIO()
    with redirect_stderr(stderr):
        status = qp.run([uri, *options, '--quiet'], make=make)
    return status, found[0] if found else None, stderr.getvalue()


QUIET = 'call:tests.support.applications:quiet'


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    return {'mail.queue_path': tmp_path / 'mail', 'mail.url': 'null:'}


def queue_path(registry: Any) -> str:
    path: str = registry.getUtility(IMailQueue).path
    return path


def test_an_application(tmp_path: Path, settings: dict[str, object]) -> None:
    """The file's main application, and a real processor for its queue."""
    ini = write_ini(tmp_path / 'x.ini', settings, use=QUIET)
    status, registry, _ = load_only(str(ini))
    assert status == 0
    assert queue_path(registry) == str(tmp_path / 'mail')
    assert isinstance(qp.processor_of(registry, workers=1, batch=2), QueueProcessor)


def test_mail_is_sent(tmp_path: Path, settings: dict[str, object]) -> None:
    """--once sends the queued mail of the application in the file."""
    ini = write_ini(tmp_path / 'x.ini', settings, use=QUIET)
    queue = MaildirQueue(str(tmp_path / 'mail'))
    queue.put([make_envelope()]).publish()
    stderr = io.StringIO()
    with redirect_stderr(stderr):
        assert qp.run([str(ini), '--once']) == 0
    assert '1 delivered, 0 deferred' in stderr.getvalue()


LOGGING_OF_ROOT = applications.LOGGING.replace('keys = root, mail', 'keys = root')


def without_own_logging(global_config: Any, **settings: str) -> Any:
    """Return an application that leaves logging as it is."""
    return applications.quiet(global_config, **settings)


def with_own_logging(global_config: Any, **settings: str) -> Any:
    """Return an application that sets up logging itself."""
    logging.root.addHandler(logging.NullHandler())
    return applications.quiet(global_config, **settings)


@pytest.mark.parametrize(
    ('application', 'sections', 'level'),
    [
        ('without_own_logging', '', logging.INFO),
        ('with_own_logging', '', logging.NOTSET),
        ('without_own_logging', LOGGING_OF_ROOT, logging.NOTSET),
    ],
)
def test_logging_that_is_not_set_up(
    application: str,
    sections: str,
    level: int,
    tmp_path: Path,
    settings: dict[str, object],
) -> None:
    """Our lines of level INFO are logged where neither the file nor the application sets up
    logging, and only there."""
    own = logging.getLogger('pyramid_sendmail')
    own.setLevel(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    ini = write_ini(tmp_path / 'x.ini', settings, use=f'call:{__name__}:{application}')
    ini.write_text(ini.read_text().replace(applications.LOGGING, sections))
    processor = Processor(run=lambda self, stop: None)
    with redirect_stderr(io.StringIO()):
        assert qp.run([str(ini)], make=lambda *_, **__: processor) == 0
    assert own.level == level


def test_variables(tmp_path: Path) -> None:
    """key=value sets variables of the file."""
    ini = tmp_path / 'x.ini'
    ini.write_text(
        f'[app:main]\nuse = {QUIET}\nmail.url = null:\nmail.queue_path = %(here)s/%(folder)s\n'
    )
    status, registry, _ = load_only(str(ini), 'folder=post')
    assert status == 0
    assert queue_path(registry) == str(tmp_path / 'post')


def test_a_name_and_a_pipeline_and_a_composite(tmp_path: Path, settings: dict[str, object]) -> None:
    """x.ini#name, an application behind filters, and the one of several that has a queue."""
    more = f"""
[app:other]
use = {QUIET}
mail.url = null:
mail.queue_path = {tmp_path}/other

[app:plain]
use = call:tests.support.applications:without_mail

[filter:shout]
use = call:tests.support.applications:shout

[pipeline:piped]
pipeline = shout other

[composite:mixed]
use = call:tests.support.applications:mount
a = plain
b = other

[composite:both]
use = call:tests.support.applications:mount
a = main
b = other
"""
    ini = write_ini(tmp_path / 'x.ini', settings, use=QUIET, more=more)
    for name in ('other', 'piped', 'mixed'):
        status, registry, text = load_only(f'{ini}#{name}')
        assert status == 0, text
        assert queue_path(registry) == str(tmp_path / 'other')
    status, _, text = load_only(f'{ini}#both')
    assert status == 2
    assert f'2 applications with a mail queue: name one, {ini}#NAME' in text


@pytest.mark.parametrize(
    ('content', 'suffix', 'expected'),
    [
        (None, '', ['No such file']),
        ('garbage\n', '', ['no section headers']),
        ('[app:main]\nuse = call:tests.support.applications:quiet\n', '#nix', ['nix']),
        ('[app:main]\nuse = call:tests.support.applications:quiet\nx = %(y)s\n', '', ['y']),
        ('[app:main]\nuse = call:tests.nowhere:main\n', '', ['could not be loaded', 'nowhere']),
        (
            '[app:main]\nuse = call:tests.support.applications:nix\n',
            '',
            ['could not be loaded', 'nix'],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:broken\n',
            '',
            ['could not be loaded', 'tests.missing'],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:late\nmail.url = null:\n',
            '',
            ['could not be loaded', 'division by zero'],
        ),
        ('[loggers]\nkeys = root\n[app:main]\nuse = x\n', '', ['its logging sections are wrong']),
        (
            '[app:main]\nuse = call:tests.support.applications:quiet\nmail.url = null:\n',
            '',
            ['no mail queue', 'mail.queue_path = %(here)s/mail'],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:quiet\nmail.queue_path = mail\n',
            '',
            ['mail.queue_path', 'absolute'],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:quiet\nmail.queue = x\n',
            '',
            ['unknown setting mail.queue.', 'Did you mean mail.queue_path?'],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:without_mail\n',
            '',
            ["config.include('pyramid_sendmail')"],
        ),
        (
            '[app:main]\nuse = call:tests.support.applications:foreign\n',
            '',
            ['no Pyramid application'],
        ),
    ],
)
def test_applications_that_cannot_be_loaded(
    content: str | None, suffix: str, expected: list[str], tmp_path: Path
) -> None:
    """Status 2; the line names the file, what is wrong and what to write."""
    ini = tmp_path / 'x.ini'
    if content is not None:
        ini.write_text(content)
    status, registry, text = load_only(f'{ini}{suffix}')
    assert (status, registry) == (2, None)
    [line] = [line for line in text.splitlines() if line.startswith('psendmail-qp: ')]
    for part in (str(ini), *expected):
        assert part in text
    assert line
    if 'could not be loaded' in text:
        assert 'could not be loaded' in line


@pytest.mark.parametrize('uri', ['{0}', '{0}/x.txt', 'nonsense://x'])
def test_not_an_ini_file(uri: str, tmp_path: Path) -> None:
    """A folder or another file: status 2, and a line."""
    (tmp_path / 'x.txt').write_text('x')
    status, _, text = load_only(uri.format(tmp_path))
    assert status == 2
    assert 'psendmail-qp: ' in text


def test_a_single_percent_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the setting and not its value, which may be a password."""
    path = tmp_path / 'x.ini'
    path.write_text(
        '[app:main]\nuse = call:tests.support.applications:main\n'
        'mail.url = smtp://ann%40x:secret@relay.example.org\n'
    )
    assert qp.run([str(path), '--once']) == 2
    text = capsys.readouterr().err
    assert 'mail.url in [app:main] has a single %' in text
    assert '%%' in text
    assert 'secret' not in text


def test_a_setting_among_the_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``mail.url=null:`` would remove the setting, and mail would go to localhost: it is refused,
    and ``--set`` in its place overrides the file and the environment."""
    path = tmp_path / 'mail'
    queue = MaildirQueue(str(path))
    queue.put([make_envelope()]).publish()
    queue.close()
    ini = write_ini(
        tmp_path / 'x.ini',
        {'mail.url': 'smtp://127.0.0.1:1', 'mail.queue_path': path, 'mail.workers': '1'},
        use='call:tests.support.applications:quiet',
    )

    assert qp.run([str(ini), '--once', 'mail.url=null:']) == 2
    said = capsys.readouterr().err
    assert 'mail.url=: ' in said
    assert '--set mail.url=VALUE' in said
    assert len(list(path.glob('new/*'))) == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MAIL_URL', 'smtp://127.0.0.1:1')
        command = [str(ini), '--once', '--set', 'mail.url=null:', '--set=mail.retry=1h']
        assert qp.run(command) == 0
    assert '1 delivered' in capsys.readouterr().err
    assert list(path.glob('new/*')) == []
    # Only the application that this run has loaded has the setting.
    assert current_overrides() == {}
