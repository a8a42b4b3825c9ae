"""Folders in which servers run, some as their root directory: files, devices, processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ['HOST', 'TIMEOUT', 'Folder', 'Root', 'free_ports', 'missing', 'unpacked']

HOST = '127.0.0.1'

TIMEOUT = 60.0
"""Seconds that a server may take for what it does at once on a machine with nothing else to do."""

_DEVICES = {'null': (1, 3), 'zero': (1, 5), 'random': (1, 8), 'urandom': (1, 9)}


def unpacked() -> Path:
    """Where the peers are."""
    return Path(os.environ.get('MAIL_PEERS', '/var/cache/mail-peers'))


def missing(peer: str) -> str:
    """Why this peer cannot be run here, or ''."""
    if not (unpacked() / peer).is_dir():
        return f'no {peer} in {unpacked()}: run tests/peers/install'
    if os.geteuid() != 0:
        return f'{peer} is run in a root directory of its own, which takes root'
    return ''


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that are free.

    They are below those that the system chooses by itself, and each process of pytest-xdist has its
    own, so that they stay free while a relay is stopped.
    """
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
    first = 11_000 + worker % 16 * 1_300
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(first, first + 1_300)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Folder:
    """A folder of a peer's own, and the servers that run in it."""

    def __init__(self, peer: str, *, directory: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f'pyramid_sendmail-{peer}-', dir=directory))
        self.path.chmod(0o755)
        self._sessions: set[int] = set()

    def write(self, path: str, *lines: str, mode: int = 0o644) -> None:
        """Write a file of these lines."""
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(''.join(f'{line}\n' for line in lines))
        file.chmod(mode)

    def command(self, *command: str) -> list[str]:
        """The command that runs a program of the peer's."""
        return list(command)

    def run(self, *command: str) -> bytes:
        """Run a program of the peer's; return what it printed."""
        done = subprocess.run(
            self.command(*command), stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, f'{command}: {done.stdout!r} {done.stderr!r}'
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a server that stays in the foreground; what it prints goes to its output."""
        with self.output.open('ab') as output:
            server = subprocess.Popen(
                self.command(*command),
                cwd=self.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Some end their whole process group, and we are not to be in it.
                start_new_session=True,
            )
        self._sessions.add(server.pid)
        return server

    @property
    def output(self) -> Path:
        return self.path / 'output'

    @property
    def log(self) -> str:
        """What the servers have said, wherever they say it."""
        files = [self.output, *sorted((self.path / 'var/log').rglob('*'))]
        return '\n'.join(file.read_text(errors='replace') for file in files if file.is_file())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the peer does."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f'it did not come to pass\n{self.log}'
            time.sleep(0.01)

    def greets(self, server: subprocess.Popen[bytes], port: int) -> None:
        """Wait until a server has greeted on a port."""

        def greeted() -> bool:
            assert server.poll() is None, f'it has ended\n{self.log}'
            try:
                with socket.create_connection((HOST, port), timeout=TIMEOUT) as line:
                    return line.recv(1) == b'2'
            except OSError:
                return False

        self.until(greeted)

    def stop(self, *servers: subprocess.Popen[bytes]) -> None:
        """Stop servers, and whatever they have started and left behind."""
        for server in servers:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        for server in servers:
            try:
                server.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        while pids := list(self.processes()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._sessions.clear()

    def processes(self) -> Iterator[int]:
        """The ids of the processes that were started here, and of those that they started."""
        for entry in Path('/proc').iterdir():
            if entry.name.isdigit():
                try:
                    session = os.getsid(int(entry.name))
                    os.readlink(entry / 'exe')
                except OSError:
                    continue  # it has ended, perhaps as a zombie whose parent is not looking
                if session in self._sessions:
                    yield int(entry.name)

    def remove(self) -> None:
        """Remove the directory; nothing may run in it any more."""
        shutil.rmtree(self.path, ignore_errors=True)


class Root(Folder):
    """A copy of a peer's root directory, with users of its own.

    ``users``: names, with the number of each user and of its group. ``groups``: more groups.
    ``directory``: where it is made; without it, where temporary files are.
    """

    def __init__(
        self,
        peer: str,
        *,
        users: dict[str, int],
        groups: dict[str, int] | None = None,
        directory: Path | None = None,
    ):
        super().__init__(peer, directory=directory)
        try:
            self._furnish(unpacked() / peer, {'root': 0, **users}, groups or {})
        except BaseException:
            self.remove()
            raise

    def _furnish(self, source: Path, users: dict[str, int], groups: dict[str, int]) -> None:
        shutil.copytree(
            source, self.path, symlinks=True, dirs_exist_ok=True, copy_function=_link_or_copy
        )
        for folder in ('dev', 'etc', 'run', 'tmp', 'var', 'var/log', 'var/spool', 'var/mail'):
            (self.path / folder).mkdir(exist_ok=True)
        (self.path / 'tmp').chmod(0o1777)
        (self.path / 'var/run').symlink_to('../run')
        for name, (major, minor) in _DEVICES.items():
            device = self.path / 'dev' / name
            os.mknod(device, 0o020666, os.makedev(major, minor))
            device.chmod(0o666)
        self.write('etc/passwd', *(f'{name}:x:{n}:{n}::/:/bin/sh' for name, n in users.items()))
        self.write('etc/group', *(f'{name}:x:{n}:' for name, n in {**users, **groups}.items()))
        self.write('etc/shadow', *(f'{name}:*:1::::::' for name in users), mode=0o600)
        # No name server is ever asked.
        self.write(
            'etc/nsswitch.conf', *(f'{what}: files' for what in ('passwd', 'group', 'hosts'))
        )
        self.write('etc/resolv.conf', 'lookup file')
        self.write('etc/hosts', f'{HOST} localhost')

    def own(self, path: str, *, group: int, mode: int) -> None:
        """Have a program belong to a group; the one that was unpacked stays as it is."""
        file = self.path / path
        copy = file.with_name(f'{file.name}.own')
        shutil.copy2(file, copy)
        os.chown(copy, 0, group)
        copy.chmod(mode)
        copy.rename(file)

    def folder(self, path: str, *, owner: int = 0, group: int = 0, mode: int = 0o755) -> None:
        """Make a folder."""
        folder = self.path / path
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, owner, group)
        folder.chmod(mode)

    def command(self, *command: str) -> list[str]:
        """The command that runs a program of the peer's in its root directory."""
        return ['chroot', str(self.path), *command]

    def processes(self) -> Iterator[int]:
        """The ids of the processes that run in this directory, which nothing else starts."""
        for entry in Path('/proc').iterdir():
            if entry.name.isdigit():
                try:
                    root = Path(os.readlink(entry / 'root'))
                    os.readlink(entry / 'exe')
                except OSError:
                    continue  # it has ended, perhaps as a zombie whose parent is not looking
                # A server may have gone on to an empty directory below.
                if root.is_relative_to(self.path):
                    yield int(entry.name)
