"""Every reply at every step, for one mail and for three, by every policy."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from tests.support.smtp.drains import POLICIES, check, mail, make_mailer, rules_of, traits
from tests.support.smtp.links import Link, Result
from tests.support.smtp.model_relay import Answer, ModelRelay, RelaySession

REPLIES: dict[str, Answer] = {
    **{
        str(code): Answer(b'%d so\r\n' % code)
        for code in (
            *(220, 235, 250, 251, 299, 334, 354, 199),
            *(421, 432, 450, 451, 452, 454, 500, 501, 502, 503, 504, 530, 534, 535, 538),
            *(550, 551, 552, 554, 599),
        )
    },
    '250 twice': Answer(b'250-a\r\n250 b\r\n'),
    '452 4.5.3': Answer(b'452 4.5.3 too many\r\n'),
    '452 4.2.2': Answer(b'452 4.2.2 mailbox full\r\n'),
    '454 4.7.0': Answer(b'454-4.7.0 a\r\n454 4.7.0 b\r\n'),
    '550 twice': Answer(b'550-a\r\n550 b\r\n'),
    '550 and closed': Answer(b'550 no\r\n', 'close'),
    'no space': Answer(b'250OK\r\n', 'silent'),
    'malformed': Answer(b'HTTP/1.1 400 Bad Request\r\n', 'silent'),
    'two codes': Answer(b'250-yes\r\n550 no\r\n', 'silent'),
    'half a reply': Answer(b'250 yes', 'close'),
    'closed': Answer(b'', 'close'),
    'silent': Answer(b'', 'silent'),
}

ABOUT_SESSION = {'421', '530', '534', '535', '538', '454 4.7.0'}

ABOUT_COMMAND = {'500', '502', '503', '504'}

FULL = {'452', '452 4.5.3'}

CROWDED = {*FULL, '552'}

GONE = {
    *('199', 'no space', 'malformed', 'two codes', 'half a reply', 'closed', 'silent'),
}

YES = {'220', '235', '250', '251', '299', '250 twice'}

DONE, LATER, NEVER, IN_DOUBT = 'delivered', 'deferred', 'failed', 'ambiguous'

UNTOUCHED = ''

ANY = {DONE, LATER, UNTOUCHED}


@dataclass
class Script:
    """Gives one answer, the first time that a step is reached; ``others`` are given always."""

    step: tuple[int, str, str]
    answer: Answer
    others: Mapping[tuple[int, str, str], Answer] = field(default_factory=dict)
    reached: int = 0

    def __call__(self, session: RelaySession, verb: str, recipient: str) -> Answer | None:
        here = (session.number, verb, recipient.partition('@')[0])
        if here == self.step and not self.reached:
            self.reached += 1
            return self.answer
        return self.others.get(here)


def run(
    policy: str, script: Script, count: int, *, size: int = 1 << 30, **options: Any
) -> tuple[Link, Result, ModelRelay]:
    """Send so many mails, to two recipients each, over one connection."""
    mails = [mail(number, 2) for number in range(count)]
    relay = ModelRelay(
        traits(policy), {number: each.raw for number, each in enumerate(mails)}, script
    )
    link = Link(
        make_mailer(policy).client(), relay.session(), rules_of(policy), mails, size=size, **options
    )
    result = link.run()
    check(relay, link, result, Counter(), conforms=False)
    return link, result, relay


def became(result: Result, number: int) -> dict[str, str]:
    """Return the status of each recipient of a mail; UNTOUCHED for those without one."""
    for envelope, outcome in result.pairs:
        if int(envelope.id, 16) == number:
            return {
                to.partition('@')[0]: outcome[to].status if outcome else UNTOUCHED
                for to in envelope.recipients
            }
    return {'r1': UNTOUCHED, 'r2': UNTOUCHED}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def is_window(policy: str) -> bool:
    return policy.startswith('window')


def expected(policy: str, number: int, verb: str, recipient: str, name: str) -> dict[str, set[str]]:
    """Return what may become of the two recipients of the mail that has this reply at this step:
    the table of ``transfer``."""
    code = name[:3]
    plain = {LATER} if code[0] == '4' else {NEVER}
    # A command that left behind a dot, and was refused as such, is asked once more.
    behind = number > 0 and (policy == 'PIPELINING' or is_window(policy))
    if verb in ('.', 'BDAT'):
        if name in YES:
            here = {DONE}
        elif name in GONE or code[0] == '3':
            here = {IN_DOUBT}
        else:
            here = plain
        if recipient:
            # By LMTP the first recipient's reply may end the session for the second.
            lost = here == {IN_DOUBT} or name in ('421', '550 and closed')
            other = {IN_DOUBT} if lost and recipient == 'r1' else {DONE}
            return {recipient: here, ('r2' if recipient == 'r1' else 'r1'): other}
        return {'r1': here, 'r2': here}
    if (verb == 'DATA' and name in ('354', '334')) or (verb != 'DATA' and name in YES):
        return {'r1': {DONE}, 'r2': {DONE}}
    if name in GONE or code[0] in '123':
        if is_window(policy) and behind:
            # The text has left already, but that of a mail that leads.
            return {'r1': {IN_DOUBT, UNTOUCHED}, 'r2': {IN_DOUBT, UNTOUCHED}}
        # A fresh connection that was lost counts, from the reply to MAIL on.
        lost = {LATER} if number == 0 and verb != 'MAIL' else {UNTOUCHED}
        return {'r1': lost, 'r2': lost}
    if name in ABOUT_SESSION:
        if verb == 'RCPT' and is_window(policy) and behind and name != '421':
            return {'r1': {LATER, DONE, ''}, 'r2': {LATER, DONE, ''}}
        # In flight a mail counts if the relay takes the one behind it.
        here = {UNTOUCHED, LATER} if is_window(policy) and behind else {UNTOUCHED}
        return {'r1': here, 'r2': here}
    if verb == 'RCPT':
        other = 'r2' if recipient == 'r1' else 'r1'
        here = plain
        if name in ABOUT_COMMAND:
            here = ANY if behind else {LATER}
        elif name in CROWDED and recipient == 'r2':
            here = {DONE}
        others = {DONE}
        if name == '550 and closed':
            # On a fresh connection a refused recipient counts.
            both = {LATER} if number == 0 else {UNTOUCHED}
            return {
                recipient: {NEVER, UNTOUCHED},
                other: {*both, IN_DOUBT} if is_window(policy) else both,
            }
        if here == ANY:
            others = ANY
        return {recipient: here, other: others}
    both = plain
    if name in ABOUT_COMMAND:
        both = ANY if number > 0 else {LATER} if verb == 'DATA' else {UNTOUCHED}
    elif verb == 'MAIL' and name in FULL and number > 0:
        both = {UNTOUCHED, LATER} if is_window(policy) else {UNTOUCHED}
    return {'r1': both, 'r2': both}


def steps(policy: str) -> list[tuple[str, str]]:
    """Return the verbs, and the recipient for those that are about one."""
    lmtp = POLICIES[policy][2]
    ends = [('BDAT', 'r1')] if is_window(policy) else [('.', 'r1'), ('.', 'r2')][: 1 + lmtp]
    data = [] if is_window(policy) else [('DATA', '')]
    return [('MAIL', ''), ('RCPT', 'r1'), ('RCPT', 'r2'), *data, *ends]


@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('policy', POLICIES)
def test_replies_to_mail(policy: str, count: int) -> None:
    """A reply has the outcome that the table says; what came before is delivered, and what comes
    behind is delivered or untouched."""
    lmtp = POLICIES[policy][2]
    wrong = []
    for number in range(count):
        for verb, recipient in steps(policy):
            for name, answer in REPLIES.items():
                where = f'{policy}, mail {number}, {verb} {recipient}: {name}'
                script = Script((number, verb, recipient), answer)
                _, result, _ = run(policy, script, count)
                assert script.reached, where
                about = recipient if verb == 'RCPT' or lmtp else ''
                allowed = expected(policy, number, verb, about, name)
                seen = became(result, number)
                if any(status not in allowed[to] for to, status in seen.items()):
                    wrong.append(f'{where}: {seen}, not {allowed}')
                for before in range(number):
                    assert set(became(result, before).values()) == {DONE}, where
                for behind in range(number + 1, count):
                    others = set(became(result, behind).values())
                    end = result.end.reason if result.end else ''
                    lost = is_window(policy) and end.startswith('the connection was lost')
                    if others not in ({DONE}, {UNTOUCHED}, *([{IN_DOUBT}] if lost else [])):
                        wrong.append(f'{where}: mail {behind} behind it is {others}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('policy', POLICIES)
def test_replies_to_rset(policy: str) -> None:
    """A refused RSET ends the session, and the mail behind it is untouched, or in doubt if its text
    has left."""
    no = Answer(b'550 no\r\n')
    others = {(0, 'RCPT', 'r1'): no, (0, 'RCPT', 'r2'): no}
    for name, answer in REPLIES.items():
        script = Script((0, 'RSET', ''), answer, others)
        _, result, _ = run(policy, script, 2)
        assert script.reached
        assert became(result, 0) == {'r1': NEVER, 'r2': NEVER}
        [status] = set(became(result, 1).values())
        in_doubt = {IN_DOUBT} if is_window(policy) else set()
        assert status in ({DONE} if name in YES else {UNTOUCHED, *in_doubt}), name


@pytest.mark.parametrize('policy', POLICIES)
def test_replies_to_quit(policy: str) -> None:
    """Whatever the reply to QUIT, all mail is delivered."""
    for answer in REPLIES.values():
        script = Script((2, 'QUIT', ''), answer)
        link, result, _ = run(policy, script, 3)
        assert script.reached
        assert link.client.quitting
        assert all(became(result, number) == {'r1': DONE, 'r2': DONE} for number in range(3))


@pytest.mark.parametrize('policy', POLICIES)
def test_replies_to_the_opening(policy: str) -> None:
    """A reply before the first mail is a yes, or the error names the phase and the reply."""
    hello = 'LHLO' if POLICIES[policy][2] else 'EHLO'
    for verb in ('greeting', hello):
        for name, answer in REPLIES.items():
            script = Script((-1, verb, ''), answer)
            _, result, relay = run(policy, script, 1)
            assert script.reached
            yes = name == '220' if verb == 'greeting' else name in YES
            # HELO is for relays that do not know EHLO.
            yes = yes or (verb == 'EHLO' and name in ('500', '501', '502', '504'))
            if yes:
                assert became(result, 0) == {'r1': DONE, 'r2': DONE}, name
                continue
            assert isinstance(result.error, MailerUnavailable), name
            phase = 'the greeting' if verb == 'greeting' else hello
            assert f': {phase}: ' in str(result.error)
            if name not in GONE:
                said = answer.reply.decode().split('\r\n')[0].replace('-', ' ', 1)
                assert f'the relay answered {said}' in str(result.error)
            assert not result.pairs
            assert not relay.had


@pytest.mark.parametrize('policy', ['PIPELINING', 'window 3'])
def test_relay_that_refuses_commands_behind_a_dot(policy: str) -> None:
    """A relay like Haraka refuses MAIL behind a final dot: the mail is sent again, and no later
    connection tries it (issue 13, A3)."""
    mails = [mail(number, 2) for number in range(6)]
    mailer = make_mailer(policy)
    relay = ModelRelay(
        traits(policy, refuses_behind_dot=True),
        {number: each.raw for number, each in enumerate(mails)},
        lambda session, verb, recipient: None,
    )
    said = ''
    left = mails
    while left:
        had = relay.had.copy()
        link = Link(mailer.client(), relay.session(), rules_of(policy), left)
        result = link.run()
        check(relay, link, result, had)
        said += '\n'.join(link.log)
        settled = sum(outcome is not None for _, outcome in result.pairs)
        left = left[settled:]
    assert set(relay.had.values()) == {1}
    assert len(relay.had) == 12
    assert said.count('503 5.5.1 sender already specified') == (1 if policy == 'PIPELINING' else 2)
