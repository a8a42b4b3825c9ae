"""Children: the environments that they run in, and what a run took."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    'ROOT',
    'Absent',
    'Run',
    'contender',
    'cpu_time',
    'finish',
    'memory',
    'ours',
    'peer',
    'postfix',
    'run',
    'start',
    'until',
    'versions',
]

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / '.venv-peers'
POSTFIX = Path(os.environ.get('MAIL_PEERS', '/var/cache/mail-peers')) / 'postfix'

_PEERS = (
    'aiosmtplib',
    'django-mailer',
    'django-post_office',
    'pyramid_mailer',
    'repoze.sendmail',
    'zope.sendmail',
)

LONGEST = 1_800.0
"""Seconds after which a child is taken to hang."""


class Absent(Exception):
    """A contender is not on this machine; the text says how it gets there."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a child took, from its start to its end: seconds of the clock and of the processor, and
    the most memory that it had, in MB."""

    wall: float
    cpu: float
    memory: float
    text: str

    @property
    def figures(self) -> dict[str, float]:
        """What a contender of tests.benchmarks.contenders has printed."""
        found: dict[str, float] = json.loads(self.text.splitlines()[-1])
        return found


def ours(*arguments: object) -> list[str]:
    """A command in the environment that the benchmarks run in."""
    return [sys.executable, *map(str, arguments)]


def peer(*arguments: object) -> list[str]:
    """A command in the environment of the peers: a script of theirs, or Python with arguments.
    Raises Absent."""
    python = PEERS / 'bin/python'
    if not python.exists():
        raise Absent('the peers are not installed: make bench-peers')
    script = python.with_name(str(arguments[0]))
    return [str(python), *map(str, [script, *arguments[1:]] if script.exists() else arguments)]


def versions() -> dict[str, str]:
    """The peers that are installed, and their versions."""
    code = (
        'import json; from importlib.metadata import version; '
        f'print(json.dumps({{name: version(name) for name in {_PEERS}}}))'
    )
    try:
        return run(peer('-c', code)).figures  # type: ignore[return-value]
    except Absent:
        return {}


def postfix(program: str, *arguments: object) -> list[str]:
    """A command of Debian's postfix package, unpacked where tests/peers/install puts it."""
    path = POSTFIX / 'usr/sbin' / program
    loader = next((POSTFIX / 'usr/lib64').glob('ld-linux-*'), None)
    if loader is None or not path.exists():
        raise Absent(f'{program} is not in {POSTFIX}: tests/peers/install')
    libraries = [POSTFIX / 'usr/lib/postfix', *(POSTFIX / 'usr/lib').glob('*-linux-gnu')]
    return [
        str(loader),
        '--library-path',
        ':'.join(map(str, libraries)),
        str(path),
        *map(str, arguments),
    ]


def contender(name: str, *arguments: object, by: Callable[..., list[str]] = ours) -> list[str]:
    """The command of a module of tests.benchmarks.contenders."""
    return by('-m', f'tests.benchmarks.contenders.{name}', *arguments)


def start(command: Sequence[str], *, output: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a child in our folder, what it prints going into ``output`` or nowhere."""
    stream = output.open('ab') if output else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    finally:
        if output:
            stream.close()  # type: ignore[union-attr]


def finish(child: subprocess.Popen[bytes], *, number: int = signal.SIGTERM) -> None:
    """End a child that we started."""
    if child.poll() is None:
        child.send_signal(number)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def run(*commands: Sequence[str]) -> Run:
    """Run children at the same time, and wait for all; raises RuntimeError where one fails."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        began = time.perf_counter()
        children = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
            )
            for command, output, error in zip(commands, outputs, errors, strict=True)
        ]
        watchdog = threading.Timer(LONGEST, lambda: [child.kill() for child in children])
        watchdog.start()
        try:
            # The operating system's own account of each, when it has ended.
            usages = [_reap(child) for child in children]
        finally:
            watchdog.cancel()
        wall = time.perf_counter() - began
        for child, error in zip(children, errors, strict=True):
            if child.returncode:
                error.seek(0)
                text = error.read()[-2000:].decode(errors='replace')
                raise RuntimeError(f'{child.args} ended with {child.returncode}:\n{text}')
        for output in outputs:
            output.seek(0)
        return Run(
            wall,
            sum(usage.ru_utime + usage.ru_stime for usage in usages),
            sum(usage.ru_maxrss for usage in usages) / 1024,
            ''.join(output.read().decode() for output in outputs),
        )


def cpu_time(pid: int) -> float:
    """Return the seconds of the processor that a process and its children have used; those of a
    process that has ended, as long as its parent has not asked for its status."""
    try:
        # The clock of another process: its number, as the kernel's <linux/posix-timers.h> has it.
        own = time.clock_gettime((~pid << 3) | 2)
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    gone = (int(fields[13]) + int(fields[14])) / os.sysconf('SC_CLK_TCK')
    return own + gone + sum(map(cpu_time, _children(pid)))


def memory(pid: int) -> float:
    """Return the most memory that a process has had, in MB, its children added; 0 if it is gone."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith('VmHWM:')]
    own = int(lines[0].split()[1]) / 1024 if lines else 0.0
    return own + sum(map(memory, _children(pid)))


def _children(pid: int) -> list[int]:
    try:
        text = Path(f'/proc/{pid}/task/{pid}/children').read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _reap(child: subprocess.Popen[bytes]) -> resource.struct_rusage:
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _environment() -> Mapping[str, str]:
    # Without compiled modules a start would take longer than it does where it is installed.
    own = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    return {**own, 'PYTHONWARNINGS': 'ignore'}


def until(condition: Callable[[], object], *, seconds: float) -> float:
    """Wait for a condition; return when it was seen to be true, by ``time.perf_counter``."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            raise RuntimeError(f'it did not come to pass within {seconds:g} s')
        time.sleep(0.001)
    return time.perf_counter()
