"""All mail to a model of a relay, over as many connections as it takes, checked on the way.

``drain(case)`` sends to a relay with limits, unusual replies and losses until each recipient has a
verdict, as ``pyramid_sendmail.sending`` does. ``random_case`` makes cases, and so may hypothesis.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import SessionOptions

from .links import Link, Loss, Result
from .model_relay import Answer, ModelRelay, RelaySession, Traits
from .wire_rules import WireRules

__all__ = [
    'ANSWERS',
    'HOW_LOST',
    'POLICIES',
    'TRAITS_OF_LIMITS',
    'TRAITS_OF_SESSIONS',
    'Case',
    'Counts',
    'check',
    'drain',
    'mail',
    'make_mailer',
    'random_case',
    'rules_of',
    'traits',
]

POLICIES: dict[str, tuple[tuple[str, ...], int, bool]] = {
    'lock-step': (('8BITMIME',), 1, False),
    'PIPELINING': (('PIPELINING', '8BITMIME'), 1, False),
    'window 2': (('PIPELINING', '8BITMIME', 'CHUNKING'), 2, False),
    'window 3': (('PIPELINING', '8BITMIME', 'CHUNKING'), 3, False),
    'window 5': (('PIPELINING', '8BITMIME', 'CHUNKING'), 5, False),
    'LMTP': (('PIPELINING', '8BITMIME'), 1, True),
    'LMTP in lock-step': (('8BITMIME',), 1, True),
}
"""The keywords that the relay offers, the window, and whether it speaks LMTP."""

HOW_LOST = (
    'reset',
    'closed',
    'timed out',
    'write',
    'dies',
    'interrupted',
    'given up',
    'source',
)

MAX_CONNECTIONS = 400

REPLIES: dict[str, tuple[bytes, ...]] = {
    'greeting': (b'421 4.3.2 no', b'554 5.3.2 no', b'220-a\r\n220 b'),
    'EHLO': (b'421 4.3.2 no', b'451 4.3.0 no'),
    'LHLO': (b'421 4.3.2 no', b'451 4.3.0 no'),
    'MAIL': (
        b'250-a\r\n250 b',
        b'451 4.3.0 no',
        b'450-4.2.0 a\r\n450 4.2.0 b',
        b'550 5.7.1 no',
        b'552 5.3.4 too large',
        b'452 4.3.1 disk full',
        b'452 no',
        b'452 4.5.3 too many mails',
        b'421 4.7.0 enough',
        b'503 5.5.1 sender already specified',
        b'504 5.5.2 no',
        b'530 5.7.0 authenticate',
        b'454 4.7.0 authentication failed for now',
    ),
    'RCPT': (
        b'251 2.1.5 forwarded',
        b'450 4.2.1 later',
        b'451-4.7.1 grey\r\n451 4.7.1 list',
        b'550 5.1.1 who?',
        b'550-5.1.1 who\r\n550 5.1.1 is it?',
        b'452 4.2.2 mailbox full',
        b'452 4.5.3 too many',
        b'452 no',
        b'552 5.5.3 too many',
        b'552 no',
        b'421 4.7.0 enough',
        b'503 5.5.1 MAIL first',
        b'530 5.7.0 authenticate',
        b'454 4.7.0 authentication failed for now',
    ),
    'DATA': (
        b'354-a\r\n354 b',
        b'451 4.3.0 no',
        b'554 5.7.1 no',
        b'421 4.3.2 no',
        b'452 4.3.1 disk full',
        b'552 5.3.4 no',
        b'530 5.7.0 authenticate',
        b'454 4.7.0 authentication failed for now',
        b'503 5.5.1 RCPT first',
    ),
    '.': (
        b'250-2.0.0 a\r\n250 2.0.0 b',
        b'451 4.3.0 no',
        b'554-5.7.1 no\r\n554 5.7.1 spam',
        b'421 4.3.2 no',
        b'452 4.3.1 disk full',
        b'552 5.3.4 no',
        b'503 5.5.1 no',
        b'530 5.7.0 no',
    ),
    'RSET': (b'250-a\r\n250 b', b'421 4.3.2 no'),
    'QUIT': (b'221-a\r\n221 b', b'421 4.3.2 no'),
}
REPLIES['BDAT'] = REPLIES['.']


@dataclass(slots=True)
class Counts:
    """What has happened, over all drains."""

    drains: int = 0
    connections: int = 0
    mails: int = 0
    untouched: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)


def mail(number: int, recipients: int, *, size: int = 0) -> Envelope:
    """Return the mail of a number, to r1@NUMBER.example.org and others, with ``size`` bytes more
    than it takes."""
    filler = (b'.' + b'x' * 70 + b'\r\n') * (size // 73)
    return Envelope(
        id=f'{number:032x}',
        message_id=f'<{number}@example.org>',
        sender=f'from@{number}.example.org',
        recipients=tuple(f'r{place}@{number}.example.org' for place in range(1, recipients + 1)),
        raw=b'X: %d\r\n\r\n.\r\n..\r\n' % number + filler,
        queued_at=0.0,
    )


def make_mailer(policy: str, *, max_recipients: int = 100, **options: Any) -> SMTPMailer:
    """Return a mailer whose clients follow a policy, and share what they learn."""
    _, window, lmtp = POLICIES[policy]
    kind = LMTPMailer if lmtp else SMTPMailer
    return kind(
        '127.0.0.1',
        24 if lmtp else 25,
        hostname='web.example.org',
        options=SessionOptions(window=window, max_recipients=max_recipients),
        **options,
    )


def rules_of(policy: str) -> Callable[[Callable[[int, list[str]], object]], WireRules]:
    """Return what makes the rules for the wire."""
    keywords, window, lmtp = POLICIES[policy]

    def make(on_text_end: Callable[[int, list[str]], object]) -> WireRules:
        return WireRules(
            pipelining='PIPELINING' in keywords, lmtp=lmtp, window=window, on_text_end=on_text_end
        )

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A relay, mail for it, and what goes wrong.

    ``mails``: recipients and bytes of each. ``answers``: which unusual answer is given at the n-th
    question to the relay. ``losses``: of the first connections, in their order. ``raises``: at
    which connection ``before_final_dot`` raises, and for which mail. ``forgets``: each connection
    begins without what those before have learned. ``seed``: how the bytes are cut; None: not.
    """

    policy: str
    mails: tuple[tuple[int, int], ...] = ((1, 0),)
    traits: Traits = field(default_factory=Traits)
    max_recipients: int = 100
    answers: Mapping[int, int] = field(default_factory=dict)
    losses: tuple[Loss | None, ...] = ()
    raises: Mapping[int, int] = field(default_factory=dict)
    forgets: bool = False
    seed: int | None = None


