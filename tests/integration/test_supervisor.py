"""``psendmail-qp --processes``: a real supervisor, real children, a real SMTP server."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
from contextlib import suppress

import psutil
import pytest

from tests.support.applications import ROOT
from tests.support.children import MODULE, SCRIPT, Child, Place, once_each
from tests.support.queues import files, until
from tests.support.scripts import without_time
from tests.support.smtp.server import hold, reply

SOON = 60.0
"""Seconds for what takes one or two on an idle machine."""


def children(child: Child, count: int) -> list[psutil.Process]:
    """Wait until a supervisor has so many children; return them."""
    supervisor = psutil.Process(child.process.pid)
    until(lambda: len(supervisor.children()) == count, SOON)
    found: list[psutil.Process] = supervisor.children()
    return found


def gone(processes: list[psutil.Process]) -> bool:
    """Wait until the processes have ended."""
    return not psutil.wait_procs(processes, SOON)[1]


def lines(child: Child) -> list[str]:
    """What psendmail-qp itself has printed."""
    lines = [line for line in child.lines if line.startswith('psendmail-qp: ')]
    return [re.sub(r'(the oldest) since .*', r'\1', line) for line in lines]


@pytest.fixture
def go_on(place: Place) -> threading.Event:
    """Return the event for which the relay waits before it accepts any mail."""
    event = threading.Event()
    place.server.always('dot', hold(event))
    return event


def busy(place: Place) -> tuple[Child, list[psutil.Process], list[str]]:
    """Return a supervisor, its two children, each of which waits for the relay's reply to a mail,
    and the Message-IDs of all queued mail."""
    message_ids = place.put(8)
    child = place.start(place.ini(), '--processes', 2, '--workers', 2, group=True)
    place.server.wait_for(lambda server: server.verbs().count('dot') == 2, SOON)
    return child, children(child, 2), message_ids


def finish(place: Place, message_ids: list[str]) -> None:
    """Let the next process send what is left; no recipient gets a mail twice."""
    assert 1 < len(place.server.messages) < len(message_ids), 'only the mail in flight'
    assert place.once(place.ini()).process.returncode == 0
    assert files(place.queue) == []
    assert once_each(place.server, message_ids)


# Together


@pytest.mark.slow
def test_the_setting(place: Place, go_on: threading.Event) -> None:
    """With mail.processes = 3 three children share the queue, and the connections; each mail is
    sent once. They end with the supervisor, and it alone says so."""
    message_ids = place.put(60)
    child = place.start(place.ini(mail_processes=3, mail_workers=3), command=SCRIPT)
    place.server.wait_for(lambda server: server.open_connections == 3, SOON)
    go_on.set()
    place.server.wait_for(60, SOON)
    place.drained()
    workers = children(child, 3)
    assert all(SCRIPT[0] in each.cmdline() for each in workers)
    child.signal(signal.SIGTERM)
    assert child.wait(SOON) == 0
    assert gone(workers)
    assert place.server.connections == 3
    assert once_each(place.server, message_ids)
    assert lines(child) == [
        f'psendmail-qp: watching {place.queue.path} with 3 processes: 60 mails wait, the oldest',
        'psendmail-qp: stopped by SIGTERM; unsent mail stays queued',
        'psendmail-qp: 60 delivered, 0 deferred, 0 failed',
    ]


def test_once(place: Place, go_on: threading.Event) -> None:
    """With --once the counts of all children are summed, and printed once."""
    place.server.always('RCPT', reply(550, '5.1.1 no such user'), match='bob')
    place.server.always('RCPT', reply(450, '4.2.0 greylisted'), match='later')
    place.put(40)
    place.put(1, 'bob@example.org')
    place.put(1, 'later@example.org')
    child = place.start(place.ini(mail_retry='1h'), '--once', '--processes', 2, '--workers', 2)
    place.server.wait_for(lambda server: server.open_connections == 2, SOON)
    go_on.set()
    assert child.wait(SOON) == 0
    assert lines(child) == [
        f'psendmail-qp: {place.queue.path}: 42 mails wait, the oldest',
        'psendmail-qp: 40 delivered, 1 deferred, 1 failed',
    ]
    assert place.server.connections == 2
    assert sorted(name.split('/')[0] for name in files(place.queue)) == ['cur', 'failed']


@pytest.mark.slow
def test_once_without_mail(place: Place) -> None:
    """With --once and no mail the first child is the only one: the application loads once."""
    child = place.once(place.ini(), '--processes', 8)
    assert child.process.returncode == 0
    assert lines(child) == [
        f'psendmail-qp: {place.queue.path} does not exist yet: creating a new queue',
        'psendmail-qp: 0 delivered, 0 deferred, 0 failed',
    ]
    assert place.server.connections == 0


@pytest.mark.slow
def test_a_low_rate(place: Place) -> None:
    """The processes never send more than mail.rate together: fewer of them are started."""
    place.put(4)
    child = place.start(place.ini(mail_rate='2/h'), '--processes', 3)
    place.server.wait_for(1, SOON)
    children(child, 1)
    child.says('watching')
    assert lines(child) == [
        'psendmail-qp: starting 1 of 3 processes: '
        'mail.rate is less than one mail a second for each of them',
        f'psendmail-qp: watching {place.queue.path}: 4 mails wait, the oldest',
    ]
    until(lambda: len(files(place.queue)) == 3)
    assert child.stop() == 0
    assert len(place.server.messages) == 1


# Children that die


@pytest.mark.slow
def test_a_child_is_killed(place: Place) -> None:
    """It starts again after a second, and all mail is sent once."""
    message_ids = place.put(10)
    child = place.start(place.ini(), '--processes', 2)
    workers = children(child, 2)
    place.drained()
    workers[0].kill()
    child.says('was killed by SIGKILL; it starts again in 1 s', SOON)
    until(lambda: not {each.pid for each in workers}.issuperset(pids(child)), SOON)
    message_ids += place.put(10)
    place.drained()
    assert child.stop() == 0
    assert once_each(place.server, message_ids)
    assert child.text.count('watching') == 1


def pids(child: Child) -> set[int]:
    return {each.pid for each in psutil.Process(child.process.pid).children()}


@pytest.mark.slow
def test_a_child_is_killed_with_once(place: Place, go_on: threading.Event) -> None:
    """It does not start again, and its end is the exit status."""
    place.put(3)
    child = place.start(place.ini(), '--once', '--processes', 2, '--workers', 2)
    place.server.wait_for(lambda server: server.open_connections == 2, SOON)
    psutil.Process(child.process.pid).children()[1].kill()
    child.says('process 2 of 2 was killed by SIGKILL', SOON)
    go_on.set()
    assert child.wait(SOON) == 128 + signal.SIGKILL
    assert 'starts again' not in child.text


@pytest.mark.slow
def test_the_supervisor_is_killed(place: Place, go_on: threading.Event) -> None:
    """Its children finish the mail in flight and end."""
    child, workers, message_ids = busy(place)
    child.process.kill()
    until(lambda: child.text.count('the supervisor of this psendmail-qp has died') == 2, SOON)
    assert all(each.is_running() for each in workers)
    go_on.set()
    assert gone(workers)
    finish(place, message_ids)


# Stopping


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'systemd'])
def test_all_get_the_signal(place: Place, go_on: threading.Event, number: int) -> None:
    """Ctrl-C in a terminal, or systemd, signals the children too: that is not the second signal.
    All finish the mail in flight."""
    child, workers, message_ids = busy(place)
    os.killpg(child.process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.5)
    assert child.process.poll() is None
    assert all(each.is_running() for each in workers)
    go_on.set()
    assert child.wait(SOON) == 0
    assert gone(workers)
    assert 'Traceback' not in child.text
    finish(place, message_ids)


@pytest.mark.slow
def test_a_second_signal(place: Place, go_on: threading.Event) -> None:
    """It ends the supervisor and its children at once."""
    child, workers, _ = busy(place)
    child.signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.5)
    assert child.process.poll() is None, 'it waits for mail in flight'
    child.signal(signal.SIGTERM)
    assert child.wait(SOON) == -signal.SIGTERM
    assert gone(workers)
    assert len(files(place.queue)) == 8


# Trouble


@pytest.mark.slow
def test_no_relay(place: Place) -> None:
    """With --once the exit status is 1, and the reason is printed once."""
    place.server.stop()
    place.put(3)
    child = place.once(place.ini(), '--processes', 2)
    assert child.process.returncode == 1
    first, summary, reason = lines(child)
    assert first.endswith(': 3 mails wait, the oldest')
    assert summary == 'psendmail-qp: 0 delivered, 0 deferred, 0 failed'
    assert reason.startswith('psendmail-qp: relay unavailable, mail stays queued: ')
    assert len(files(place.queue)) == 3


def test_settings_that_are_wrong(place: Place) -> None:
    """Exit status 2, and the reason is printed once."""
    child = place.start(place.ini(mail_retry='soon'), '--processes', 3)
    assert child.wait(SOON) == 2
    [line] = lines(child)
    assert 'mail.retry' in line


@pytest.mark.slow
def test_a_queue_that_cannot_be_used(place: Place) -> None:
    """Exit status 3, and the reason is printed once."""
    (place.path / 'mail').write_text('not a folder')
    child = place.start(place.ini(), '--processes', 2)
    assert child.wait(SOON) == 3
    assert sum(str(place.path / 'mail') in line for line in lines(child)) == 2, 'watching, and why'


# The terminal


@pytest.mark.slow
def test_one_bar(place: Place, go_on: threading.Event) -> None:
    """--once on a terminal shows one bar for all children, and their log above it."""
    message_ids = place.put(20)
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*MODULE, str(place.ini()), '--once', '--processes', '2', '--workers', '2'],
        cwd=ROOT,
        env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '200', 'PYTHONWARNINGS': 'ignore'},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    data = b''
    with suppress(OSError):
        while part := os.read(master, 65536):
            data += part
            if place.server.open_connections == 2:
                go_on.set()
    os.close(master)
    assert child.wait(SOON) == 0
    shown = data.decode().replace('\r', '\n').splitlines()
    assert any('20/20' in line for line in shown)
    for message_id in message_ids:
        [line] = [line for line in shown if message_id in line]
        assert line.removeprefix('\x1b[2K').startswith('INFO <'), line
    assert without_time(data.decode()).endswith(
        'psendmail-qp: 20 delivered, 0 deferred, 0 failed\r\n'
    )
