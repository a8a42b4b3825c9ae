"""Tickets: values that a set can hold, and taking two kinds of them in turn."""

from __future__ import annotations

from pyramid_sendmail.queue.ticket import LATEST_EVENT, Ticket, alternate, at_once
from pyramid_sendmail.retry import EVENT_RETRY
from tests.support.queues import NOW

A, B, C = (Ticket('new', name, name) for name in 'abc')


def test_alternate() -> None:
    """Tickets come from both in turn; the rest of the longer one follows."""
    assert list(alternate([A], [B, C])) == [A, B, C]
    assert list(alternate([A, B], [C])) == [A, C, B]
    assert list(alternate([], [])) == []


def test_a_ticket_is_a_value() -> None:
    """Equal tickets are one element of a set; another state or order makes another ticket."""
    again = Ticket('new', 'a', 'a')
    assert {A, again} == {A}
    assert len({A, A._replace(state='deferred'), A._replace(order='b')}) == 3


def test_what_is_due_at_once_is_due_for_every_clock() -> None:
    """It has the time of ``send``, and 0 if a clock was set back since."""
    assert at_once(NOW, NOW) == NOW
    assert at_once(NOW, NOW + 1) == NOW
    assert at_once(NOW, NOW - 1) == 0.0


def test_no_event_waits_for_longer_than_the_latest() -> None:
    """A time that an event may have is never taken for that of a wrong clock."""
    assert EVENT_RETRY.longest < LATEST_EVENT
