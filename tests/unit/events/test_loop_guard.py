"""Mail that events cause: whatever subscribers send, and from wherever, no chain is without end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction import TransactionManager

from pyramid_sendmail import Message, MessageError
from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.events.loop_guard import (
    MAX_FOLLOW_UPS,
    deepest,
    depth_after,
    depth_by_cause,
    why_too_deep,
)
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailErrorEvent,
    IMailEvent,
    IMailSentEvent,
)
from tests.support.queues import failed, make_envelope, sent
from tests.unit.events.test_dispatcher import REFUSED, WAIT, Application, message


@pytest.fixture
def application() -> Iterator[Application]:
    """With a manager for each request, which works in every thread."""
    application = Application(**{'tm.manager_hook': 'pyramid_tm.explicit_manager'})
    yield application
    assert application.delivery.flush(WAIT)


class Chain:
    """A subscriber without a ``mail_tag``, which sends ``count`` mails for each of its events, by
    ``send(event, message)``; no more than shows that there is no end."""

    def __init__(self, application: Application, send: Any, count: int = 1) -> None:
        self.application = application
        self.send = send
        self.count = count
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        if len(self.events) <= 500:
            for number in range(self.count):
                self.send(event, message(f're {number}: {event.subject[:50]}'))


def send_by_request(event: Any, own: Message) -> None:
    event.request.mailer.send(own)


def send_by_utility(event: Any, own: Message) -> None:
    """Bound to the manager of the event's request, as code without the request would."""
    event.request.registry.getUtility(IMailDelivery).bind(event.request.tm).send(own)


def _in_thread(work: Callable[[], object]) -> None:
    """As a thread pool or a task queue: no context of the subscriber's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(WAIT)


def send_by_request_in_a_thread(event: Any, own: Message) -> None:
    _in_thread(lambda: event.request.mailer.send(own))


def send_in_a_transaction_of_a_thread(event: Any, own: Message) -> None:
    """``event.request.mailer`` bound to a manager of the thread's own, and once more."""
    mailer = event.request.mailer

    def work() -> None:
        manager = TransactionManager(explicit=True)
        with manager:
            mailer.bind(TransactionManager()).bind(manager).send(own)

    _in_thread(work)


def send_with_the_event(event: Any, own: Message) -> None:
    _send_elsewhere(event, own, event)


def send_with_the_id(event: Any, own: Message) -> None:
    _send_elsewhere(event, own, str(event.id))


def _send_elsewhere(event: Any, own: Message, cause: Any) -> None:
    delivery = event.request.registry.getUtility(IMailDelivery)

    def work() -> None:
        with transaction.manager:
            delivery.send(own, cause=cause)

    _in_thread(work)


WAYS = [
    send_by_request,
    send_by_utility,
    send_by_request_in_a_thread,
    send_in_a_transaction_of_a_thread,
    send_with_the_event,
    send_with_the_id,
]


