"""What ``psendmail-qp`` prints: its lines on stderr, and a progress bar on a terminal.

Mail leaves whether or not they can be printed: stderr may be closed, a pipe without a reader, or a
file on a full disk.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple, Protocol

from ..durations import span_text
from ..envelope import Tally

__all__ = [
    'Output',
    'Progress',
    'Terminal',
    'Waiting',
    'no_progress',
    'print_line',
    'standard_streams',
]

Progress = Callable[[Tally, int], None]


class Waiting(NamedTuple):
    """How many mails wait, and when the most overdue of them was due, in epoch seconds; None if
    none is due yet. ``more``: there are more, and that time is not known."""

    mails: int
    since: float | None
    more: bool = False


class Output(Protocol):
    """Takes what is to be known about a run: a Terminal prints it, and a process that has a
    supervisor reports it to the supervisor."""

    @property
    def wants_waiting(self) -> bool:
        """Whether ``begin`` and ``counted`` show what waits."""

    def begin(
        self, queue: str, *, is_new: bool, once: bool, waiting: Waiting | None = None
    ) -> None:
        """The application is loaded. ``is_new``: the queue does not exist yet. ``waiting``: None
        if it is not known."""

    def counted(self, queue: str, waiting: Waiting) -> None:
        """So much waits: ``begin`` knew only that it is more than can be counted in a moment."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Return a context whose value, ``show(tally, left)``, shows how far ``--once`` is."""

    def end(self, tally: Tally, failures: int, seconds: float) -> None:
        """The run has ended, after so many seconds. ``failures``: how often subscribers failed
        to handle an event."""

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

    @property
    def wants_waiting(self) -> bool:
        return not self.quiet

    def begin(
        self,
        queue: str,
        *,
        is_new: bool,
        once: bool,
        waiting: Waiting | None = None,
        processes: int = 1,
    ) -> None:
        if self.quiet:
            return
        if is_new:
            self.say(f'{queue} does not exist yet: creating a new queue')
        parts = []
        if not once:
            parts.append(f'watching {queue}' + f' with {processes} processes' * (processes > 1))
        elif waiting is not None:
            parts.append(queue)
        if waiting is not None:
            parts.append(_waiting_text(waiting))
        if parts:
            self.say(': '.join(parts))

    def counted(self, queue: str, waiting: Waiting) -> None:
        if not self.quiet:
            self.say(f'{queue}: {_waiting_text(waiting)}')

    def progress(self) -> AbstractContextManager[Progress]:
        return _progress_bar() if self.has_bar else nullcontext(no_progress)

    def end(self, tally: Tally, failures: int, seconds: float) -> None:
        if self.quiet:
            return
        self.say(
            f'{tally.delivered} delivered, {tally.deferred} deferred, {tally.failed} failed in '
            f'{span_text(seconds)}'
        )
        if failures:
            times = 'once' if failures == 1 else f'{failures} times'
            self.say(
                f'subscribers failed {times} to handle an event (see the log); what was not '
                'handled is dispatched again later'
            )

    def stopped(self, number: int) -> None:
        if not self.quiet:
            self.say(f'stopped by {signal.Signals(number).name}; unsent mail stays queued')

    def fail(self, text: str, status: int) -> int:
        self.say(text)
        return status


def _waiting_text(waiting: Waiting) -> str:
    """Return what waits, in words. The time is local, as in the log."""
    mails, since, more = waiting
    if more:
        return f'more than {mails} mails wait'
    if not mails:
        return 'no mail waits'
    text = '1 mail waits' if mails == 1 else f'{mails} mails wait'
    if since is None:
        return f'{text}, none is due yet'
    when = time.strftime('%Y-%m-%d %H:%M', time.localtime(since))
    return f'{text}, the oldest since {when} ({span_text(time.time() - since)})'


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
