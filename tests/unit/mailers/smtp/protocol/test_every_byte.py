"""A connection that is cut after each byte, that brings one byte at a time, or nothing in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import Timeouts
from tests.support.smtp.drains import POLICIES, check, mail, make_mailer, rules_of, traits
from tests.support.smtp.links import Cut, Link, Result
from tests.support.smtp.model_relay import Answer, ModelRelay, RelaySession

pytestmark = pytest.mark.slow

TIMEOUTS = Timeouts(connect=1, greeting=2, command=3, data=4, block=5, final=6, quit=7)

HOW = ('closed', 'reset', 'timed out')

SLACK = (0, 3, 9, 40)
"""Bytes that may have left, although the write of them has failed."""

SECRETS = {'username': 'ann', 'password': 'gehe1m', 'tls': 'starttls', 'timeouts': TIMEOUTS}

NO = Answer(b'550-5.1.1 who is\r\n550 5.1.1 that?\r\n')

MANY = Answer(b'452 4.5.3 too many\r\n')


def usual(session: RelaySession, verb: str, recipient: str) -> Answer | None:
    """The relay accepts everything."""
    return None


def mixed(session: RelaySession, verb: str, recipient: str) -> Answer | None:
    """The relay refuses both recipients of mail 0, one of mail 1, and has no room for a second one
    of mail 2: there are RSET, refusals and a second transaction."""
    if verb != 'RCPT':
        return None
    if session.number == 0 or (session.number == 1 and recipient.startswith('r1')):
        return NO
    if session.number == 2 and recipient.startswith('r2') and session.transactions < 4:
        return MANY
    return None


RELAYS: dict[str, Callable[[RelaySession, str, str], Answer | None]] = {
    'usual': usual,
    'mixed': mixed,
}


def run(policy: str, relay_kind: str = 'usual', *, auth: bool = False, **options: Any) -> Result:
    """Send three mails, to two recipients each, over one connection, and check the outcomes."""
    mails = [mail(number, 2) for number in range(3)]
    offered = traits(policy)
    if auth:
        offered = replace(offered, extensions=(*offered.extensions, 'STARTTLS', 'AUTH LOGIN'))
    relay = ModelRelay(
        offered, {number: each.raw for number, each in enumerate(mails)}, RELAYS[relay_kind]
    )
    client = make_mailer(policy, **(SECRETS if auth else {'timeouts': TIMEOUTS})).client()
    link = Link(client, relay.session(), rules_of(policy), mails, **options)
    result = link.run()
    check(relay, link, result, Counter())
    if auth and not options:
        assert link.handshakes == 1
    return result


@cache
def whole(policy: str, relay_kind: str, auth: bool = False) -> Result:
    """Return how it goes if nothing is cut."""
    result = run(policy, relay_kind, auth=auth)
    assert not result.lost
    assert result.error is None
    return result


def outcomes(result: Result) -> list[object]:
    return [outcome for _, outcome in result.pairs]


def without_rset(result: Result) -> bytes:
    return result.wrote.replace(b'RSET\r\n', b'')


@pytest.mark.parametrize('relay_kind', RELAYS)
@pytest.mark.parametrize('policy', POLICIES)
def test_one_byte_at_a_time(policy: str, relay_kind: str) -> None:
    """Outcomes and bytes are the same whatever the pieces are that bytes come and go in.

    With a window a mail may join those in flight earlier, and has RSET in front of it then.
    """
    expected = whole(policy, relay_kind)
    for size in (1, 2, 7):
        result = run(policy, relay_kind, size=size)
        assert outcomes(result) == outcomes(expected)
        if policy.startswith('window'):
            assert without_rset(result) == without_rset(expected)
        else:
            assert result.wrote == expected.wrote


def ambiguous(result: Result) -> list[int]:
    """Return the numbers of the mails that are in doubt."""
    return [
        int(envelope.id, 16)
        for envelope, outcome in result.pairs
        if outcome and any(verdict.status == 'ambiguous' for verdict in outcome.values())
    ]


def end_of_text(result: Result, number: int) -> int:
    """Return how many bytes must leave before a mail is in doubt: the first of its final dot's
    five, or by BDAT the last of its text."""
    start = result.wrote.index(b'X: %d\r\n' % number)
    if b'BDAT' in result.wrote:
        return start + len(mail(number, 1).raw)
    return result.wrote.index(b'\r\n.\r\n', start) + 1


@pytest.mark.parametrize(
    ('policy', 'relay_kind'),
    [
        *((policy, 'mixed') for policy in POLICIES),
        ('window 3', 'usual'),
    ],
)
def test_cut_after_each_byte(policy: str, relay_kind: str) -> None:
    """Whichever byte is the last, in whichever direction and however the connection ends: what is
    delivered, deferred, failed and untouched is true, and a mail is in doubt only if its text has
    left; what is over is as if nothing had been cut."""
    expected = whole(policy, relay_kind)
    length = len(expected.wrote)
    over = 0
    for after in range(length + 1):
        lost = Cut('up', after, HOW[after % 3])
        failed = Cut('up', after, 'write', SLACK[after % 4])
        for cut in (failed if after % 2 else lost, Cut('up', after, 'write and reset')):
            result = run(policy, relay_kind, cut=cut)
            for each, complete in zip(outcomes(result), outcomes(expected), strict=False):
                over += each == complete
            if cut.how.startswith('write') and not cut.slack:
                for number in ambiguous(result):
                    assert after >= end_of_text(result, number), 'in doubt, and it has not left'
    assert over
    # The relay reads all, and its replies are cut.
    after = 0
    while (result := run(policy, relay_kind, cut=Cut('down', after, HOW[after % 3]))).lost:
        after += 1
    assert after > 100
    assert outcomes(result) == outcomes(expected)


@pytest.mark.parametrize('how', HOW)
def test_cut_in_the_opening(how: str) -> None:
    """A connection that is cut before the first mail, STARTTLS and AUTH included, is an error that
    names the phase; no mail was handed out, so that all are untouched."""
    expected = whole('PIPELINING', 'usual', True)
    opening = expected.wrote.index(b'MAIL')
    phases: Counter[str] = Counter()
    for side in ('up', 'down'):
        for after in range(opening):
            result = run('PIPELINING', auth=True, cut=Cut(side, after, how))
            if result.error is None:
                assert side == 'down'
                continue
            assert isinstance(result.error, MailerUnavailable)
            assert not result.error.stale
            assert not result.pairs
            phases[str(result.error).split(': ')[1]] += 1
    assert set(phases) == {'the greeting', 'EHLO', 'STARTTLS', 'AUTH'}


def limit(awaited: str) -> float:
    """Return the time-out of a reply (RFC 5321, 4.5.3.2)."""
    named = {'greeting': 'greeting', 'DATA': 'data', '.': 'final', 'BDAT': 'final', 'QUIT': 'quit'}
    seconds: float = getattr(TIMEOUTS, named.get(awaited, 'command'))
    return seconds


@pytest.mark.parametrize('auth', [False, True])
@pytest.mark.parametrize('relay_kind', RELAYS)
@pytest.mark.parametrize('policy', POLICIES)
def test_timeouts(policy: str, relay_kind: str, auth: bool) -> None:
    """Each wait has the time-out of its phase, which the error names; after it the outcomes are
    true."""
    expected = whole(policy, relay_kind, auth)
    waits = expected.timeouts
    assert {awaited for awaited, _ in waits} >= {'greeting', 'MAIL', 'QUIT'}
    assert waits == [(awaited, limit(awaited)) for awaited, _ in waits]
    for number, (_, seconds) in enumerate(waits[:-1]):
        result = run(policy, relay_kind, auth=auth, times_out_at=number)
        reason = str(result.error) if result.error else result.end.reason
        assert f'timed out after {seconds} s' in reason
