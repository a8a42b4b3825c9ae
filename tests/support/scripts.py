"""``psendmail-qp`` in the process of a test, with a processor and an application of its own."""

from __future__ import annotations

import threading
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

__all__ = ['Processor', 'application', 'run']


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
