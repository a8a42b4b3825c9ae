"""The fault shim: each system call of each operation fails, once or from then on, with each error.

After each fault the disk is in one of three states: as before the operation, as if nothing had
failed ("done"), or between the two; the next process brings the last to its end, as it does after
a crash (``Place.verify``: nothing is lost, nothing is sent twice). ``PROMISES`` says for each phase
which of the states may come with which error.

No local file system answers every error to every call (no flock answers ENOSPC): each is tried all
the same. ENOENT for a file that exists is believed: the queue acts as if another process had
removed it.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from tests.crash.bench import Bench, log
from tests.crash.counts import Count
from tests.crash.operations import OPERATIONS, Operation
from tests.crash.place import FOLDERS, Lines, Place, snapshot
from tests.crash.syscalls import Call, Watch
from tests.support.folders import folder

__all__ = ['folder', 'log']

ERRORS = ('ENOSPC', 'EIO', 'EROFS', 'EMFILE', 'EPERM', 'EACCES', 'ENOENT', 'ESTALE', 'EINTR')

BY_NAME = {operation.name: operation for operation in OPERATIONS}

PROMISES: dict[str, frozenset[str]] = {
    phase: frozenset(outcomes)
    for phase, outcomes in {
        # A transaction is refused as a whole, or has everything on disk.
        'put': ('QueueError, as before', 'quiet, done'),
        # What follows the vote raises nothing.
        'publish': ('quiet, done', 'quiet, between'),
        'discard': ('quiet, done', 'quiet, between'),
        'keep_in_doubt': ('quiet, done',),
        'scan': (
            'QueueError, as before',
            'QueueError, done',
            'quiet, as before',
            'quiet, between',
            'quiet, done',
        ),
        'claim': (
            'QueueError, as before',
            'QueueError, between',
            'QueueError, done',
            'quiet, between',
            'quiet, done',
        ),
        'release': ('quiet, between', 'quiet, done'),
        # The final dot must not leave.
        'mark_ambiguous': ('QueueError, between',),
        # The outcome is on disk, or the claim is kept until it is; it is never forgotten.
        'settle': ('quiet, between', 'quiet, done', 'quiet, kept, done'),
        'attempt': (
            'QueueError, as before',
            'QueueError, between',
            'quiet, between',
            'quiet, done',
            'quiet, kept, between',
            'quiet, kept, done',
        ),
        # A person's change is made, or can be made again.
        **dict.fromkeys(
            ('hold', 'release held', 'retry', 'drop'),
            (
                'QueueError, as before',
                'QueueError, between',
                'QueueError, done',
                'quiet, between',
                'quiet, done',
            ),
        ),
        'prepare': ('QueueError, done', 'quiet, done'),
        'check_writable': ('QueueError, done', 'quiet, done'),
        # Its callers take care of an OSError.
        'sync': ('OSError, done',),
        'pull': ('quiet, done',),
        'wait': ('OSError, done', 'quiet, done'),
    }.items()
}
"""By phase: what is raised ('quiet': nothing), 'kept' where the outcome of a mail could not be
recorded at once, and the state of the disk afterwards."""

PERMISSION = ('EPERM', 'EACCES')

CHANGES = ('hold', 'release held', 'retry', 'drop')
"""Phases in which a person changes a mail."""

EXCEPTIONS: dict[tuple[str, str, str], str] = {
    # The staged file seems to be gone: there is nothing that could be removed.
    ('put', 'flock tmp', 'ENOENT'): 'QueueError, between',
    ('put', 'fstat tmp', 'ENOENT'): 'QueueError, between',
    ('put', 'stat tmp', 'ENOENT'): 'QueueError, between',
    # The probe stays until the next start sweeps it.
    ('prepare', 'unlink probe', 'any'): 'QueueError, between',
    ('prepare', 'unlink probe', 'ENOENT'): 'quiet, between',
    ('prepare', 'unlink lock-probe', 'any'): 'quiet, between',
    ('check_writable', 'unlink probe', 'any'): 'QueueError, between',
    ('check_writable', 'unlink probe', 'ENOENT'): 'quiet, between',
    # A damaged file stays where it is and is reported again.
    ('claim', 'rename new', 'any'): 'quiet, as before',
    # The event is in the file: it is dispatched again.
    ('attempt', 'pwrite done', 'any'): 'quiet, as before',
}
"""By phase, step and error: what else may come of it."""

RECORDS = ('pwrite new', 'fsync new', 'rename new')
"""Steps of ``settle`` whose first failure leaves an outcome unrecorded."""

PAIRS = {
    'adopt': 226,
    'attempt': 477,
    'check_writable': 89,
    'claim and release': 72,
    'discard one': 32,
    'discard three': 48,
    'enqueue one': 210,
    'enqueue three': 388,
    'keep_in_doubt': 16,
    'hold': 259,
    'release': 194,
    'release and defer': 194,
    'retry failed': 194,
    'retry deferred': 170,
    'drop': 170,
    'mark_ambiguous': 8,
    'prepare': 461,
    'set aside': 226,
    'recover committed': 234,
    'recover doubtful': 380,
    'recover unvoted': 178,
    'report': 153,
    'resume after the dot': 243,
    'resume before the dot': 243,
    'retry by hand': 194,
    'retry_events': 129,
    'run once': 217,
    'settle deferred': 113,
    'settle delivered': 40,
    'settle failed': 129,
    'settle mixed': 145,
    'settle partly': 145,
    'sync': 48,
    'wake': 40,
}
"""Nine tenths of the pairs of call and error that each operation was measured to have ('run once':
in each part). Fewer mean that a call is no longer watched."""

NEVER = {
    'link': 'a rename publishes, also where the file system has no links',
    'listdir': 'scandir lists a folder',
    'fdatasync': 'a new file needs its length on disk as well',
    'ftruncate': 'a file never changes its length',
    'posix_fallocate': 'the vote writes every byte that is ever needed',
}
"""Calls that the queue does not make, and why."""

REQUIRED = {
    *('open', 'write', 'pwrite', 'read', 'pread', 'fsync', 'fdatasync', 'link', 'rename', 'unlink'),
    *('flock', 'mkdir', 'fstat', 'ftruncate', 'posix_fallocate', 'listdir', 'scandir', 'close'),
}
"""Calls that are tried, or have a reason in NEVER."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken for ever is tried a thousand times, without the pauses between."""
    monkeypatch.setattr('pyramid_sendmail.queue.maildir.staging.time.sleep', lambda seconds: None)


