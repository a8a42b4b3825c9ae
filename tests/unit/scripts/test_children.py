"""How a child is started, and what passes between it and its supervisor."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from pyramid_sendmail.scripts.children import (
    ChildProcess,
    Command,
    SupervisorLink,
    command_line,
)
from pyramid_sendmail.scripts.terminal import Waiting
from tests.support.queues import until


@pytest.mark.parametrize(
    ('started', 'arguments', 'expected'),
    [
        (
            ['python3', '-W', 'ignore', '/venv/bin/psendmail-qp', 'x.ini', '--once'],
            ['x.ini', '--once'],
            ['-W', 'ignore', '/venv/bin/psendmail-qp', '-z', 'x.ini', '--once'],
        ),
        (
            ['python', '-m', 'pyramid_sendmail.scripts.qp', 'x.ini'],
            ['x.ini'],
            ['-m', 'pyramid_sendmail.scripts.qp', '-z', 'x.ini'],
        ),
        (
            ['python', 'manage.py', 'mail'],
            ['x.ini', '--', 'a=b'],
            ['-m', 'pyramid_sendmail.scripts.qp', '-z', 'x.ini', '--', 'a=b'],
        ),
        (['python'], ['x.ini'], ['-m', 'pyramid_sendmail.scripts.qp', '-z', 'x.ini']),
    ],
    ids=['console script', 'module', 'other program', 'interactive'],
)
def test_command_line(
    started: list[str], arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program starts again as it was started, by the same interpreter."""
    monkeypatch.setattr(sys, 'orig_argv', started)
    words = command_line(arguments).with_option('-z')
    assert words == [sys.executable, *expected]


@pytest.mark.parametrize('text', ['', '1/2', '0/2:5', '1/2:x', '1/2:9999'])
def test_no_link(text: str) -> None:
    """--child describes a socket of this process; anything else is refused."""
    with pytest.raises(ValueError, match='only psendmail-qp itself uses --child'):
        SupervisorLink.parse(text)


def test_link() -> None:
    """The socket does not pass to commands that the application starts."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    descriptor = theirs.detach()
    with ours, SupervisorLink.parse(f'2/3:{descriptor}') as link:
        assert (link.number, link.processes) == (2, 3)
        assert not os.get_inheritable(descriptor)
        link.stopped(signal.SIGTERM)
        assert link.fail('wrong', 2) == 2
        assert ours.recv(100) == b'["error", "wrong"]\n'
        link.counted('/q', Waiting(7000, 1.5))
        assert ours.recv(100) == b'["counted", "/q", [7000, 1.5, false]]\n'


def test_a_dead_supervisor_is_no_error() -> None:
    """A report that cannot be sent is dropped: the child is about to stop."""
    ours, theirs = socket.socketpair()
    link = SupervisorLink(1, 2, theirs)
    ours.close()
    link.begin('/q', is_new=False, once=True)
    theirs.close()


def test_child_process(tmp_path: Path) -> None:
    """It gets its number and the socket; reports arrive, whole, and the number of a signal."""
    code = """
import os, sys
_, number, link = sys.argv[1].replace('=', ':').split(':')
assert number == '2/3'
link = int(link)
os.write(link, b'["progress", 1, 2, 3, 4]\\n["error", ')
assert os.read(link, 100) == b'15\\n'
os.write(link, b'"x"]\\n')
os.kill(os.getpid(), 9)
"""
    child = ChildProcess(Command([sys.executable, '-S', '-c', code], []), 2, 3)
    reports = []

    def has_reported() -> bool:
        reports.extend(child.reports())
        return bool(reports)

    until(has_reported)
    assert reports == [['progress', 1, 2, 3, 4]]
    assert child.poll() is None
    assert child.fileno() > 2
    child.stop(signal.SIGTERM)
    until(lambda: child.poll() is not None)
    assert child.poll() == -signal.SIGKILL
    assert child.open
    assert child.reports() == [['error', 'x']]
    assert not child.open
    child.stop(signal.SIGTERM)  # it has gone
    child.close()


def test_a_child_that_reads_nothing() -> None:
    """Its reports arrive although it ends and leaves a signal's number unread."""
    code = """
import os, sys, select
link = int(sys.argv[1].rpartition(':')[2])
poll = select.poll()
poll.register(link, select.POLLIN)
poll.poll()
os.write(link, b'["error", "x"]\\n')
"""
    child = ChildProcess(Command([sys.executable, '-S', '-c', code], []), 1, 2)
    child.stop(signal.SIGTERM)
    until(lambda: child.poll() is not None)
    assert child.reports() == [['error', 'x']]
    assert not child.open
    child.close()
