"""Relays that have had enough: of one session's mail, of refused recipients."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import pytest

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.peers.mail import make_mail, statuses
from tests.peers.mailers import mailer
from tests.peers.relay import Relay
from tests.peers.relays import REFUSING
from tests.support.processors import RecordingDispatcher
from tests.support.queues import NOW, Clock

pytestmark = pytest.mark.parametrize('relay', REFUSING, indirect=True)


def test_more_mail_than_a_session_may_carry(relay: Relay, sender: str) -> None:
    """What one session is not allowed to carry leaves on the next, at once: every mail once, and
    none is deferred."""
    relay.offer('limit of mails')
    recipients = [f'user-{number}@example.org' for number in range(relay.mails_a_session + 20)]
    clock = Clock()
    queue = MemoryQueue(clock=clock)
    queue.put([make_mail(sender, recipient) for recipient in recipients]).publish()
    tickets, _ = queue.scan(NOW)
    claims = (queue.claim(ticket) for ticket in tickets)
    connection, tally = RelayConnection(mailer(relay), batch=10_000), Tally()
    try:
        attempt(
            claims,
            connection,
            OutcomeRecorder(RetryPolicy(), RecordingDispatcher(), clock=clock),
            tally,
        )
    finally:
        connection.close()
    assert tally == Tally(delivered=len(recipients))
    held = Counter(mail.recipients for mail in relay.mails(sender))
    assert held == Counter(frozenset({recipient}) for recipient in recipients)


@pytest.mark.parametrize('strangers', [5, 30])
def test_many_refused_recipients(relay: Relay, sender: str, strangers: int) -> None:
    """A mail most of whose recipients are refused reaches the others, in a few attempts at most:
    the relay stays available; otherwise it would be unavailable for ever."""
    refused = [f'{number}@elsewhere.example' for number in range(strangers)]
    todo = ['ann@example.org', *refused, 'bob@example.org']
    found: dict[str, str] = {}
    for _ in range(3):
        if todo:
            with closing(mailer(relay).connect()) as session:
                (outcome,) = session.send([make_mail(sender, *todo)])
            found |= statuses(outcome)
            todo = [recipient for recipient in todo if found[recipient] == 'deferred']
    assert found == {
        'ann@example.org': 'delivered',
        'bob@example.org': 'delivered',
        **dict.fromkeys(refused, 'failed'),
    }
    held = [recipient for mail in relay.mails(sender) for recipient in mail.recipients]
    assert sorted(held) == ['ann@example.org', 'bob@example.org']
