"""``psendmail-qp`` in the process of a test, with a processor and an application of its own."""

from __future__ import annotations

import os
import pty
import re
import threading
from contextlib import redirect_stderr
from types import SimpleNamespace
from typing import Any

from pyramid.registry import Registry
from zope.interface import implementer

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.interfaces import (
    IMailQueue,
    IMailQueueProcessor,
)
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.scripts import qp

__all__ = ['Processor', 'PseudoTerminal', 'application', 'run', 'without_time']


@implementer(IMailQueueProcessor)
class Processor:
    """Calls the functions that a test gives it."""

    def __init__(self, **does: Any) -> None:
        self.does = does
        self.arguments: dict[str, Any] = {}
        self.woken = threading.Event()

    def run(self, stop: threading.Event) -> None:
        self.does['run'](self, stop)

    def run_once(self, progress: Any = None, stop: Any = None) -> Tally:
        tally: Tally = self.does['run_once'](progress, stop)
        return tally

    def wake(self) -> None:
        self.woken.set()


def application(queue: Any = None) -> Any:
    registry = Registry('test')
    registry.registerUtility(MemoryQueue() if queue is None else queue, IMailQueue)
    return SimpleNamespace(registry=registry)


def run(*argv: str, processor: Any = None, app: Any = None) -> int:
    def make(registry: Registry, **arguments: Any) -> Any:
        processor.arguments = arguments
        return processor

    app = app or application()
    return qp.run(argv, load=lambda uri, options: app, make=make)


def without_time(text: str) -> str:
    """Return what was printed, without how long a run took."""
    return re.sub(r'(?m)( failed) in \d+ (?:s|min|h|d)\b', r'\1', text)


class PseudoTerminal:
    """A pseudo terminal as stderr; ``text`` is what appeared on it."""

    def __enter__(self) -> PseudoTerminal:
        self._master, slave = pty.openpty()
        self._stderr = os.fdopen(slave, 'w', buffering=1)
        self._redirect = redirect_stderr(self._stderr)
        self._redirect.__enter__()
        self.data = b''
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.data += data
        except OSError:
            pass  # the other side is closed

    def __exit__(self, *exc_info: object) -> None:
        self._redirect.__exit__(None, None, None)
        self._stderr.close()
        self._reader.join(10)
        os.close(self._master)

    @property
    def text(self) -> str:
        return self.data.decode()
