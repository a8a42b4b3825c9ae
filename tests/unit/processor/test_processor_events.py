"""The queue processor and events that subscribers have not handled yet."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.exceptions import MailerUnavailable
from tests.support.processors import (
    DEFERRED,
    ProcessorSetup,
    RecordingDispatcher,
    is_empty,
    put_pending_event,
)
from tests.support.queues import until


def test_finished_mail_needs_no_relay(setup: ProcessorSetup) -> None:
    """The event of a finished mail is dispatched while the relay is unavailable."""
    put_pending_event(setup)
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.dispatched() == [('sent', ('eve@example.org',))])
    assert setup.mailer.accepted('eve@example.org') == 1


def test_events_of_deferred_mail_need_no_relay(setup: ProcessorSetup) -> None:
    """The event of a finished recipient is dispatched while the others wait for the relay."""
    setup.mailer.script('bob@example.org', DEFERRED)
    setup.dispatcher = RecordingDispatcher('sent', takes=False)
    setup.put('ann@example.org', 'bob@example.org')
    setup.processor().run_once()
    [claim] = setup.dispatcher.claims[:1]
    claim.release()
    setup.dispatcher = RecordingDispatcher('sent')
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.dispatched() == [('sent', ('ann@example.org',))])
    assert len(setup.mailer.sent) == 1


def test_an_events_thread_that_cannot_start(
    setup: ProcessorSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the event dispatcher raises, the loop continues and mail is sent."""
    monkeypatch.setattr('pyramid_sendmail.processor.processor.ERROR_PAUSE', 0.02)
    put_pending_event(setup)

    def dispatch(claim: Any, events: Any) -> None:
        claim.release()
        raise RuntimeError("can't start new thread")

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.dispatcher.kinds = ()
    with setup.running(poll=0.02):
        setup.put()
        setup.mailer.wait_for(2)
    assert len(setup.mailer.sent) == 2


def test_an_event_to_retry_is_dispatched_in_time(setup: ProcessorSetup) -> None:
    """A subscriber that failed gets its event again when the policy says so, not at the next
    poll."""
    setup.dispatcher.kinds = ('sent',)
    taken = setup.dispatcher.dispatch
    refuse = [True, True]

    def dispatch(claim: Any, events: Any) -> None:
        if refuse:
            refuse.pop()
            claim.retry_events(events, time.time() + 0.05)
        else:
            taken(claim, events)

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.pending_events)
        until(lambda: is_empty(setup))
    assert len(setup.mailer.sent) == 1


@pytest.mark.parametrize('once', [True, False])
def test_an_event_to_retry_is_dispatched_at_each_start(setup: ProcessorSetup, once: bool) -> None:
    """An event that subscribers failed to handle is dispatched again when a processor starts."""
    setup.dispatcher = RecordingDispatcher('sent', takes=False)
    setup.put('eve@example.org')
    setup.processor().run_once()
    [claim] = setup.dispatcher.claims[:1]
    claim.retry_events(claim.pending_events, setup.clock() + 300.0)
    setup.dispatcher = RecordingDispatcher('sent')
    if once:
        setup.processor().run_once()
    else:
        with setup.running():
            until(lambda: setup.dispatcher.pending_events)
    assert setup.dispatcher.dispatched() == [('sent', ('eve@example.org',))]
    assert is_empty(setup)
    assert setup.mailer.accepted('eve@example.org') == 1


def test_run_once_sends_mail_of_subscribers(setup: ProcessorSetup) -> None:
    """Mail that the subscriber of the last event sends leaves in the same run."""

    class Answering(RecordingDispatcher):
        def flush(self, timeout: float) -> bool:
            if len(self.pending_events) == 1:
                setup.put('second@example.org')
            return True

    setup.dispatcher = Answering('sent')
    setup.put('first@example.org')
    assert setup.processor().run_once() == Tally(delivered=2)
    assert setup.mailer.accepted('second@example.org') == 1


def test_many_events_wait(on_disk: ProcessorSetup) -> None:
    """``run_once`` dispatches the events of all finished mail, page by page."""
    on_disk.dispatcher = RecordingDispatcher('sent', takes=False)
    on_disk.put_many(12)
    on_disk.processor().run_once()
    for claim in on_disk.dispatcher.claims:
        claim.release()
    on_disk.dispatcher = RecordingDispatcher('sent')
    on_disk.processor(event_page=5).run_once()
    assert len(on_disk.dispatcher.pending_events) == 12


def test_a_rejected_event_is_retried_soon(setup: ProcessorSetup) -> None:
    """An event that the full backlog rejected does not wait for the next poll."""
    released: list[Any] = []

    def dispatch(claim: Any, events: Any) -> None:
        if not released:
            released.append(events)
            claim.release()
        else:
            RecordingDispatcher.dispatch(setup.dispatcher, claim, events)

    setup.dispatcher.kinds = ('sent',)
    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    with setup.running():
        setup.put()
        until(lambda: is_empty(setup), 20.0)
    assert len(released) == 1


def test_run_once_dispatches_events_first_and_last(setup: ProcessorSetup) -> None:
    """Before the first mail is sent, and again for what the run itself has left."""
    put_pending_event(setup)
    order: list[str] = []
    setup.mailer.before = lambda envelope: order.append('sending')
    taken = setup.dispatcher.dispatch
    refuse = [True]

    def dispatch(claim: Any, events: Any) -> None:
        order.append(events[0].recipients[0])
        if events[0].recipients[0] == 'ann@example.org' and refuse:
            refuse.pop()
            claim.release()
        else:
            taken(claim, events)

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.put('ann@example.org')
    setup.processor().run_once()
    assert order == ['eve@example.org', 'sending', 'ann@example.org', 'ann@example.org']


def test_run_once_dispatches_events_without_a_relay(setup: ProcessorSetup) -> None:
    """``run_once`` dispatches events although the relay is unavailable."""
    put_pending_event(setup)
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with pytest.raises(MailerUnavailable):
        setup.processor().run_once()
    assert setup.dispatcher.dispatched() == [('sent', ('eve@example.org',))]