class Fault:
    """A policy: the call of that number fails; ``lasting``: and so do all of its name after it.

    ``trusted``: a sync was repeated after it had failed, and not everything that it was to save had
    been written anew (the kernel may have dropped it without an error).
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault led to. ``endangered``: a committed mail is not in new/, or not safely;
    ``critical``: something was logged at that level."""

    text: str
    critical: bool
    endangered: bool


def play(place: Place, operation: Operation, policy: Callable[[Call], Any]) -> str:
    """Do the operation under a policy; return what was raised: an error's name or 'quiet', and
    'kept' where the outcome of a mail was kept and recorded later."""
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
    """Return how many mails this process has open."""
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

    def fail(self, call: Call, error: str, *, lasting: bool = False) -> Outcome:
        """Let a call fail; check what must hold after every fault; return the outcome."""
        place, operation, log = self.bench.lay(), self.bench.operation, self._log
        log.lines.clear()
        fault = Fault(call.number, error, lasting=lasting)
        try:
            words = [play(place, operation, fault)]
            after = snapshot(place.path)
            committed = {id for ids in place.ledger.lines('committed') for id in ids}
            staged = any(
                id in name for name in after if name.startswith('tmp/') for id in committed
            )
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
        place.verify(log, reasons=not lasting)
        operation.check(place)
        unsafe = call.phase == 'publish' and call.step == 'fsync new/'
        return Outcome(', '.join(words), critical, staged or unsafe)


