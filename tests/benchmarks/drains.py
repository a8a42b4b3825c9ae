"""Drains: a queue that was filled before, and real processes that empty it into a relay.

The clock and the account of the processor's time are the same for all contenders:

* They start when the relay has its first connection. Starting a program and loading an application
  are left out. Mails that the relay had by the time the connection was seen do not count.
* They stop when the relay has answered the last mail and the contender's queue shows that it has
  settled it: no file is left there. A program's last QUIT and its end are left out.

The relay counts. Where a mail is missing, or came twice, there is an error and no figure.
"""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.application import write_ini
from tests.benchmarks.processes import contender, cpu_time, finish, memory, ours, run, start
from tests.benchmarks.rounds import Place, Sample
from tests.benchmarks.sinks import Sink
from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS, wire

__all__ = [
    'drained',
    'emptied',
    'ended',
    'files',
    'has_processes',
    'psendmail_qp',
    'queue',
    'ready',
    'untouched',
]

_LONGEST = 600.0

Settled = Callable[[], bool]


def queue(place: Place, folder: Path, kind: str, count: int) -> Path:
    """Fill a queue of ours by ``request.mailer.send``; return its path.

    It is filled once for each number of mails; each round gets a copy."""
    original = place.folder / f'queue-{kind}-{count}'
    if not original.exists():
        ini = write_ini(
            place.folder,
            {
                'mail.queue_path': original,
                'mail.queue_sync': 'off',
                'mail.hostname': 'web.example.org',
            },
        )
        run(contender('fill', ini, kind, count))
    copy = folder / 'mail'
    run(['cp', '--archive', str(original), str(copy)])
    ready(folder)
    return copy


def files(folder: Path, kind: str, count: int, *headers: str) -> Path:
    """Write the same mail so many times into a Maildir, behind the header lines that a peer wants
    there; return the Maildir's path."""
    maildir = folder / 'mail'
    for name in ('cur', 'new', 'tmp'):
        (maildir / name).mkdir(parents=True)
    envelope = ''.join(
        line.format(sender=SENDER_ADDRESS, recipient=RECIPIENT_ADDRESS) + '\n' for line in headers
    )
    data = envelope.encode() + wire(kind).replace(b'\r\n', b'\n')
    for number in range(count):
        (maildir / 'new' / f'{number:08d}.benchmark').write_bytes(data)
    ready(folder)
    return maildir


def psendmail_qp(
    folder: Path,
    settings: Mapping[str, object],
    *arguments: object,
    to: Sink,
    url: str = '',
    log: Path | None = None,
) -> list[str]:
    """Return the command that drains the queue in a folder into a relay.

    ``url``: more of ``mail.url``, as ``?x=y``. ``log``: log at INFO into this file; else warnings
    go to stderr, as in the production.ini of Pyramid's cookiecutter.
    """
    ini = write_ini(
        folder,
        {
            'mail.queue_path': folder / 'mail',
            'mail.hostname': 'web.example.org',
            'mail.url': f'{to.url}{url}',
            **settings,
        },
        log=log,
    )
    return ours('-m', 'pyramid_sendmail.scripts.qp', ini, '--quiet', *arguments)


def ready(folder: Path) -> None:
    """Sync what was written there, so that no contender waits for the writes of another."""
    run(['sync', '--file-system', str(folder)])


def emptied(maildir: Path, *names: str) -> Settled:
    """Return whether these folders of a queue, or all that hold mail on its way, are empty."""
    folders = [maildir / name for name in names or ('new', 'cur', 'done')]
    return lambda: not any(folder.exists() and os.listdir(folder) for folder in folders)


def untouched() -> bool:
    """Return True: for contenders without a queue whose files could be looked at."""
    return True


@functools.cache
def has_processes() -> bool:
    """Return whether psendmail-qp starts several processes by itself."""
    return '--processes' in run(ours('-m', 'pyramid_sendmail.scripts.qp', '--help')).text


def drained(
    sink: Sink, count: int, *commands: Sequence[str], settled: Settled, part: float = 1.0
) -> Sample:
    """Run the processes at the same time, and measure. What is to be sent is on disk.

    ``early`` is the rate until this part of the mails was answered.
    """
    mails, quiet = sink.answered(), sink.activity()
    with ExitStack() as stack:
        children = [stack.enter_context(_child(command)) for command in commands]
        _connects(lambda: sink.activity() != quiet, children)
        began, before = time.perf_counter(), sink.answered()
        cpu = sum(cpu_time(child.pid) for child in children)
        goal = mails + count
        early, most = 0.0, 0.0
        while (answered := sink.answered()) < goal or not settled():
            now = time.perf_counter()
            if not early and answered - mails >= count * part:
                early = now
            most = max(most, sum(memory(child.pid) for child in children))
            if now - began > _LONGEST or all(ended(child) for child in children):
                break
            time.sleep(_pause(answered - before, goal - answered, now - began))
        end = time.perf_counter()
        cpu = sum(cpu_time(child.pid) for child in children) - cpu
        most = max(most, sum(memory(child.pid) for child in children))
        for child in children:
            child.wait(_LONGEST)
            if child.returncode:
                raise RuntimeError(f'{child.args} ended with {child.returncode}')
    _check(sink, goal, settled)
    left = goal - before
    return {
        'mails': count,
        'rate': left / (end - began),
        'early': (round(count * part) + mails - before) / ((early or end) - began),
        'cpu': cpu / max(left, 1),
        'memory': most,
    }


@contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    child = start(command)
    try:
        yield child
    finally:
        finish(child)


def _connects(connected: Callable[[], bool], children: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.perf_counter() + _LONGEST
    while not connected() and not all(ended(child) for child in children):
        if time.perf_counter() > end:
            raise RuntimeError(f'{children[0].args} has never connected')
        time.sleep(0.001)


def _pause(done: int, left: int, seconds: float) -> float:
    """Return how long not to look: looking takes the processor from those who are measured. The
    end is seen half a millisecond late at most."""
    expected = left * seconds / done if done else 0.0
    return min(max(expected / 4, 0.0005), 0.02)


def ended(child: subprocess.Popen[bytes]) -> bool:
    """Return whether a child has ended; it is not reaped, so that the kernel keeps its account."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _check(sink: Sink, expected: int, settled: Settled) -> None:
    end = time.perf_counter() + 2.0
    while (answered := sink.answered()) != expected or not settled():
        if time.perf_counter() > end:
            raise RuntimeError(
                f'the relay has answered {answered} mails, of {expected}'
                if answered != expected
                else 'files are left in the queue'
            )
        time.sleep(0.01)
