"""Who takes part in a soak: producers, processors, and the clock that they share."""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

from pyramid_sendmail import Message
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.events.dispatcher import EventDispatcher
from pyramid_sendmail.interfaces import IMailer, IMailEventDispatcher
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.processor.options import ProcessorOptions
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.crash.soak_relay import BULK_SENDER, TIMEOUT, WORKERS

__all__ = ['SharedClock', 'make_queue', 'process', 'produce']

POLICY = RetryPolicy(delays=(0.2, 0.5), give_up_after=86400.0)
EVENTS = RetryPolicy(delays=(0.2,), give_up_after=1e12, jitter=0.0)
BACKLOG = 400
"""Mails in new/ at which producers wait."""

LINES, BULK_LINES = 20, 80_000
"""Lines of a mail; a large one does not fit into the buffers of a socket."""

CREATE = (
    'CREATE TABLE IF NOT EXISTS orders (message_id TEXT)',
    'CREATE TABLE IF NOT EXISTS events (id TEXT, kind TEXT, message_id TEXT, recipients TEXT,'
    ' reason TEXT)',
)


class SharedClock:
    """Epoch seconds, off by what the file says: one for all processes, stepped by the parent."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, 8)
        self._map = mmap.mmap(descriptor, 8)
        os.close(descriptor)

    def __call__(self) -> float:
        return time.time() + self.offset

    @property
    def offset(self) -> float:
        offset: float = struct.unpack('d', self._map)[0]
        return offset

    @offset.setter
    def offset(self, seconds: float) -> None:
        self._map[:] = struct.pack('d', seconds)


def database(path: Path) -> Callable[[Any], Session]:
    """What makes sessions with a SQLite file, each joined to a transaction manager."""
    engine = create_engine(f'sqlite:///{path}', connect_args={'timeout': 60})

    @event.listens_for(engine, 'connect')
    def quick(connection: Any, _record: object) -> None:
        # Processes are killed here, and no power is cut.
        connection.execute('PRAGMA journal_mode = WAL')
        connection.execute('PRAGMA synchronous = OFF')

    with engine.begin() as connection:
        for statement in CREATE:
            connection.execute(text(statement))

    def session(manager: Any) -> Session:
        session = Session(engine)
        zope.sqlalchemy.register(session, transaction_manager=manager)
        zope.sqlalchemy.mark_changed(session, transaction_manager=manager)
        return session

    return session


def make_queue(root: Path, clock: SharedClock) -> MaildirQueue:
    return MaildirQueue(str(root / 'mail'), sync=False, longest=POLICY.longest, clock=clock)


def _log_to(root: Path) -> None:
    logging.basicConfig(
        filename=root / f'log-{os.getpid()}', format='%(levelname)s %(message)s', level='WARNING'
    )


def produce(root: Path, seed: int) -> None:
    """Send mail, transaction after transaction, until the file ``enough`` is there."""
    _log_to(root)
    chance = random.Random(seed)
    clock = SharedClock(root / 'clock')
    queue = make_queue(root, clock)
    composer = EnvelopeFactory(hostname='web.example.org', clock=clock)
    delivery = QueuedMailDelivery(queue, None, composer)  # type: ignore[arg-type]
    connect = database(root / f'orders-{seed}')
    ledger = os.open(root / 'ledger', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    manager = transaction.TransactionManager(explicit=True)
    is_bulk = chance.random() < 0.3
    while not (root / 'enough').exists():
        if len(os.listdir(root / 'mail' / 'new')) > BACKLOG:
            time.sleep(0.05)
            continue
        manager.begin()
        session = connect(manager)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            to = [f'{_mailbox(chance)}@example.org' for _ in range(chance.choice((1, 1, 2, 4)))]
            message = Message(
                subject='Soak',
                sender=BULK_SENDER if is_bulk else 'shop@example.org',
                to=to,
                text='.A line.\n' * (BULK_LINES if is_bulk else LINES),
            )
            is_bulk = chance.random() < 0.01
            message_id = delivery.bind(manager).send(message)
            os.write(ledger, f'{message_id} {" ".join(dict.fromkeys(to))}\n'.encode())
            session.execute(text('INSERT INTO orders VALUES (:id)'), {'id': message_id})
        if chance.random() < 0.2:
            manager.abort()
        else:
            manager.commit()


def _mailbox(chance: random.Random) -> str:
    return ('nobody' if chance.random() < 0.05 else 'user') + str(chance.randrange(10**9))


def process(root: Path, url: str, seed: int) -> None:
    """Be a queue processor, with subscribers that write to a database, until SIGTERM."""
    _log_to(root)
    chance = random.Random(seed)
    clock = SharedClock(root / 'clock')
    connect = database(root / 'events')
    config = Configurator(
        settings={
            'mail.url': f'{url}?timeout={TIMEOUT}s',
            'mail.hostname': 'web.example.org',
            'tm.manager_hook': _manager,
        }
    )
    dispatcher = EventDispatcher(config.registry, policy=EVENTS, clock=clock)
    config.registry.registerUtility(dispatcher, IMailEventDispatcher)
    queue = make_queue(root, clock)
    config.include('pyramid_tm')
    config.include('pyramid_sendmail')
    config.set_mail_queue(queue)

    def tell(kind: str) -> Callable[[Any], None]:
        def write(event: Any) -> None:
            connect(event.request.tm).execute(
                text('INSERT INTO events VALUES (:id, :kind, :message_id, :recipients, :reason)'),
                {
                    'id': event.id,
                    'kind': kind,
                    'message_id': event.message_id,
                    'recipients': ' '.join(event.recipients),
                    'reason': getattr(event, 'reason', ''),
                },
            )
            if chance.random() < 0.02:
                raise LookupError('a subscriber fails now and then')

        return write

    for kind in ('Sent', 'Error'):
        config.add_subscriber(tell(kind.lower()), f'pyramid_sendmail.interfaces.IMail{kind}Event')
    config.commit()
    processor = QueueProcessor(
        queue,
        config.registry.getUtility(IMailer),
        dispatcher,
        OutcomeRecorder(POLICY, dispatcher, clock=clock),
        ProcessorOptions(workers=WORKERS, batch=20, poll=0.5, pause=0.05),
    )
    stop = threading.Event()

    def leave(_number: int, _frame: object) -> None:
        stop.set()
        processor.wake()

    signal.signal(signal.SIGTERM, leave)
    processor.run(stop)


def _manager(request: Any) -> Any:
    return transaction.TransactionManager(explicit=True)