GONE = (
    Answer(b'', 'close', takes=True),
    Answer(b'', 'close'),
    Answer(b'', 'silent', takes=True),
    Answer(b'25', 'close'),
    Answer(b'250', 'silent', takes=True),
    Answer(b'250-2.0.0 a\r\n', 'close', takes=True),
    Answer(b'550-5.1.1 a\r\n', 'silent'),
)
"""No reply, or half of one."""

ANSWERS = 20
"""How many unusual answers there are: by 13 and more the relay vanishes."""

TRAITS_OF_LIMITS = (
    Answer(b'452 4.5.3 too many\r\n'),
    Answer(b'452 no\r\n'),
    Answer(b'552 too many\r\n'),
    Answer(b'452-4.5.3 a\r\n452 4.5.3 b\r\n'),
)

TRAITS_OF_SESSIONS = (
    Answer(b'452 4.5.3 too many mails\r\n'),
    Answer(b'452 no\r\n'),
    Answer(b'421 4.7.0 enough\r\n'),
)


class _Script:
    """Gives the answers of a case."""

    def __init__(self, answers: Mapping[int, int]) -> None:
        self._answers = answers
        self._questions = 0

    def __call__(self, session: RelaySession, verb: str, recipient: str) -> Answer | None:
        which = self._answers.get(self._questions) if verb in REPLIES else None
        self._questions += 1
        if which is None:
            return None
        if which >= ANSWERS - len(GONE):
            answer = GONE[which - ANSWERS + len(GONE)]
            return answer._replace(takes=answer.takes and verb in ('.', 'BDAT'))
        replies = REPLIES[verb]
        return Answer(replies[which % len(replies)] + b'\r\n')


def random_case(rng: Random, policy: str) -> Case:
    """Return a case in which more or less goes wrong."""
    often = rng.choice((0.0, 0.02, 0.1, 0.3))
    lossy = rng.choice((0.0, 0.3, 0.8))
    mails = [
        (rng.choice((1, 1, 1, 2, 3, 4, 7)), rng.choice((0,) * 16 + (5_000, 20_000, 70_000)))
        for _ in range(rng.randint(1, 8))
    ]
    if rng.random() < 0.02:
        mails.append((90, 0))
    return Case(
        policy=policy,
        mails=tuple(mails),
        traits=traits(
            policy,
            max_transactions=rng.choice((0, 0, 0, 1, 2, 3, 5)),
            full=rng.choice(TRAITS_OF_SESSIONS),
            max_recipients=rng.choice((0, 0, 0, 1, 2, 3)),
            crowded=rng.choice(TRAITS_OF_LIMITS),
            refuses_behind_dot=rng.random() < 0.3,
            empty_text=rng.random() < 0.3,
        ),
        max_recipients=rng.choice((2, 3, 100, 100)),
        answers={number: rng.randrange(ANSWERS) for number in range(150) if rng.random() < often},
        losses=tuple(
            Loss(rng.choice((1, 5, 12, 20, 30, 40, 50, 70, 100)), rng.choice(HOW_LOST))
            if rng.random() < lossy
            else None
            for _ in range(10)
        ),
        raises={rng.randrange(5): rng.randrange(8)} if rng.random() < 0.1 else {},
        forgets=rng.random() < 0.2,
        seed=rng.randrange(1 << 30) if rng.random() < 0.8 else None,
    )


