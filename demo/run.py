"""``make demo``: the application, the queue processor and the relay, each a process of its own.

Ctrl-C (SIGINT) and SIGTERM stop all three. If one of them ends on its own, the supervisor stops
the others, and its exit status is 1.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .locations import ROOT, Locations

__all__ = ['main', 'run']

GRACE = 15.0
"""Seconds for a child to stop before it is killed, and for the page to respond."""

CONFIG = 'demo/development.ini'
BIN = Path(sys.executable).parent
PARTS = {
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
        locations.folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    try:
        return asyncio.run(run(locations, _environment(os.environ)))
    except FileNotFoundError as error:
        print(f'demo: {error.filename} is missing; run "make demo"', file=sys.stderr)
        return 1


def _refuse_busy_ports(locations: Locations) -> None:
    """Raise OSError, naming the port, if another process listens on it."""
    for what, port in (('the page', locations.web_port), ('the relay', locations.relay_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError as error:
                raise OSError(
                    f'port {port} for {what} cannot be used ({error.strerror}). Choose another '
                    f'pair of ports: DEMO_PORT={locations.web_port + 10} make demo'
                ) from error


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the children's environment, without the variables that would send mail elsewhere."""
    kept = {
        name: text for name, text in environ.items() if name not in ('MAIL_URL', 'MAIL_PASSWORD')
    }
    kept['PYTHONUNBUFFERED'] = '1'
    # Pyramid 2 uses pkg_resources; a user of the demo can do nothing about its warning.
    kept.setdefault('PYTHONWARNINGS', 'ignore:pkg_resources is deprecated as an API')
    return kept


@dataclass(slots=True)
class Child:
    """A running part, and the task that copies its lines."""

    name: str
    process: Process
    copying: asyncio.Task[None] = field(repr=False)


async def run(locations: Locations, environ: Mapping[str, str]) -> int:
    """Start the parts, print the address, and wait for a signal or for one of them to end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    children: list[Child] = []
    try:
        for name, command in PARTS.items():
            children.append(await _start(name, command, environ))
        address = f'http://127.0.0.1:{locations.web_port}/'
        ended = await _first(
            stop, children, lambda: _responds(address), f'{address} did not respond'
        )
        if ended is None and not stop.is_set():
            print(f'\n  Open {address} in a browser. Ctrl-C stops the demo.\n', flush=True)
            ended = await _first(stop, children)
    finally:
        await _stop(children)
    if ended:
        print(f'demo: {ended}; the other parts are stopped', file=sys.stderr)
        return 1
    print('demo: stopped', flush=True)
    return 0


async def _start(name: str, command: list[str], environ: Mapping[str, str]) -> Child:
    """Start a part in a session of its own: Ctrl-C at the terminal reaches the supervisor alone."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )
    return Child(name, process, asyncio.create_task(_copy(name, process)))


async def _copy(name: str, process: Process) -> None:
    """Print a child's lines, each behind the child's name."""
    prefix = f'{name:>9} | '
    if sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        prefix = f'\x1b[{COLOURS[name]}m{prefix}\x1b[0m'
    assert process.stdout is not None
    async for line in process.stdout:
        print(prefix + line.decode('utf-8', 'replace').rstrip(), flush=True)


async def _first(
    stop: asyncio.Event,
    children: list[Child],
    until: Callable[[], bool] | None = None,
    otherwise: str = '',
) -> str | None:
    """Wait for the signal, or until ``until`` returns True. Return what went wrong, or None.

    It is wrong that a child has ended, or that ``until`` took longer than GRACE.
    """
    stopping = asyncio.create_task(stop.wait())
    ends = {asyncio.create_task(child.process.wait()): child for child in children}
    waited = 0.0
    try:
        while True:
            await asyncio.wait(
                {stopping, *ends},
                timeout=None if until is None else 0.1,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if stop.is_set():
                return None
            for task, child in ends.items():
                if task.done():
                    return f'{child.name} ended with exit status {task.result()}'
            if until is not None:
                if await asyncio.to_thread(until):
                    return None
                waited += 0.1
                if waited > GRACE:
                    return otherwise
    finally:
        for task in (stopping, *ends):
            task.cancel()


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


async def _stop(children: list[Child]) -> None:
    """Stop each part, the relay last, so that mail in flight arrives; kill those that stay."""
    for child in reversed(children):
        with suppress(ProcessLookupError):
            child.process.terminate()
        try:
            await asyncio.wait_for(child.process.wait(), GRACE)
        except TimeoutError:
            print(f'demo: {child.name} did not stop in {GRACE:g} s: killed', file=sys.stderr)
            child.process.kill()
            await child.process.wait()
        await child.copying


if __name__ == '__main__':
    sys.exit(main())
