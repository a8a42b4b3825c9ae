"""``make demo``: the application, the queue processor and the relay, each a process of its own.

Ctrl-C (SIGINT) and SIGTERM stop all three. If one of them ends while the demo starts, the
supervisor stops the others, and its exit status is 1. Later, one that ends or is killed is started
again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .locations import ROOT, Locations
from .parts import Parts, PartState

__all__ = ['main', 'run']

GRACE = 15.0
"""Seconds for a part to stop before it is killed, and for the page to respond."""

TICK = 0.1
"""Seconds between two looks at the parts, and at what the page asks for."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds until a part that ended is started again. The pause doubles while it ends again and
again, and is the first one after it has run for the longest."""

CONFIG = 'demo/development.ini'
BIN = Path(sys.executable).parent
COMMANDS = {
    'relay': [sys.executable, '-m', 'demo.relay'],
    'web': [str(BIN / 'pserve'), CONFIG],
    'processor': [str(BIN / 'psendmail-qp'), CONFIG],
}
COLOURS = {'relay': 35, 'web': 36, 'processor': 33}


def main() -> int:
    """Run the demo; return its exit status."""
    try:
        locations = Locations.from_environment()
        _refuse_busy_ports(locations)
        # Under a umask of 0 the folders would be open to all, and the queue refused.
        os.umask(0o077)
        locations.folder.mkdir(parents=True, exist_ok=True)
        with _owned(locations.folder):
            return asyncio.run(run(locations, _environment(os.environ)))
    except FileNotFoundError as error:
        print(f'demo: {error.filename} is missing; run "make demo"', file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Lock the folder. Raises OSError, with the remedy, if another demo uses it."""
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f'another demo uses {folder}; choose another folder: DEMO_VAR=... make demo'
            ) from None
        yield


def _refuse_busy_ports(locations: Locations) -> None:
    """Raise OSError, naming the port and a pair that is free, if another process listens on it."""
    for what, port in (('the page', locations.web_port), ('the relay', locations.relay_port)):
        error = _error_of(port)
        if error is not None:
            pairs = range(locations.web_port + 10, 65535, 10)
            other = next((p for p in pairs if not _error_of(p) and not _error_of(p + 1)), 0)
            raise OSError(
                f'port {port} for {what} cannot be used ({error.strerror}). Choose another '
                f'pair of ports: DEMO_PORT={other or "..."} make demo'
            ) from error


def _error_of(port: int) -> OSError | None:
    """Return the error of listening on a port of loopback, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError as error:
            return error
    return None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the children's environment, without the variables that would send mail elsewhere."""
    kept = {
        name: text for name, text in environ.items() if name not in ('MAIL_URL', 'MAIL_PASSWORD')
    }
    kept['PYTHONUNBUFFERED'] = '1'
    # Pyramid 2 uses pkg_resources; a user of the demo can do nothing about its warning.
    kept.setdefault('PYTHONWARNINGS', 'ignore:pkg_resources is deprecated as an API')
    return kept


