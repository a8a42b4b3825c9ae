"""Tickets: values that a set can hold, and taking two kinds of them in turn."""

from __future__ import annotations

from pyramid_sendmail.queue.ticket import Ticket, alternate

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
