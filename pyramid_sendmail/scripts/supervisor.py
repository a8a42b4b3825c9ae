"""``psendmail-qp --processes``: runs several processes on one queue, and restarts those that die.

Each child is a ``psendmail-qp`` of its own, which loads the application anew: a fork would share
the connections of the application's database pools.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..envelope import Tally
from .children import ChildProcess, Command
from .signals import EXIT_SIGNAL, Signals, unblock_signals
from .terminal import Terminal, Waiting, no_progress, print_line

__all__ = ['FIRST_PAUSE', 'HEALTHY_AFTER', 'LONGEST_PAUSE', 'Supervisor', 'supervise']

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a child that died starts again; they double each time."""

HEALTHY_AFTER = 60.0
"""Seconds after which a child counts as healthy: when it dies, it starts again after the first
pause."""

EXIT_NOT_STARTED = 1
"""The exit status in place of that of a child that the system could not start."""

FATAL = (2, 3)
"""The exit statuses of a child, at its first start, that are the same for all children: the
settings are wrong, or the queue cannot be used."""


class Child(Protocol):
    """What a supervisor does with a child; see ChildProcess."""

    pid: int
    open: bool

    def fileno(self) -> int: ...
    def reports(self) -> list[list[Any]]: ...
    def poll(self) -> int | None: ...
    def stop(self, number: int) -> None: ...
    def scan_now(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Place:
    """The place of a child, over all its restarts."""

    number: int
    child: Child | None = None
    starts: int = 0
    started_at: float = 0.0
    start_at: float | None = 0.0
    """When the next start is due; None: never."""
    pause: float = 0.0
    """The pause before the last restart, or 0."""
    error: str = ''
    """What the child reported as the cause of its end."""
    tally: Tally = field(default_factory=Tally)
    left: int = 0
    failures: int = 0


class Supervisor:
    """Runs children until a signal comes, or with ``once`` until all have ended.

    The first child starts alone: it finds out whether the settings and the queue can be used, and
    how many ``processes`` are of use with ``mail.rate``. The others start when it has loaded the
    application, with ``once`` only if it has mail left.

    ``spawn(number, processes)`` starts a child; it may raise OSError. ``wait(children, seconds)``
    returns when one of them has a report or has ended, when a signal has come, or after so many
    seconds; None: no limit.
    """

    def __init__(
        self,
        spawn: Callable[[int, int], Child],
        wait: Callable[[Sequence[Child], float | None], object],
        terminal: Terminal,
        *,
        processes: int,
        once: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn
        self._wait = wait
        self._terminal = terminal
        self._processes = processes
        self._once = once
        self._monotonic = monotonic
        self._places = [_Place(1)]
        self._begun = False
        self._stopped_by = self._scans = 0
        self._known = 0
        self._fatal = self._worst = 0
        """Exit statuses: one of FATAL, and with ``once`` the highest."""
        self._errors: list[str] = []

    def run(self, signals: Signals) -> int:
        """Run the children; return the exit status.

        It is 2 or 3 if all children would end with that. Else it is 0 after a signal, and with
        ``once`` the highest of the children's.
        """
        began = self._monotonic()
        try:
            with self._terminal.progress() if self._once else nullcontext(no_progress) as show:
                while self._start_children() or self._running:
                    self._wait(self._running, self._seconds_to_next_start)
                    self._pass_on(signals.number)
                    self._pass_on_scans(signals.scans)
                    for place in self._places[:]:
                        self._follow(place)
                    show(*self._count())
                self._wait((), 0.0)  # for the last lines that children printed
        finally:
            for child in self._running:
                child.close()
        status = self._fatal or self._worst
        if not (self._once or status):
            self._terminal.stopped(signals.number)
        if self._begun and (self._once or not status):
            failures = sum(place.failures for place in self._places)
            self._terminal.end(self._count()[0], failures, self._monotonic() - began)
        for text in dict.fromkeys(self._errors):
            self._terminal.fail(text, status)
        return status or (signals.status if self._once else 0)

    @property
    def _running(self) -> list[Child]:
        return [place.child for place in self._places if place.child is not None]

    @property
    def _seconds_to_next_start(self) -> float | None:
        moments = [place.start_at for place in self._places if place.start_at is not None]
        return max(min(moments) - self._monotonic(), 0.0) if moments else None

    def _start_children(self) -> bool:
        """Start the children that are due. Return whether others will start later."""
        for place in self._places:
            if place.start_at is not None and place.start_at <= self._monotonic():
                place.start_at, place.error = None, ''
                place.starts += 1
                place.started_at = self._monotonic()
                try:
                    place.child = self._spawn(place.number, self._processes)
                except OSError as error:
                    place.error = f'the process could not be started: {error}'
                    self._ended(place, EXIT_NOT_STARTED)
        return any(place.start_at is not None for place in self._places)

    def _pass_on(self, number: int) -> None:
        """Pass a signal on to the children, and start none any more."""
        if number and number != self._stopped_by:
            self._stopped_by = number
            for place in self._places:
                place.start_at = None
                if place.child is not None:
                    place.child.stop(number)

    def _pass_on_scans(self, scans: int) -> None:
        """Have the children scan the queue now; start those that wait for their next start."""
        if scans != self._scans:
            self._scans = scans
            for place in self._places:
                if place.child is not None:
                    place.child.scan_now()
                elif place.start_at is not None:
                    place.start_at = self._monotonic()

    def _follow(self, place: _Place) -> None:
        """Read the reports of a child, and notice its end."""
        child = place.child
        if child is None:
            return
        # In this order: after its end a child reports nothing more.
        status = child.poll()
        for report in child.reports():
            self._take(place, report)
        if status is not None:
            child.close()
            place.child = None
            if status < 0:
                place.left = 0
            self._ended(place, status)
        elif self._begun and (place.left or not self._once):
            self._start_the_others()

    def _take(self, place: _Place, report: list[Any]) -> None:
        match report:
            case ['begin', queue, is_new, processes, *waiting] if not self._begun:
                self._begin(queue, is_new, processes, *waiting)
            case ['counted', queue, waiting] if (place.number, place.starts) == (1, 1):
                self._terminal.counted(queue, Waiting(*waiting))
            case ['progress', delivered, deferred, failed, left]:
                place.tally, place.left = Tally(delivered, deferred, failed), left
            case ['end', delivered, deferred, failed, failures]:
                if self._once:
                    place.tally = Tally()
                # Else it may be one of several that ran here, one after the other.
                place.tally.add(Tally(delivered, deferred, failed))
                place.failures += failures
            case ['error', text]:
                place.error = text

    def _begin(
        self, queue: str, is_new: bool, processes: int, waiting: list[Any] | None = None
    ) -> None:
        self._begun = True
        if processes < self._processes and not self._terminal.quiet:
            self._terminal.say(
                f'starting {processes} of {self._processes} processes: '
                'mail.rate is less than one mail a second for each of them'
            )
        self._processes = processes
        self._terminal.begin(
            queue,
            is_new=is_new,
            once=self._once,
            waiting=None if waiting is None else Waiting(*waiting),
            processes=processes,
        )

    def _start_the_others(self) -> None:
        if len(self._places) == 1 and not self._stopped_by:
            self._places += [_Place(number) for number in range(2, self._processes + 1)]

    def _ended(self, place: _Place, status: int) -> None:
        """Record the end of a child, or plan another start of it."""
        if place.starts == 1 and status in FATAL:
            self._fatal = max(self._fatal, status)
            self._pass_on(self._stopped_by or signal.SIGTERM)
        elif self._once:
            self._worst = max(self._worst, EXIT_SIGNAL - status if status < 0 else status)
            if status < 0 and not self._stopped_by:
                self._terminal.say(f'{self._name(place)} {_end(status)}')
        else:
            if not self._stopped_by:
                self._plan_restart(place, status)
            return
        if place.error:
            self._errors.append(place.error)

    def _plan_restart(self, place: _Place, status: int) -> None:
        now = self._monotonic()
        if now - place.started_at >= HEALTHY_AFTER:
            place.pause = 0.0
        place.pause = min(place.pause * 2, LONGEST_PAUSE) or FIRST_PAUSE
        place.start_at = now + place.pause
        cause = f': {place.error}' if place.error else f' {_end(status)}'
        self._terminal.say(f'{self._name(place)}{cause}; it starts again in {place.pause:g} s')

    def _count(self) -> tuple[Tally, int]:
        """Return the counts of all children, and how many mails are left.

        Each child counts what is left on its own list, and all lists began with the same mails. So
        the longest list, with what its child has done, is how many there were. When more than that
        are done, the children have read on in a long queue, and the shortest list counts.
        """
        total = Tally()
        for place in self._places:
            total.add(place.tally)
            self._known = max(self._known, place.tally.total + place.left)
        lefts = [place.left for place in self._places if place.left]
        if lefts and total.total < self._known:
            return total, self._known - total.total
        return total, min(lefts, default=0)

    def _name(self, place: _Place) -> str:
        return f'process {place.number} of {self._processes}'


def _end(status: int) -> str:
    return (
        f'was killed by {signal.Signals(-status).name}'
        if status < 0
        else f'ended with status {status}'
    )


def supervise(command: Command, processes: int, terminal: Terminal, *, once: bool) -> int:
    """Run so many processes of a command until they end; return the exit status."""
    with (
        _Waiter(above_bar=once and terminal.has_bar) as waiter,
        Signals(wake=_nothing) as signals,
    ):
        unblock_signals()
        supervisor = Supervisor(
            lambda number, of: ChildProcess(command, number, of, output=waiter.output),
            waiter.wait,
            terminal,
            processes=processes,
            once=once,
        )
        return supervisor.run(signals)


def _nothing() -> None:
    """Any signal ends the wait."""


class _Waiter:
    """Waits for signals, for the end of children and for what they report.

    ``above_bar``: children write to ``output``, and ``wait`` prints each line, so that it appears
    above the progress bar. Without, ``output`` is None.
    """

    def __init__(self, *, above_bar: bool) -> None:
        self._signals, self._on_signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.output: int | None = None
        self._lines: int | None = None
        self._line = b''
        if above_bar:
            self._lines, self.output = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._lines, False)

    def __enter__(self) -> _Waiter:
        # The handler of Python alone could run just before poll(), and nothing would end that.
        self._wakeup_before = signal.set_wakeup_fd(self._on_signal, warn_on_full_buffer=False)
        self._handler_before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.signal(signal.SIGCHLD, self._handler_before)
        signal.set_wakeup_fd(self._wakeup_before)
        if self._line:
            print_line(self._line.decode(errors='replace'))
        for descriptor in (self._signals, self._on_signal, self._lines, self.output):
            if descriptor is not None:
                os.close(descriptor)

    def wait(self, children: Sequence[Child], seconds: float | None) -> None:
        """Return after any of these, or after so many seconds; None: no limit."""
        poll = select.poll()
        for readable in (self._signals, self._lines, *children):
            if isinstance(readable, int) or (readable is not None and readable.open):
                poll.register(readable, select.POLLIN)
        poll.poll(None if seconds is None else math.ceil(seconds * 1000))
        _read(self._signals)
        if self._lines is not None:
            *lines, self._line = (self._line + _read(self._lines)).split(b'\n')
            for line in lines:
                print_line(line.decode(errors='replace'))


def _read(descriptor: int) -> bytes:
    """Return what can be read now."""
    data = b''
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            data += part
    return data