class Part:
    """A process that is kept running, unless the page asked for it to be stopped."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.process: Process | None = None
        self._command = command
        self._environ = environ
        self._copying: asyncio.Task[None] | None = None
        self._pause = FIRST_PAUSE
        self._started = self._due = self._kill_at = 0.0

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def state(self, *, wanted: bool) -> PartState:
        """Return what the page shows."""
        if self.runs:
            assert self.process is not None
            return PartState('running' if wanted else 'stopping', self.process.pid)
        return PartState('starting' if wanted else 'stopped')

    async def start(self) -> None:
        """Start it in a session of its own: Ctrl-C at the terminal reaches the supervisor alone."""
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        self._copying = asyncio.create_task(_copy(self.name, self.process))
        self._started, self._kill_at = time.monotonic(), 0.0

    async def keep(self, *, wanted: bool) -> None:
        """Start it if it has ended, after a pause; or stop it if it is not wanted."""
        now = time.monotonic()
        if self.runs:
            assert self.process is not None
            if not wanted and not self._kill_at:
                self._kill_at = now + GRACE
                self.process.terminate()
            elif self._kill_at and now > self._kill_at:
                self.process.kill()
            return
        if self.process is not None:
            await self._ended(now, asked=bool(self._kill_at))
        if not wanted:
            self._due, self._pause = now, FIRST_PAUSE
        if wanted and now >= self._due:
            await self.start()

    async def _ended(self, now: float, *, asked: bool) -> None:
        """Plan the next start: at once if the page asked for the end, else after a pause that grows
        while the process ends soon after each start."""
        await self._copied()
        if asked:
            print(f'demo: {self.name} is stopped', flush=True)
        else:
            if now - self._started > LONGEST_PAUSE:
                self._pause = FIRST_PAUSE
            print(f'demo: {self.ended()}; it is started again in {self._pause:g} s', flush=True)
            self._due = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.process = None

    def ended(self) -> str:
        """Return how it ended."""
        assert self.process is not None
        return f'{self.name} ended with exit status {self.process.returncode}'

    async def stop(self) -> None:
        """Stop it, and kill it if it does not stop in time."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), GRACE)
        except TimeoutError:
            print(f'demo: {self.name} did not stop in {GRACE:g} s: killed', file=sys.stderr)
            self.process.kill()
            await self.process.wait()
        await self._copied()

    async def _copied(self) -> None:
        """Wait for its last lines: not for long, as a child of its own may hold the pipe open."""
        if self._copying is not None:
            await asyncio.wait({self._copying}, timeout=1)


async def run(locations: Locations, environ: Mapping[str, str]) -> int:
    """Start the parts, print the address, and keep the parts running until a signal."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    requests = Parts(locations.folder)
    requests.clear(COMMANDS)
    parts = [Part(name, command, environ) for name, command in COMMANDS.items()]
    try:
        for part in parts:
            await part.start()
        wrong = await _first_response(f'http://127.0.0.1:{locations.web_port}/', parts, stop)
        if not wrong:
            await _keep(parts, requests, stop)
    finally:
        # The relay last, so that mail in flight arrives.
        for part in reversed(parts):
            await part.stop()
        requests.clear(COMMANDS)
    if wrong:
        print(f'demo: {wrong}; the other parts are stopped', file=sys.stderr)
        return 1
    print('demo: stopped', flush=True)
    return 0


async def _first_response(address: str, parts: list[Part], stop: asyncio.Event) -> str:
    """Wait until the page responds, or for the signal. Return what went wrong, or nothing.

    At the start it is wrong that a part ends: as a rule it would end each time.
    """
    patience = time.monotonic() + GRACE
    while not stop.is_set():
        for part in parts:
            if not part.runs:
                return part.ended()
        if await asyncio.to_thread(_responds, address):
            print(f'\n  Open {address} in a browser. Ctrl-C stops the demo.\n', flush=True)
            return ''
        if time.monotonic() > patience:
            return f'{address} did not respond'
        await _tick(stop)
    return ''


async def _keep(parts: list[Part], requests: Parts, stop: asyncio.Event) -> None:
    """Keep the parts running, and write which do, until the signal."""
    written: dict[str, PartState] = {}
    while not stop.is_set():
        states = {}
        for part in parts:
            wanted = requests.is_wanted(part.name)
            await part.keep(wanted=wanted)
            states[part.name] = part.state(wanted=wanted)
        if states != written:
            requests.write(states)
            written = states
        await _tick(stop)


async def _tick(stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), TICK)


async def _copy(name: str, process: Process) -> None:
    """Print a child's lines, each behind the child's name."""
    prefix = f'{name:>9} | '
    if sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        prefix = f'\x1b[{COLOURS[name]}m{prefix}\x1b[0m'
    assert process.stdout is not None
    async for line in process.stdout:
        print(prefix + line.decode('utf-8', 'replace').rstrip(), flush=True)


def _responds(address: str) -> bool:
    """Return whether the page responds. Loopback needs no proxy, whatever the environment says."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


if __name__ == '__main__':
    sys.exit(main())
