"""What ``psendmail-qp`` prints: its lines on stderr, and a progress bar on a terminal.

Mail leaves whether or not they can be printed: stderr may be closed, a pipe without a reader, or a
file on a full disk.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol

from ..envelope import Tally

__all__ = [
    'Output',
    'Progress',
    'Terminal',
    'no_progress',
    'print_line',
    'print_only_errors',
    'standard_streams',
]

Progress = Callable[[Tally, int], None]


class Output(Protocol):
    """Takes what is to be known about a run: a Terminal prints it, and a process that has a
    supervisor reports it to the supervisor."""

    def begin(self, queue: str, *, is_new: bool, once: bool) -> None:
        """The application is loaded. ``is_new``: the queue does not exist yet."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Return a context whose value, ``show(tally, left)``, shows how far ``--once`` is."""

    def end(self, tally: Tally, failures: int) -> None:
        """``--once`` has ended. ``failures``: events that subscribers failed to handle."""

    def stopped(self, number: int) -> None:
        """A signal ended a run without ``--once``."""

    def fail(self, text: str, status: int) -> int:
        """Say what went wrong. Return ``status``, the exit status."""


class Terminal:
    """Prints on stderr; see Output. ``quiet``: errors only."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @property
    def has_bar(self) -> bool:
        """Whether ``progress`` shows a bar."""
        return sys.stderr.isatty() and not self.quiet

    def say(self, text: str) -> None:
        print_line(f'psendmail-qp: {text}')

    def begin(self, queue: str, *, is_new: bool, once: bool, processes: int = 1) -> None:
        if self.quiet:
            return
        if is_new:
            self.say(f'{queue} does not exist yet: creating a new queue')
        if not once:
            self.say(f'watching {queue}' + f' with {processes} processes' * (processes > 1))

    def progress(self) -> AbstractContextManager[Progress]:
        return _progress_bar() if self.has_bar else nullcontext(no_progress)

    def end(self, tally: Tally, failures: int) -> None:
        if self.quiet:
            return
        self.say(f'{tally.delivered} delivered, {tally.deferred} deferred, {tally.failed} failed')
        if failures:
            self.say(
                f'events that subscribers failed to handle: {failures} (see the log); '
                'they are dispatched again later'
            )

    def stopped(self, number: int) -> None:
        if not self.quiet:
            self.say(f'stopped by {signal.Signals(number).name}; unsent mail stays queued')

    def fail(self, text: str, status: int) -> int:
        self.say(text)
        return status


@contextmanager
def standard_streams() -> Iterator[None]:
    """Open what our parent has closed: no file or socket of ours may get the number of stderr, and
    what is printed must go somewhere. What cannot be printed at the end is lost."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdout = sys.stdout or open(1, 'w', closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, 'w', closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            # The interpreter would fail to flush it too, and end with status 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def print_line(text: str) -> None:
    """Print a line on stderr, if that is possible."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def print_only_errors() -> None:
    """Have the log print errors only; what it writes into files stays as it is."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [each for logger in loggers for each in getattr(logger, 'handlers', ())]
    for handler in (*handlers, logging.lastResort):
        stream = getattr(handler, 'stream', None)
        if stream in (sys.stdout, sys.stderr) and handler.level < logging.ERROR:
            handler.setLevel(logging.ERROR)


def no_progress(tally: Tally, left: int) -> None:
    """Show nothing: without a terminal the log is enough."""


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show on the terminal how many mails are done, of how many; log lines appear above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as ProgressBar

    terminal = sys.stderr
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    bar = ProgressBar(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task('sending', total=None)

    def show(tally: Tally, left: int) -> None:
        bar.update(task, completed=tally.total, total=tally.total + left)

    with bar:
        for handler in handlers:
            handler.setStream(sys.stderr)
        try:
            yield show
        finally:
            for handler in handlers:
                handler.setStream(terminal)
