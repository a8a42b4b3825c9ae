"""Two failures in a row: a second crash, a fault, or a second process, at a point where an
operation has stopped or sleeps.

The ledger says what must be true in the end. After a single crash the letters on disk say it, but
here a second process has changed them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.sending.attempt import attempt
from tests.crash.bench import Bench, in_child, play
from tests.crash.operations import Operation
from tests.crash.place import FOLDERS, Place
from tests.crash.syscalls import STOPPED, Call, Policy, Watch, stopping
from tests.support.queues import reap

__all__ = ['SCHEDULES', 'Log', 'Walk', 'walk']

STRIDE = 8
"""A run of CI plays each schedule at every eighth call of each operation, at others each time."""

ERRORS = (
    *(errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE),
    *(errno.EPERM, errno.EACCES, errno.ESTALE, errno.EINTR),
)
"""Without ENOENT, which would be a lie: see ``outcomes`` for what becomes of that."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How many ``cases`` an operation has, and how often each word was found. ``failure``: of the
    last case, as text; empty where there was none."""

    cases: int
    words: dict[str, int]
    failure: str = ''


class Log(logging.Handler):
    """What all processes of a case have logged, in a file: children do not tell otherwise."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record).replace('\n', '\n    ')
        os.write(self._descriptor, f'{record.levelname} {lines}\n'.encode())

    def close(self) -> None:
        os.close(self._descriptor)
        super().close()

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)

    def lines(self) -> list[str]:
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0).decode().splitlines()


def failing(number: int, error: int) -> Policy:
    """A policy: the call of that number fails."""

    def policy(call: Call) -> Any:
        if call.number == number and call.name != 'mark':
            if call.name == 'close':
                call.perform()
            raise OSError(error, os.strerror(error))
        return call.perform()

    return policy


def sleeping(number: int) -> Policy:
    """A policy: the process is stopped (SIGSTOP) before the call of that number."""

    def policy(call: Call) -> Any:
        if call.number == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return call.perform()

    return policy


def work(place: Place, *, rounds: int = 6) -> None:
    """Act as another process that does what it can, while some mail may be claimed by the first."""
    place.dispatcher.refuse = False
    queue, recorder, connection = place.queue(), place.recorder(), place.connection()
    queue.prepare()
    for _ in range(rounds):
        tickets, next_due = queue.scan(place.clock.now, all_events=True)
        attempt(place.claims(queue, tickets), connection, recorder, Tally())
        if next_due is not None:
            place.clock.now = max(next_due, place.clock.now)
    queue.sync()
    place.forget()


def watched(place: Place, policy: Policy) -> None:
    """The same, each of its calls going through a policy."""
    with Watch(place.path, policy) as watch:
        place.ledger.step = watch.mark
        try:
            work(place)
        finally:
            place.ledger.step = lambda function: function()