def check(call: Call, occurrence: int, error: str, outcome: Outcome, *, doubtful: bool) -> None:
    """Raise AssertionError where this outcome breaks a promise."""
    text = outcome.text
    quiet = text.startswith('quiet')
    allowed = {*PROMISES[call.phase]}
    for named in (error, 'any'):
        if other := EXCEPTIONS.get((call.phase, call.step, named)):
            allowed.add(other)
    if error in PERMISSION and call.step == 'open new':
        allowed.add('DamagedMail, between')  # this user may not open it
    if error in PERMISSION and call.phase in CHANGES and call.name == 'open':
        allowed.add('quiet, as before')  # the change returns False
    if error == 'ENOENT':
        allowed |= {'quiet, as before', 'quiet, between', 'quiet, done'}
    assert text in allowed, 'no outcome of this phase'
    if call.name == 'posix_fadvise' or call.place == 'reasons':
        assert quiet, 'an error that concerns no mail'
    if call.name == 'close' and call.place in FOLDERS:
        assert quiet, 'closing a file is too late for an error'
    if call.place == 'trigger' and call.phase != 'wait':
        assert quiet, 'without the wake-up mail is only later'
    if call.phase == 'settle' and error != 'ENOENT':
        recording = call.step in RECORDS and occurrence == 1
        assert ('kept' in text) == recording, 'kept where recording failed, and only there'
    if call.phase == 'keep_in_doubt':
        assert outcome.critical, 'mail in doubt is in danger'
    elif doubtful:
        decided = 'as before' not in text or call.step == 'pwrite tmp'
        assert outcome.critical == decided, 'mail in doubt is in danger'
    else:
        assert outcome.critical == outcome.endangered, 'CRITICAL where mail is in danger'


def check_errors(outcomes: dict[str, str], step: str) -> None:
    """Raise AssertionError where an outcome depends on which error it was: only a permission (of
    ``open``) and a vanished file are different from others."""
    apart = {'ENOENT', *(PERMISSION if step.startswith('open') else ())}
    assert len({text for error, text in outcomes.items() if error not in apart}) == 1, outcomes


def sweep(shim: Shim, count: Count) -> Iterator[str]:
    """Let every call fail with every error, once and lasting; yield each broken promise."""
    occurrences: Counter[tuple[str, str]] = Counter()
    name = shim.bench.operation.name
    doubtful = name == 'recover doubtful'
    for call in shim.calls:
        occurrences[call.phase, call.step] += 1
        occurrence = occurrences[call.phase, call.step]
        results: dict[str, str] = {}
        try:
            for error in ERRORS:
                outcome = shim.fail(call, error)
                results[error] = outcome.text
                check(call, occurrence, error, outcome, doubtful=doubtful)
                shim.fail(call, error, lasting=True)
            check_errors(results, call.step)
        except AssertionError as broken:
            yield f'{call.phase}: {call.step} #{occurrence}: {results}: {broken}'
        count('pairs of call and error', name, len(ERRORS))
        count('errors of each call, once and lasting', call.name, 2 * len(ERRORS))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', [name for name in BY_NAME if name != 'run once'])
def test_each_error_of_each_call(folder: Path, name: str, log: Lines, count: Count) -> None:
    """After each fault at each call nothing is lost, sent twice or left open; the disk is as
    before, done or between; a claim is kept where recording failed; and CRITICAL is logged where
    mail is in danger."""
    operation = BY_NAME[name]
    shim = Shim(Bench(folder / 'bench', operation, operation.variants[0]), log)
    assert list(sweep(shim, count)) == []
    assert len(shim.calls) * len(ERRORS) >= PAIRS[name]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('part', range(3))
def test_a_processor_survives_each_error(folder: Path, part: int, log: Lines, count: Count) -> None:
    """A whole run over mail in every state, with a call failing, raises nothing but QueueError,
    and the next process brings all mail to the end that the crash table gives it. Each call has a
    third of the errors, in turn."""
    operation = BY_NAME['run once']
    bench = Bench(folder / 'bench', operation, operation.variants[0])
    shim = Shim(bench, log)
    words: Counter[str] = Counter()
    pairs = 0
    for call in shim.calls[part::3]:
        for at in range(call.number % 3, len(ERRORS), 3):
            outcome = shim.fail(call, ERRORS[at], lasting=bool(call.number % 2))
            words[outcome.text.partition(',')[0]] += 1
            pairs += 1
    count('pairs of call and error', 'run once', pairs)
    assert set(words) == {'quiet', 'QueueError'}
    assert pairs >= PAIRS['run once']


def test_each_call_is_tried_or_never_made(tmp_path: Path, log: Lines) -> None:
    """Each system call that a queue might make is made by an operation, or has a reason not to."""
    made: defaultdict[str, set[str]] = defaultdict(set)
    for operation in OPERATIONS:
        bench = Bench(tmp_path / operation.name, operation, operation.variants[0])
        for call in Shim(bench, log).calls:
            made[call.name].add(operation.name)
    assert made.keys().isdisjoint(NEVER)
    assert made.keys() | NEVER.keys() >= REQUIRED
