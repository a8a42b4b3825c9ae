"""``psendmail-qp`` as a real child process, on a queue and with an .ini file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pyramid_sendmail.queue import MaildirQueue
from tests.support.applications import ROOT, write_ini
from tests.support.queues import files, make_envelope, until
from tests.support.scripts import without_time
from tests.support.smtp.server import ScriptedSMTPServer

__all__ = ['MODULE', 'PROMPT', 'QUIET', 'SCRIPT', 'Child', 'Place', 'once_each']

MODULE = [sys.executable, '-m', 'pyramid_sendmail.scripts.qp']
SCRIPT = [str(Path(sys.executable).with_name('psendmail-qp'))]
QUIET = 'call:tests.support.applications:quiet'

PROMPT = 15.0
"""Seconds within which a process that is asked to stop has to be gone."""


class Child:
    """A ``psendmail-qp`` of our own, and what it printed. ``group``: in a process group of its
    own, as a shell starts it."""

    def __init__(
        self,
        output: Path,
        *arguments: object,
        command: list[str] = MODULE,
        group: bool = False,
    ) -> None:
        self.output = output
        with output.open('ab') as file:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0 if group else None,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def lines(self) -> list[str]:
        """The lines, the last one without how long the run took."""
        return without_time(self.text).splitlines()

    def says(self, text: str, seconds: float = 20.0) -> None:
        """Wait until it has printed this."""
        until(lambda: text in self.text or self.process.poll() is not None, seconds)
        assert text in self.text, self.text

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Ask it to stop; its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(PROMPT)


class Place:
    """A folder with a queue, an .ini file, and the children that were started on it."""

    def __init__(self, path: Path, server: ScriptedSMTPServer) -> None:
        self.path = path
        self.server = server
        self.queue = MaildirQueue(str(path / 'mail'), sync=False)
        self.children: list[Child] = []

    def ini(self, use: str = QUIET, **settings: object) -> Path:
        given = {
            'mail.queue_path': self.queue.path,
            'mail.queue_sync': 'off',
            'mail.url': self.server.url,
            'mail.hostname': 'web.example.org',
            'mail.retry': '1s',
        }
        given.update({key.replace('_', '.', 1): str(value) for key, value in settings.items()})
        return write_ini(self.path / 'x.ini', given, use=use)

    def start(self, *arguments: object, command: list[str] = MODULE, group: bool = False) -> Child:
        output = self.path / f'output-{len(self.children)}'
        child = Child(output, *arguments, command=command, group=group)
        self.children.append(child)
        return child

    def once(self, *arguments: object) -> Child:
        child = self.start(*arguments, '--once')
        child.wait()
        return child

    def put(self, count: int = 1, *recipients: str) -> list[str]:
        """Mail into the queue; the Message-IDs."""
        mails = [make_envelope(*recipients, queued_at=time.time()) for _ in range(count)]
        self.queue.put(mails).publish()
        return [mail.message_id for mail in mails]

    def drained(self) -> None:
        until(lambda: not files(self.queue))


def once_each(server: ScriptedSMTPServer, message_ids: list[str]) -> bool:
    pairs: Counter[tuple[str, str]] = server.pairs()
    return {message_id for message_id, _ in pairs} == set(message_ids) and set(pairs.values()) == {
        1
    }
