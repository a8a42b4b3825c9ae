"""An application with subscribers, a queue on disk and a scripted relay: from ``send`` to the
bytes that the relay received, and back to the events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pyramid.config import Configurator
from transaction import TransactionManager

from pyramid_sendmail import Message
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.interfaces import IMailEvent, IMailEventDispatcher
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.processor.options import ProcessorOptions
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import parse
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.support.queues import Clock, make_envelope
from tests.support.smtp.server import ScriptedSMTPServer

__all__ = ['MINUTE', 'PATIENT', 'World', 'welcome']

MINUTE = 60.0

PATIENT = Timeouts().capped(10)

STATES = ('tmp', 'new', 'cur', 'done', 'failed')


def welcome(**changes: Any) -> Message:
    """Return a message, with these ``changes``."""
    given: dict[str, Any] = {
        'subject': 'Welcome',
        'sender': 'Shop <shop@example.org>',
        'to': ['ann@example.org'],
        'text': 'A line of text.',
    }
    return Message(**(given | changes))


class World:
    """An application, its queue and its relay.

    ``clock``: stands still unless a test moves it. ``events``: those that subscribers got.
    ``url``: the mailer's URL, instead of plain SMTP with ``timeouts``. ``composer``: arguments of
    EnvelopeFactory.
    """

    def __init__(
        self,
        path: Path,
        server: ScriptedSMTPServer,
        *,
        policy: RetryPolicy | None = None,
        ambiguous: str = 'resend',
        timeouts: Timeouts = PATIENT,
        composer: dict[str, Any] | None = None,
        url: str = '',
    ) -> None:
        self.server = server
        self.clock = Clock()
        self.policy = policy or RetryPolicy(delays=(MINUTE,), jitter=0.0)
        self.path = path / 'mail'
        self.queue = self.new_queue()
        self.events: list[Any] = []
        self._ambiguous = ambiguous
        self.mailer: Any = SMTPMailer(
            server.host, server.port, hostname='web.example.org', timeouts=timeouts
        )
        if url:
            self.mailer = mailer_from_url(url, hostname='web.example.org')
        self.config = Configurator(settings={})
        self.config.include('pyramid_tm')
        self.config.include('pyramid_sendmail')
        self.config.set_mail_queue(self.queue)
        self.config.set_mailer(self.mailer)
        self.delivery = QueuedMailDelivery(
            self.queue,
            self.mailer,
            EnvelopeFactory(
                **({'hostname': 'web.example.org', 'clock': self.clock} | (composer or {}))
            ),
        )
        self.config.set_mail_delivery(self.delivery)
        self.config.add_subscriber(self.events.append, IMailEvent)
        self.config.commit()
        self.dispatcher: Any = self.config.registry.getUtility(IMailEventDispatcher)

    def new_queue(self) -> MaildirQueue:
        """Open the queue as another process would."""
        queue = MaildirQueue(
            str(self.path), sync=False, longest=self.policy.longest, clock=self.clock
        )
        queue.prepare()
        return queue

    def send(self, message: Any = None, **options: Any) -> str:
        """Commit a mail and return its Message-ID."""
        manager = TransactionManager(explicit=True)
        with manager:
            return self.delivery.bind(manager).send(message or welcome(), **options)

    def put(self, *recipients: str, **options: Any) -> Envelope:
        """Put a mail into the queue without ``send``."""
        raw = options.pop('raw', None)
        envelope = make_envelope(*recipients, queued_at=self.clock(), **options)
        if raw is not None:
            envelope = replace(envelope, raw=raw)
        self.queue.put([envelope]).publish()
        return envelope

    def processor(self, **options: Any) -> QueueProcessor:
        """Return a new processor on the same queue, as after a restart."""
        attempts = OutcomeRecorder(self.policy, self.dispatcher, self._ambiguous, clock=self.clock)
        return QueueProcessor(
            self.new_queue(),
            options.pop('mailer', self.mailer),
            self.dispatcher,
            attempts,
            ProcessorOptions(**({'workers': 1, 'pause': 0.02, 'poll': 3600.0} | options)),
        )

    def run(self, **options: Any) -> Tally:
        """Deliver what is due now."""
        tally: Tally = self.processor(**options).run_once()
        return tally

    def attempt(self, **options: Any) -> Tally | str:
        """Deliver what is due; return the count, or the error if the relay is unavailable."""
        try:
            return self.run(**options)
        except MailerUnavailable as error:
            return str(error)

    def closed(self, **options: Any) -> str:
        """Return the error of a run while the relay is unavailable."""
        with pytest.raises(MailerUnavailable) as caught:
            self.run(**options)
        return str(caught.value)

    @contextmanager
    def running(self, **options: Any) -> Iterator[QueueProcessor]:
        """Run a processor in a thread."""
        processor, stop = self.processor(**options), Event()
        thread = Thread(target=processor.run, args=(stop,))
        thread.start()
        try:
            yield processor
        finally:
            stop.set()
            processor.wake()
            thread.join(20)
        assert not thread.is_alive()

    def files(self) -> dict[str, bytes]:
        """Return the content of every file in the queue, without those that vanish meanwhile."""
        found = {}
        for folder in STATES:
            for path in sorted((self.path / folder).iterdir()):
                with suppress(FileNotFoundError):
                    found[f'{folder}/{path.name}'] = path.read_bytes()
        return found

    def folders(self) -> list[str]:
        """Return the folder of each mail."""
        return [name.partition('/')[0] for name in self.files()]

    def due(self) -> float:
        """Return when the only deferred mail is due again, in epoch seconds."""
        (name,) = (path.name for path in (self.path / 'cur').iterdir())
        schedule = parse(name)
        assert schedule is not None
        return schedule.due

    def events_of(self, kind: str) -> list[Any]:
        """Return the events of a kind: 'sent', 'deferred' or 'error'."""
        assert self.dispatcher.flush(10)
        return [each for each in self.events if type(each).__name__ == f'Mail{kind.title()}Event']

    def close(self) -> None:
        self.queue.close()
        assert self.server.violations == []