@pytest.mark.parametrize('way', WAYS)
def test_a_chain_of_sent_events_ends(
    application: Application, way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscriber that mails about each mail that was sent mails about its own mail: the chain
    had no end. It ends after a few mails, and the log tells the remedy."""
    chain = Chain(application, way)
    application.subscribe(chain, IMailSentEvent)
    application.send('Hello')
    assert len(application.subjects) == 1 + MAX_FOLLOW_UPS
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert 'keeps mailing about its own mail' in line
    assert 'mail_tag' in line
    assert 'ann@example.org' in line


@pytest.mark.parametrize('way', WAYS)
def test_a_double_bounce_is_logged_in_every_thread(
    application: Application, way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A notice of a failed mail is sent from wherever; a notice of its failure is not."""
    application.mailer.always('ann@example.org', REFUSED)
    chain = Chain(application, way)
    application.subscribe(chain, IMailErrorEvent)
    application.send('Hello')
    assert application.subjects == ['Hello', 're 0: Hello']
    assert caplog.text.count('double bounce') == 1


@pytest.mark.parametrize('way', [send_by_request, send_with_the_id])
@pytest.mark.parametrize('refused', [False, True])
def test_a_chain_of_all_events_ends(application: Application, way: Any, refused: bool) -> None:
    """So does one of a subscriber to whatever there is, with two mails for each event, over a relay
    that refuses every third mail."""
    if refused:
        answers = cycle([Verdict('delivered', Reply(250, 'ok'))] * 2 + [REFUSED])
        application.mailer.answer = lambda recipient: next(answers)  # type: ignore[method-assign]
    chain = Chain(application, way, count=2)
    application.subscribe(chain, IMailEvent)
    application.send('Hello')
    assert len(chain.events) == len(application.subjects) <= 2 ** (MAX_FOLLOW_UPS + 2)


def test_a_chain_over_a_queue_ends(tmp_path: Path) -> None:
    """The depth is kept with the mail in a queue on disk, from process to process."""
    application = Application(**{'mail.queue_path': str(tmp_path / 'mail')})
    chain = Chain(application, send_by_request)
    application.subscribe(chain, IMailSentEvent)
    application.config.commit()
    with transaction.manager:
        application.delivery.send(message('Hello'))
    for _ in range(MAX_FOLLOW_UPS + 3):
        assert processor_of(application.registry).run_once()
    assert len(application.subjects) == 1 + MAX_FOLLOW_UPS
    assert [envelope.depth for envelope in application.mailer.sent] == [0, 10, 20, 30, 40, 50]


def test_one_follow_up_goes_on(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    """What an application may do: each mail with a tag has one follow-up, however many there are;
    and failures of follow-ups are reported."""
    application.subscribe(
        lambda event: send_by_request(event, message('follow-up', to='bob@example.org')),
        IMailSentEvent,
        mail_tag='welcome',
    )
    application.subscribe(
        lambda event: send_by_request(event, message('failed', to='cyd@example.org')),
        IMailErrorEvent,
    )
    application.mailer.always('bob@example.org', REFUSED)
    for _ in range(10):
        with transaction.manager:
            own = Message(
                subject='Hello',
                to='ann@example.org',
                text='Hi',
                tag='welcome',
                sender='shop@example.org',
            )
            application.delivery.send(own)
        application.delivery.flush(WAIT)
    counts = Counter(application.subjects)
    assert counts == {'Hello': 10, 'follow-up': 10, 'failed': 10}
    assert 'not sent: ' not in caplog.text


def test_the_id_of_an_event_has_the_depth_of_its_mail(application: Application) -> None:
    """The same id for an ordinary mail as in the queue; a number more for one that was caused."""
    ids: list[str] = []
    application.subscribe(lambda event: ids.append(event.id))
    for depth in (0, 1, 20):
        envelope = make_envelope(depth=depth)
        application.dispatch(sent(envelope), failed(envelope), envelope=envelope)
        pending = sent(envelope).id, failed(envelope).id
        assert ids[-2:] == [f'{id}-{depth}' if depth else id for id in pending]
        expected = [depth_after('sent', depth), depth_after('error', depth)]
        assert [depth_by_cause(id) for id in ids[-2:]] == expected


@pytest.mark.parametrize('cause', ['', 'no id', 'a-1-other-0', 'a-1-sent', 7, object()])
def test_a_cause_that_is_none(application: Application, cause: Any) -> None:
    """Whatever is no event and no id of one is refused by ``send``."""
    with pytest.raises(MessageError, match=r'cause: .* or event\.id'), transaction.manager:
        application.delivery.send(message('Hello'), cause=cause)


def test_the_deepest_of_several_events() -> None:
    """Failures and follow-ups count apart: the sum would be no depth that any event has."""
    assert deepest([]) == 0
    assert deepest([10, 1]) == 11
    assert deepest([21, 2, 30]) == 32
    assert [bool(why_too_deep(depth)) for depth in (0, 1, 50, 51, 2, 60, 12)] == [
        *[False] * 4,
        *[True] * 3,
    ]
