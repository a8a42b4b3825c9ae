"""The fault shim: every system call of every operation fails, with each error in its turn.

What becomes of each is pinned in ``outcomes``; what must be true whatever becomes of it is what is
true after a crash (``Place.verify``).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from tests.crash.bench import Bench, folder, log
from tests.crash.counts import Count
from tests.crash.operations import OPERATIONS, Operation
from tests.crash.outcomes import NEVER, OUTCOMES
from tests.crash.place import FOLDERS, Lines, Place, snapshot
from tests.crash.syscalls import Call, Watch

__all__ = ['folder', 'log']

ERRORS = ('ENOSPC', 'EIO', 'EROFS', 'EMFILE', 'EPERM', 'EACCES', 'ENOENT', 'ESTALE', 'EINTR')

ASKED = {
    *('open', 'write', 'pwrite', 'read', 'pread', 'fsync', 'fdatasync', 'link', 'rename', 'unlink'),
    *('flock', 'mkdir', 'fstat', 'ftruncate', 'posix_fallocate', 'listdir', 'scandir', 'close'),
}
"""Calls that have to be tried, or have a reason."""

BY_NAME = {operation.name: operation for operation in OPERATIONS}

Outcomes = dict[tuple[str, str], dict[int, dict[str, str]]]
"""By phase and step, by which of its occurrences, by error."""


class Fault:
    """A policy: the call of that number fails; ``lasting``: and so do all of its name after it.

    ``trusted``: a sync was asked for again after it had failed, without everything that it was to
    save having been written anew (the kernel may have dropped it, and say nothing).
    """

    def __init__(self, number: int, error: str, *, lasting: bool = False) -> None:
        self._number = number
        self._error = getattr(errno, error)
        self._lasting = lasting
        self._dirty: dict[int, list[range]] = {}
        self._lost: dict[int, list[range]] = {}
        self.hit: Call | None = None
        self.trusted = False

    def __call__(self, call: Call) -> Any:
        fails = self._fails(call)
        if call.name == 'fsync':
            self._sync(call.key, fails)
        if not fails:
            if call.name == 'pwrite':
                self._dirty.setdefault(call.key, []).append(call.span)
                self._lost[call.key] = [
                    span
                    for span in self._lost.get(call.key, [])
                    if span.start < call.span.start or span.stop > call.span.stop
                ]
            return call.perform()
        if call.name == 'close':
            call.perform()  # Linux closes, whatever it answers
        raise OSError(self._error, os.strerror(self._error))

    def _sync(self, key: int, fails: bool) -> None:
        self.trusted |= bool(self._lost.get(key))
        dirty = self._dirty.pop(key, [])
        if fails:
            # A folder has nothing that could be written anew.
            self._lost.setdefault(key, []).extend(dirty or [range(1)])

    def _fails(self, call: Call) -> bool:
        if call.name == 'mark':
            return False
        if call.number == self._number:
            self.hit = call
            return True
        return self._lasting and self.hit is not None and call.name == self.hit.name


def play(place: Place, operation: Operation, policy: Callable[[Call], Any]) -> str:
    """Do the operation under a policy; return what came out of it: an error's name or 'quiet', and
    'kept' where an outcome was kept and recorded later."""
    steps = operation.steps(place)
    phases = [next(steps)]
    raised = 'quiet'
    try:
        with Watch(place.path, policy) as watch:
            place.ledger.step = watch.mark
            watch.phase = phases[-1]
            for phase in steps:
                watch.phase = phase
                phases.append(phase)
    except QueueError as error:
        raised, text = 'QueueError', str(error)
        if str(place.path) not in text or ';' not in text:
            raise AssertionError(f'without the queue, or without a remedy: {text}') from error
    except (DamagedMail, OSError) as error:
        raised = 'DamagedMail' if isinstance(error, DamagedMail) else 'OSError'
    finally:
        place.ledger.step = lambda function: function()
    return f'{raised}, kept' if 'record' in phases else raised


def open_files(place: Place) -> int:
    """How many mails this process has open."""
    found = 0
    for name in os.listdir('/proc/self/fd'):
        with suppress(OSError):
            path = os.readlink(f'/proc/self/fd/{name}')
            found += path.startswith(tuple(f'{place.path}/{folder}/' for folder in FOLDERS))
    return found


class Shim:
    """An operation, and what it does and leaves when nothing fails."""

    def __init__(self, bench: Bench, log: Lines) -> None:
        self.bench = bench
        self.calls: list[Call] = []
        self._log = log
        place = bench.lay()
        self._before = snapshot(place.path)

        def record(call: Call) -> Any:
            if call.name != 'mark':
                self.calls.append(call)
            return call.perform()

        assert play(place, bench.operation, record) == 'quiet'
        self._open = open_files(place)
        self._done = snapshot(place.path)
        place.forget()

    def fail(self, call: Call, error: str, *, lasting: bool = False) -> str:
        """Let a call fail; see that everything holds that must; return the outcome."""
        place, operation, log = self.bench.lay(), self.bench.operation, self._log
        log.lines.clear()
        fault = Fault(call.number, error, lasting=lasting)
        try:
            words = [play(place, operation, fault)]
            after = snapshot(place.path)
            critical = bool(log.about('CRITICAL')) and 'kept' not in words[0]
            left = open_files(place)
            assert not fault.trusted, 'synced again'
            assert lasting or left <= self._open, 'a file was left open'
        finally:
            place.forget()
        if after == self._done:
            words.append('done')
        elif after == self._before:
            words.append('as before')
        else:
            words.append('between')
        if critical:
            words.append('CRITICAL')
        place.verify(log, reasons=not lasting)
        operation.check(place)
        return ', '.join(words)


def render(outcomes: Outcomes) -> list[str]:
    """One line a step, and one for each of its occurrences that differ: the outcome of most
    errors, and those of the others."""
    lines = []
    for (phase, step), occurrences in outcomes.items():
        groups: dict[str, list[int]] = {}
        for occurrence, results in occurrences.items():
            groups.setdefault(_results(results), []).append(occurrence)
        for text, numbers in groups.items():
            which = '' if len(groups) == 1 else f' #{",".join(map(str, numbers))}'
            lines.append(f'{phase}: {step}{which}: {text}')
    return lines


def _results(results: dict[str, str]) -> str:
    usual, _ = Counter(results.values()).most_common(1)[0]
    others: dict[str, list[str]] = {}
    for error, outcome in results.items():
        if outcome != usual:
            others.setdefault(outcome, []).append(error)
    return '; '.join([usual, *(f'{" ".join(errors)}: {o}' for o, errors in others.items())])


def sweep(shim: Shim, count: Count) -> list[str]:
    """Every call, every error, once and lasting."""
    outcomes: Outcomes = {}
    name = shim.bench.operation.name
    for call in shim.calls:
        occurrences = outcomes.setdefault((call.phase, call.step), {})
        results = occurrences.setdefault(len(occurrences) + 1, {})
        for error in ERRORS:
            results[error] = shim.fail(call, error)
            shim.fail(call, error, lasting=True)
        count('pairs of call and error', name, len(ERRORS))
        count('errors of each call, once and lasting', call.name, 2 * len(ERRORS))
    return render(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', [name for name in BY_NAME if name != 'run once'])
def test_each_error_of_each_call(folder: Path, name: str, log: Lines, count: Count) -> None:
    """Whatever call fails, with whatever error, once or from then on: what becomes of it is what
    the table says, and nothing is lost, nothing sent twice, nothing left open."""
    operation = BY_NAME[name]
    bench = Bench(folder / 'bench', operation, operation.variants[0])
    found = sweep(Shim(bench, log), count)
    assert found == OUTCOMES[name].strip().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('part', range(3))
def test_a_processor_survives_each_error(folder: Path, part: int, log: Lines, count: Count) -> None:
    """A whole run over mail in every state, with a call failing: whatever it says, all mail gets
    where the table of crashes puts it. Each call has a third of the errors, in turn."""
    operation = BY_NAME['run once']
    bench = Bench(folder / 'bench', operation, operation.variants[0])
    shim = Shim(bench, log)
    words: Counter[str] = Counter()
    for call in shim.calls[part::3]:
        for at in range(call.number % 3, len(ERRORS), 3):
            words[shim.fail(call, ERRORS[at], lasting=bool(call.number % 2)).partition(',')[0]] += 1
            count('pairs of call and error', 'run once', 1)
    assert set(words) == {'quiet', 'QueueError'}


def test_what_is_never_asked_for() -> None:
    """Calls that the queue does not make have no row, and a reason."""
    made = {
        line.split(': ')[1].split()[0]
        for text in OUTCOMES.values()
        for line in text.strip().splitlines()
    }
    assert made.isdisjoint(NEVER)
    assert made | set(NEVER) >= ASKED
