"""The queue processor is chosen by an adapter from the queue and the registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.registry import Registry
from zope.interface import Interface, implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.interfaces import (
    IMailQueue,
    IMailQueueProcessor,
    IScannableQueue,
    IStagedMail,
)
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.ticket import Ticket
from pyramid_sendmail.scripts import qp


class ITableQueue(IMailQueue):
    """A queue in a database table."""


@implementer(ITableQueue)
class TableQueue:
    """A queue that cannot be scanned."""

    def put(self, envelopes: Sequence[Envelope]) -> IStagedMail:
        raise NotImplementedError

    def claim(self, ticket: Ticket, *, settled: bool = False) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


@implementer(IMailQueueProcessor)
class TableProcessor:
    """The processor of a TableQueue."""

    def __init__(
        self,
        queue: Any,
        registry: Registry,
        *,
        workers: int | None = None,
        batch: int | None = None,
    ) -> None:
        self.arguments = (queue, registry, workers, batch)

    def run(self, stop: threading.Event) -> None:
        raise NotImplementedError

    def run_once(
        self,
        progress: Callable[[Tally, int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Tally:
        return Tally(delivered=1)

    def wake(self) -> None:
        """It does not sleep."""


def configured(queue: Any, **settings: str) -> Configurator:
    given = {f'mail.{name}': value for name, value in settings.items()}
    config = Configurator(settings={'mail.url': 'null:', **given})
    config.include('pyramid_sendmail')
    config.set_mail_queue(queue)
    return config


def register(config: Configurator, interface: type[Interface] = ITableQueue) -> None:
    config.registry.registerAdapter(TableProcessor, (interface, Interface), IMailQueueProcessor)


def test_doubles() -> None:
    """The queue and the processor of these tests implement their interfaces."""
    assert verifyObject(ITableQueue, TableQueue())
    assert verifyObject(IMailQueueProcessor, TableProcessor(TableQueue(), Registry('test')))


@pytest.mark.parametrize('kind', ['maildir', 'memory'])
def test_a_queue_that_can_be_scanned(kind: str, tmp_path: Path) -> None:
    """Its processor is ours, whichever queue it is."""
    config = configured(MemoryQueue() if kind == 'memory' else MaildirQueue(str(tmp_path / 'q')))
    config.commit()
    assert isinstance(processor_of(config.registry), QueueProcessor)


def test_a_queue_of_another_kind() -> None:
    """A queue with a registered adapter gets its own processor, with the numbers of the command
    line."""
    queue = TableQueue()
    config = configured(queue)
    register(config)
    config.commit()
    processor: Any = processor_of(config.registry, workers=2, batch=7)
    assert processor.arguments == (queue, config.registry, 2, 7)
    made = config.registry.getMultiAdapter((queue, config.registry), IMailQueueProcessor)
    assert isinstance(made, TableProcessor), 'also as any other adapter'


@pytest.mark.parametrize('early', [True, False])
def test_another_processor_for_every_queue(early: bool) -> None:
    """An adapter of the application replaces ours, if it is registered before the commit or
    after it."""
    config = configured(MemoryQueue())
    for is_early in (True, False):
        if is_early is early:
            register(config, IScannableQueue)
        if is_early:
            config.commit()
    assert isinstance(processor_of(config.registry), TableProcessor)


def test_a_queue_without_a_processor() -> None:
    """The error names the queue's type and the remedy."""
    config = configured(TableQueue())
    config.commit()
    with pytest.raises(ConfigurationError) as caught:
        processor_of(config.registry)
    text = str(caught.value)
    assert f'no queue processor is registered for {__name__}.TableQueue' in text
    assert 'config.registry.registerAdapter(factory, (IYourQueue, Interface)' in text
    assert 'IScannableQueue' in text


def test_a_thread_without_a_processor() -> None:
    """``mail.processor = thread`` fails at the start, not in the first request."""
    with pytest.raises(ConfigurationError, match='no queue processor is registered for'):
        configured(TableQueue(), processor='thread').commit()
    config = configured(TableQueue(), processor='thread')
    register(config)
    config.commit()


def test_psendmail_qp_without_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and a line with the error."""
    config = configured(TableQueue())
    app = config.make_wsgi_app()
    assert qp.run(['x.ini', '--once'], load=lambda uri, options: app) == 2
    line = capsys.readouterr().err
    assert line.startswith('psendmail-qp: mail queue: no queue processor is registered for ')


def test_psendmail_qp_with_another_processor(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs the processor of the queue."""
    config = configured(TableQueue())
    register(config)
    app = config.make_wsgi_app()
    assert qp.run(['x.ini', '--once'], load=lambda uri, options: app) == 0
    assert 'delivered' in capsys.readouterr().err
