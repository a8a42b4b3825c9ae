"""Drains: a queue that was filled beforehand, and what empties it into a sink, as real processes.

The clock starts when the sink is seen to have its first connection, and stops when the last process
has ended: start-up and imports are left out for all; settling the queue, the reports of
events and closing are in for all. A busy machine may see that connection late: mails that the
sink has by then are not counted, so that this favours no contender. The processor's time is of the
same span. The sink counts the mails; where one is missing, there is no figure but an error.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.application import write_ini
from tests.benchmarks.processes import contender, finish, ours, run, start
from tests.benchmarks.rounds import Place, Sample
from tests.benchmarks.sinks import Sink
from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS, wire

__all__ = ['drained', 'ended', 'files', 'memory', 'psendmail_qp', 'queue', 'ready']

_LONGEST = 300.0


def queue(place: Place, folder: Path, kind: str, count: int) -> Path:
    """A queue of ours, filled by ``request.mailer.send``; returns its path.

    It is filled once for each number of mails; the others are copies of that one."""
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
    """The same mail so many times in a Maildir, behind the header lines that a peer wants there;
    returns the Maildir's path."""
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
    folder: Path, settings: dict[str, Any], *arguments: str, to: Sink, url: str = ''
) -> list[str]:
    """The command that drains the queue in a folder into a sink; ``url`` is a query, ``?x=y``."""
    ini = write_ini(
        folder,
        {
            'mail.queue_path': folder / 'mail',
            'mail.hostname': 'web.example.org',
            'mail.url': f'smtp://127.0.0.1:{to.port}{url}',
            **settings,
        },
    )
    return ours('-m', 'pyramid_sendmail.scripts.qp', ini, '--quiet', *arguments)


def ready(folder: Path) -> None:
    """Sync what was written there, so that no contender waits for the writes of another."""
    run(['sync', '--file-system', str(folder)])


def drained(sink: Sink, count: int, *commands: Sequence[str]) -> Sample:
    """Run the processes at the same time, and measure. What is to be sent is on disk."""
    mails, closed, idle = sink.taken(), sink.closed(), sink.descriptors()

    def connected() -> bool:
        return sink.descriptors() > idle or sink.closed() > closed or sink.taken() > mails

    with ExitStack() as stack:
        began = time.perf_counter()
        children = [stack.enter_context(_child(command)) for command in commands]
        first, cpu, left = began, 0.0, count
        if _seen(connected, children):
            first, left = time.perf_counter(), mails + count - sink.taken()
            cpu = sum(_cpu(child) for child in children)
        most = _wait(children)
        wall = time.perf_counter() - first
        cpu = sum(_cpu(child) for child in children) - cpu
        for child in children:
            child.wait()
            if child.returncode:
                raise RuntimeError(f'{child.args} ended with {child.returncode}')
    _all_taken(sink, mails + count)
    return {'rate': left / wall, 'cpu': cpu / max(left, 1), 'memory': most, 'mails': count}


@contextmanager
def _child(command: Sequence[str]) -> Any:
    child = start(command)
    try:
        yield child
    finally:
        finish(child)


def _seen(connected: Callable[[], bool], children: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Wait for the first connection; False where all was over before it was seen."""
    end = time.perf_counter() + _LONGEST
    while not all(ended(child) for child in children):
        if connected():
            return True
        if time.perf_counter() > end:
            raise RuntimeError(f'{children[0].args} has never connected')
        time.sleep(0.001)
    return False


def ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has."""
    # Not reaped: what it took is asked of the kernel afterwards.
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> float:
    """Wait for all; the most memory that they had, in MB, added up."""
    end = time.perf_counter() + _LONGEST
    waiting = {os.pidfd_open(child.pid): child.pid for child in children}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    most = {child.pid: memory(child.pid) for child in children}
    while waiting:
        for descriptor, _ in poll.poll(20):
            poll.unregister(descriptor)
            os.close(descriptor)
            del waiting[descriptor]
        for pid in waiting.values():
            most[pid] = memory(pid) or most.get(pid, 0.0)
        if time.perf_counter() > end:
            raise RuntimeError(f'{children[0].args} has not ended in {_LONGEST:g} s')
    return sum(most.values())


def memory(pid: int) -> float:
    """The most that it has had, in MB; 0 where it is gone."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith('VmHWM:')]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def _cpu(child: subprocess.Popen[bytes]) -> float:
    """Seconds of the processor until now; of one that has ended, until then."""
    fields = Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _all_taken(sink: Sink, expected: int) -> None:
    end = time.perf_counter() + 2.0
    while (taken := sink.taken()) != expected:
        if time.perf_counter() > end:
            raise RuntimeError(f'the sink has {taken} mails, of {expected}')
        time.sleep(0.01)