def child(work: Callable[[], object]) -> int:
    """Start it in a process of its own; return its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    return pid


def crash_twice(place: Place, operation: Operation, at: int, chance: Random) -> None:
    """The process after the crash is stopped, too, at one of its calls."""
    assert in_child(place, operation, stopping(at)) in (0, STOPPED)
    policy = stopping(chance.randrange(1, 60), torn=chance.random() < 0.3)
    assert reap(child(lambda: watched(place, policy))) in (0, STOPPED)


def fault_after_crash(place: Place, operation: Operation, at: int, chance: Random) -> None:
    """The process after the crash gets an error from one of its calls."""
    assert in_child(place, operation, stopping(at)) in (0, STOPPED)
    with suppress(QueueError, DamagedMail, OSError):
        watched(place, failing(chance.randrange(1, 60), chance.choice(ERRORS)))
    place.forget()


def crash_after_fault(place: Place, operation: Operation, at: int, chance: Random) -> None:
    """The call fails, and the process is stopped soon after it, over what it does about that."""
    fails, stops = failing(at, chance.choice(ERRORS)), stopping(at + chance.randrange(1, 8))

    def policy(call: Call) -> Any:
        return fails(call) if call.number == at else stops(call)

    def run() -> None:
        with suppress(QueueError, DamagedMail, OSError):
            play(place, operation, policy)

    assert reap(child(run)) in (0, STOPPED)


def two_at_once(place: Place, operation: Operation, at: int, chance: Random) -> None:
    """Another process does what it can while this one sleeps; then it goes on."""
    pid = child(lambda: play(place, operation, sleeping(at)))
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        assert os.waitstatus_to_exitcode(status) == 0
        return
    try:
        work(place)
    finally:
        os.kill(pid, signal.SIGCONT)
        assert reap(pid) == 0


SCHEDULES: dict[str, Callable[[Place, Operation, int, Random], None]] = {
    'crash twice': crash_twice,
    'fault after crash': fault_after_crash,
    'crash after fault': crash_after_fault,
    'two at once': two_at_once,
}


def check(place: Place, log: Log) -> None:
    """Bring all mail to its end, and check that no recipient misses a mail or got a second copy
    that the log does not call ambiguous. Held mail is released first, and
    a retry that was stopped is made again: both must arrive."""
    queue = place.queue()
    for info in queue.mails('held'):
        assert queue.release(info), info
    for (id,) in place.ledger.lines('retried'):
        for info in queue.mails('failed'):
            assert info.id != id or queue.retry(info), info
    place.drain()
    dropped = [id for (id,) in place.ledger.lines('dropped')]
    lines = log.lines()
    after, copies = place.found(), place.ledger.copies()
    committed = place.committed.union(*place.ledger.lines('committed'))
    for envelope in place.mails:
        found = after.get(envelope.id)
        letters = found.letters or {} if found else {}
        assert found is None or found.folder == 'failed', found
        doubted = any('in doubt' in line and envelope.id in line for line in lines)
        # A file that may not be opened is moved to failed/: its event may be lost, not its reason.
        aside = any(
            envelope.id in path.name and path.name != f'{envelope.id}.txt'
            for path in place.path.glob('reasons/*')
        )
        for to in envelope.recipients:
            case = (envelope.id[0], to, letters.get(to), copies[envelope.id, to], doubted)
            ambiguous = [line for line in lines if f'{envelope.message_id}: ambiguous for' in line]
            count = copies[envelope.id, to]
            assert count <= 1 + sum(to in line for line in ambiguous), case
            if to.startswith('bad'):
                assert count == 0, case
            if found is None and envelope.id in dropped:
                pass  # a person wanted it gone
            elif envelope.id in committed:
                dead = to.startswith('bad') or doubted or ambiguous
                kept = found is not None and (aside or (letters.get(to) == 'F' and dead))
                assert count >= 1 or kept, ('lost', case)
                if not aside:
                    _dispatched(place, envelope.id, to, 'sent' if count else 'error')
            elif place.in_doubt == 'hold':
                assert count == 0, ('sent without a commit', case)
            assert not (letters.get(to) == 'F' and count) or ambiguous, case
    _nothing_left(place)


def _dispatched(place: Place, id: str, to: str, kind: str) -> None:
    """What is held after it has arrived once is an error, too."""
    if kind in place.kinds:
        lines = [*place.ledger.lines(kind), *place.ledger.lines('error')]
        assert [id, to] in lines, (kind, id[0], to)


def _nothing_left(place: Place) -> None:
    known = {*FOLDERS, 'trigger', 'reasons', 'processor'}
    beside = {path.name for path in place.path.iterdir()} - known
    assert beside == set(), beside


def walk(operation: Operation, folder: Path, log: Log, schedule: str, seed: int) -> Walk:
    """Play a schedule at each ``STRIDE``-th call of an operation, in one of its variants; at each
    call, in each of them, where there is no ``seed``."""
    cases = 0
    first, stride = (seed % STRIDE + 1, STRIDE) if seed else (1, 1)
    variants = [operation.variants[seed % len(operation.variants)]] if seed else operation.variants
    for number, variant in enumerate(variants):
        bench = Bench(folder / f'{schedule} {number}', operation, variant)
        names = bench.trace()
        for at in range(first, len(names) + 1, stride):
            log.clear()
            place = bench.lay()
            try:
                SCHEDULES[schedule](place, operation, at, Random(f'{seed} {operation.name} {at}'))
                check(place, log)
            except Exception:  # noqa: BLE001
                case = f'{operation.name}, {variant}, {schedule} at {at} {names[at - 1]}, {seed}'
                lines = '\n'.join(log.lines()[-40:])
                return Walk(cases, {}, f'{case}\n{traceback.format_exc()}\n{lines}')
            cases += 1
    return Walk(cases, {})
