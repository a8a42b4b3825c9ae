"""The processes of ``psendmail-qp --processes``, and the socket between each and the supervisor.

The child sends reports, each a JSON list on a line::

    ["begin", queue, is_new, processes, waiting]          the application is loaded
    ["progress", delivered, deferred, failed, left]       of --once
    ["end", delivered, deferred, failed, failures]        the run has ended
    ["error", text]                                       why the process ends with its exit status

``waiting`` is null or ``[mails, since]``.

The supervisor sends numbers of signals, each on a line. It never closes the socket while the child
runs: an end of file tells the child that the supervisor has died.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from ..envelope import Tally
from ..threads import BackgroundThread
from .signals import EXIT_SIGNAL, SCAN_SIGNAL, Signals, blocked_signals, unblock_signals
from .terminal import Progress, Waiting

__all__ = ['ChildProcess', 'Command', 'SupervisorLink', 'command_line']

log = logging.getLogger(__name__)

_CHILD = re.compile(r'([1-9][0-9]*)/([1-9][0-9]*):([0-9]+)')


class Command(NamedTuple):
    """A command line: the program, and its arguments."""

    program: Sequence[str]
    arguments: Sequence[str]

    def with_option(self, option: str) -> list[str]:
        """Return the words of the command line with one more option. It comes first, because the
        arguments may contain ``--``."""
        return [*self.program, option, *self.arguments]


def command_line(arguments: Sequence[str]) -> Command:
    """Return the command line that starts this program again: as it was started, with the options
    of the interpreter, or by ``-m`` if it was called from Python code with other arguments."""
    arguments = list(arguments)
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    if not program or [*program, *arguments] != sys.orig_argv[1:]:
        program = ['-m', 'pyramid_sendmail.scripts.qp']
    return Command([sys.executable, *program], arguments)


class ChildProcess:
    """A running child, as the supervisor sees it.

    ``output``: the descriptor to which stdout and stderr go instead of where they went. Raises
    OSError if the child cannot be started.
    """

    def __init__(
        self, command: Command, number: int, processes: int, *, output: int | None = None
    ) -> None:
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        self._received = b''
        self.open = True
        """Whether there may be more reports."""
        try:
            with theirs, blocked_signals():
                child = theirs.fileno()
                self._process = subprocess.Popen(
                    command.with_option(f'--child={number}/{processes}:{child}'),
                    pass_fds=[child],
                    stdout=output if sys.__stdout__ and sys.__stdout__.isatty() else None,
                    stderr=output,
                )
        except BaseException:
            self._link.close()
            raise
        self.pid = self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that can be read when there are reports."""
        return self._link.fileno()

    def reports(self) -> list[list[Any]]:
        """Return the reports that have come since the last call."""
        for _ in range(2):
            try:
                while data := self._link.recv(65536):
                    self._received += data
                self.open = False
                break
            except BlockingIOError:
                break
            except OSError:
                # A child that left something unread: this is said once, and what it has sent may
                # come behind.
                self.open = False
        *lines, self._received = self._received.split(b'\n')
        return [json.loads(line) for line in lines]

    def poll(self) -> int | None:
        """Return None while the child runs, then its exit status, or minus the number of the
        signal that killed it."""
        return self._process.poll()

    def stop(self, number: int) -> None:
        """Have the child stop as if this signal had come to it."""
        self._send(number)

    def scan_now(self) -> None:
        """Have the child scan the queue now, and try an unavailable relay."""
        self._send(SCAN_SIGNAL)

    def _send(self, number: int) -> None:
        with suppress(OSError):
            self._link.sendall(b'%d\n' % number)

    def close(self) -> None:
        """Close the socket. A child that still runs stops."""
        self._link.close()


class SupervisorLink:
    """The supervisor, as a child sees it: takes reports as an Output does. ``number``: which of
    the ``processes`` this one is, from 1 on."""

    def __init__(self, number: int, processes: int, link: socket.socket) -> None:
        self.number = number
        self.processes = processes
        self._link = link
        self._ended = False

    def __enter__(self) -> SupervisorLink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the link: this process has nothing more to stop or to report."""
        self._ended = True
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    @classmethod
    def parse(cls, text: str) -> SupervisorLink:
        """Return the link that ``--child`` describes. Raises ValueError if it describes none."""
        match = _CHILD.fullmatch(text)
        if match is None:
            raise ValueError('only psendmail-qp itself uses --child')
        number, processes, descriptor = map(int, match.groups())
        try:
            # Commands that a subscriber starts have no part in it.
            os.set_inheritable(descriptor, False)
            return cls(number, processes, socket.socket(fileno=descriptor))
        except OSError as error:
            raise ValueError('only psendmail-qp itself uses --child') from error

    def follow(self, signals: Signals) -> None:
        """Stop when the supervisor says so, or when it has died."""
        thread = BackgroundThread(
            target=self._listen, args=(signals,), name='pyramid_sendmail supervisor', daemon=True
        )
        thread.start()
        unblock_signals()

    def _listen(self, signals: Signals) -> None:
        number = 0
        with suppress(OSError):
            while data := self._link.recv(1024):
                numbers = [int(word) for word in data.split()]
                if SCAN_SIGNAL in numbers:
                    signals.request_scan()
                stops = [each for each in numbers if each != SCAN_SIGNAL]
                if stops:
                    number = stops[-1]
                    signals.request(number)
        if self._ended:
            return
        if number:
            # The supervisor has had a second signal, and did not wait for this process.
            os._exit(EXIT_SIGNAL + number)
        log.error('the supervisor of this psendmail-qp has died, so it stops')
        signals.request(signal.SIGTERM)

    def _send(self, *report: object) -> None:
        with suppress(OSError):
            self._link.sendall(json.dumps(report).encode() + b'\n')

    @property
    def wants_waiting(self) -> bool:
        """The supervisor shows what the first child reports."""
        return self.number == 1

    def begin(
        self, queue: str, *, is_new: bool, once: bool, waiting: Waiting | None = None
    ) -> None:
        self._send('begin', queue, is_new, self.processes, waiting)

    def counted(self, queue: str, waiting: Waiting) -> None:
        self._send('counted', queue, waiting)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        yield lambda tally, left: self._send('progress', *_counts(tally), left)

    def end(self, tally: Tally, failures: int, seconds: float) -> None:
        self._send('end', *_counts(tally), failures)

    def stopped(self, number: int) -> None:
        """The supervisor knows it."""

    def fail(self, text: str, status: int) -> int:
        self._send('error', text)
        return status


def _counts(tally: Tally) -> tuple[int, int, int]:
    return tally.delivered, tally.deferred, tally.failed