def traits(policy: str, **limits: Any) -> Traits:
    """Return the traits of a relay for a policy."""
    keywords, _, lmtp = POLICIES[policy]
    return Traits(lmtp=lmtp, extensions=keywords, **limits)


def drain(case: Case, counts: Counts) -> None:
    """Send all mail of a case until all of it has its verdicts; check each connection."""
    policy = case.policy
    mails = [mail(number, to, size=size) for number, (to, size) in enumerate(case.mails)]
    relay = ModelRelay(
        case.traits, {number: each.raw for number, each in enumerate(mails)}, _Script(case.answers)
    )
    rng = None if case.seed is None else Random(case.seed)
    mailer = make_mailer(policy, max_recipients=case.max_recipients)
    waiting: deque[Envelope] = deque(mails)
    connections = 0
    while waiting:
        assert connections < MAX_CONNECTIONS, 'mail that never gets a verdict'
        loss = case.losses[connections] if connections < len(case.losses) else None
        if loss is not None:
            rng = rng or Random(loss.step)
            counts.losses[loss.how] += 1
        if case.forgets:
            mailer = make_mailer(policy, max_recipients=case.max_recipients)
        raises = frozenset({case.raises[connections]} if connections in case.raises else ())
        connections += 1
        had = relay.had.copy()
        link = Link(
            mailer.client(),
            relay.session(),
            rules_of(policy),
            waiting,
            rng=rng,
            loss=loss,
            raises=raises,
        )
        result = link.run()
        check(relay, link, result, had)
        left = list(waiting)[len(result.pairs) :]
        again, later = [], []
        for envelope, outcome in result.pairs:
            if outcome is None:
                counts.untouched += 1
                again.append(envelope)
                continue
            counts.verdicts.update(verdict.status for verdict in outcome.values())
            retry = [to for to, verdict in outcome.items() if verdict.status == 'deferred']
            if retry:
                later.append(replace(envelope, recipients=tuple(retry)))
        waiting = deque([*again, *left, *later])
    for (number, recipient), times in relay.had.items():
        assert times == 1, f'{recipient} has mail {number} {times} times'
    counts.drains += 1
    counts.connections += connections
    counts.mails += len(mails)


def check(
    relay: ModelRelay,
    link: Link,
    result: Result,
    had: Counter[tuple[int, str]],
    *,
    conforms: bool = True,
) -> None:
    """Check what a connection came to against what the relay has taken.

    ``had``: what it had before. ``conforms``: the relay says nothing that makes no sense.
    """
    try:
        _check(relay, link, result, had, conforms)
    except AssertionError as error:
        verdicts = [
            f'{mail.sender}: {outcome and {to: str(v.status) for to, v in outcome.items()}}'
            for mail, outcome in result.pairs
        ]
        took = relay.had - had
        error.add_note('\n'.join([*link.log, *verdicts, f'the relay took {took}', str(result.end)]))
        raise


def _check(
    relay: ModelRelay,
    link: Link,
    result: Result,
    had: Counter[tuple[int, str]],
    conforms: bool,
) -> None:
    assert not relay.faults, relay.faults
    assert not link.faults, link.faults
    for envelope, outcome in result.pairs:
        number = int(envelope.id, 16)
        marked = result.marked.get(number, [])
        for recipient in envelope.recipients:
            times = relay.had[number, recipient] - had[number, recipient]
            if outcome is None:
                assert not times, f'untouched, and {recipient} has it'
                continue
            status = outcome[recipient].status
            if status == 'delivered':
                assert times == 1, f'delivered, and {recipient} has it {times} times'
            elif status == 'ambiguous':
                assert times <= 1, f'ambiguous, and {recipient} has it {times} times'
                assert recipient in marked, f'ambiguous, and no text to {recipient} has left'
                assert result.lost or result.given_up or not conforms, 'ambiguous without a loss'
            else:
                assert not times, f'{status}, and {recipient} has it'
    end = result.end
    if end is not None and end.stale and end.error is None and not result.given_up:
        # A stale connection has answered for a mail, or mail would go round without an end.
        assert any(outcome is not None for _, outcome in result.pairs), 'stale at once'
    if not result.given_up and end is None and result.error is None:
        assert all(outcome is not None for _, outcome in result.pairs)
