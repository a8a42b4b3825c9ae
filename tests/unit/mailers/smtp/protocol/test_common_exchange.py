"""The common path does what the general code does: two clients side by side, one without it."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.mailers.smtp.protocol.client import SMTPClient
from pyramid_sendmail.mailers.smtp.protocol.text import LAST_BYTES
from tests.support.queues import make_envelope
from tests.support.smtp.drains import make_mailer

EHLO = {
    'PIPELINING': b'250-relay.example.org\r\n250-PIPELINING\r\n250 SIZE 40000\r\n',
    'lock-step': b'250-relay.example.org\r\n250 SIZE 40000\r\n',
    'window 2': b'250-relay.example.org\r\n250-PIPELINING\r\n250 CHUNKING\r\n',
    'LMTP': b'250-relay.example.org\r\n250-PIPELINING\r\n250 SIZE 40000\r\n',
}

USUAL = {'.': b'250 2.0.0 queued', 'MAIL': b'250 ok', 'RCPT': b'250 ok', 'DATA': b'354 go on'}

UNUSUAL = {
    '.': (
        *(
            b'250',
            b'250 queued as %d',
            b'250-first\r\n250 last',
            b'250 \xc3\xa9',
            b'299 ' + b'y' * 600,
        ),
        *(b'354 what', b'421 bye', b'452 full', b'500 what', b'554 no'),
    ),
    'MAIL': (
        *(b'250', b'251 ok', b'250-a\r\n250 b', b'354 what'),
        *(b'421 bye', b'450 no', b'452 4.5.3 full', b'503 order', b'530 login', b'550 no'),
    ),
    'RCPT': (
        *(b'251 ok', b'250-a\r\n250 b', b'354 what', b'550 x\r\n250 y'),
        *(b'421 bye', b'450 no', b'452 4.5.3 many', b'503 order', b'550 5.1.1 who'),
    ),
    'DATA': (
        *(b'354', b'355 go on', b'354-go\r\n354 on', b'250 ok', b'354 go on\r\n250 more'),
        *(b'354 go on\r\n554 not you', b'354 go on\r\n421 bye', b'421 bye', b'451 no'),
        *(b'503 order', b'554 no', b'nonsense'),
    ),
}


class Side:
    """A client and what it has done. ``common``: with the common path."""

    def __init__(self, policy: str, *, common: bool) -> None:
        self.client: SMTPClient = make_mailer(policy).client()
        self.memory = self.client._memory
        self.log: list[Any] = []
        self.refuse_dot = False
        self.client.receive_data(b'220 hello\r\n')
        self.client.data_to_send()
        self.client.receive_data(EHLO[policy])
        if not common:
            assert self.client._common is not None
            self.client._common._possible = False
        self.client.before_final_dot = self.before_final_dot

    @property
    def active(self) -> bool:
        assert self.client._common is not None
        return self.client._common.active

    def before_final_dot(self, envelope: Envelope, recipients: Any) -> None:
        self.log.append(('dot', envelope.id, tuple(recipients)))
        if self.refuse_dot:
            raise QueueError(28, 'no space')

    def facts(self) -> tuple[Any, ...]:
        """What a driver can see without changing anything."""
        client = self.client
        outcomes = [dict(outcome) for outcome in client.outcomes]
        client.outcomes.clear()
        end = client.end
        return (
            outcomes,
            end and (end.reason, end.stale, repr(end.error)),
            (client.wants_mail, client.idle, client.replies, client.timeout),
            dict(vars(self.memory)),
            self.log,
        )


class Pair:
    """Both clients; what is done is done to both, and compared."""

    def __init__(self, policy: str, random: Random, seen: Counter[str]) -> None:
        self.random = random
        self.seen = seen
        self.general, self.common = Side(policy, common=False), Side(policy, common=True)
        self.sides = (self.general, self.common)
        self.mails = 0

    def do(self, method: str, *args: Any, **options: Any) -> Any:
        was = self.state
        results = [getattr(side.client, method)(*args, **options) for side in self.sides]
        assert results[0] == results[1], method
        assert self.general.facts() == self.common.facts(), (method, args)
        assert not self.general.active
        if was != self.state:
            self.seen[f'{was} -> {self.state}'] += 1
        return results[0]

    @property
    def state(self) -> str:
        common = self.common.client._common
        assert common is not None
        if not common.active:
            return 'general'
        return 'waiting' if common.waiting else 'sending'

    def mail(self) -> Envelope:
        """The next mail, unusual now and then."""
        self.mails += 1
        kind = self.random.choice((0,) * 40 + tuple(range(1, 8)))
        recipients = ['a@example.org'] if kind != 1 else ['a@example.org', 'b@example.org']
        options: dict[str, Any] = {'body': '.dot\r\n'}
        if kind == 2:
            options['body'] = 'x\r\n' * LAST_BYTES
        elif kind == 3:
            options['body'] = 'x\r\n' * (LAST_BYTES // 3)
        elif kind == 4:
            options['body'] = 'caf\xe9\r\n'
        elif kind == 5:
            recipients = ['jos\xe9@example.org']
        elif kind == 6:
            recipients = [f'{"a" * 2_000}@example.org']
        elif kind == 7:
            options['sender'] = 'no address'
        return make_envelope(*recipients, **options)

    def replies(self) -> bytes:
        """The replies that are due, unusual now and then."""
        transfer = self.general.client._transfer
        assert transfer is not None
        lines = []
        for command in list(transfer.awaiting):
            reply = USUAL.get(command.verb, b'250 ok')
            if command.verb in UNUSUAL and self.random.random() < 0.06:
                reply = self.random.choice(UNUSUAL[command.verb])
            lines.append(reply.replace(b'%d', b'%d' % self.random.randrange(9)) + b'\r\n')
        if self.random.random() < 0.05:
            del lines[self.random.randrange(len(lines) + 1) :]
        return b''.join(lines)

    def step(self) -> bool:
        """One turn of a driver; return False at the end of the session."""
        random, client = self.random, self.general.client
        while client.wants_mail and self.mails < 30 and random.random() < 0.97:
            self.do('send', self.mail())
        if random.random() < 0.01:
            for side in self.sides:
                side.memory.pipelines_behind_dot = not side.memory.pipelines_behind_dot
        if random.random() < 0.01:
            for side in self.sides:
                side.memory._accepts = False
        if random.random() < 0.03:
            self.do(
                'receive_data', random.choice((b'2', b'250 you are welcome\r\n', b'421 bye\r\n'))
            )
        for side in self.sides:
            side.refuse_dot = False
        if random.random() < 0.02:
            for side in self.sides:
                side.refuse_dot = True
        if data := self.do('data_to_send'):
            if random.random() < 0.05:
                dot = len(data) - max(data.rfind(b'\r\n.\r\n'), 0)
                near = max(dot + random.randrange(-7, 3), 0)
                self.do('write_failed', 'Broken pipe', random.choice((0, near, len(data))))
            elif client.wants_mail or random.random() < 0.9:
                return client.end is None
        if client.end is not None or client.idle:
            return client.end is None and self.mails < 30
        chance = random.random()
        if chance < 0.01:
            self.do('timed_out')
        elif chance < 0.02:
            self.do('connection_lost', 'reset', hung_up=random.random() < 0.5)
        elif chance < 0.03:
            self.do('source_failed', QueueError(5, 'no'))
        elif chance < 0.04:
            self.do('close')
        else:
            self.receive(self.replies())
        return client.end is None

    def receive(self, data: bytes) -> None:
        if self.random.random() < 0.08:
            at = self.random.randrange(len(data) + 1)
            if at:
                self.do('receive_data', data[:at])
            data = data[at:]
        self.do('receive_data', data)

    def finish(self) -> None:
        """What a driver asks at the end."""
        assert self.general.client.at_rest == self.common.client.at_rest
        assert self.general.client.may_quit == self.common.client.may_quit
        self.do('close')


def run(seeds: range, policy: str = 'PIPELINING') -> Counter[str]:
    """Compare the sessions with these seeds; return how often the state changed."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        pair = Pair(policy, Random(seed), seen)
        turns = 0
        while pair.step() and turns < 300:
            turns += 1
        pair.finish()
    return seen


def test_the_same_as_the_general_code() -> None:
    """In every session with the same bytes: the same commands, marks, outcomes and time-outs."""
    seen = run(range(600))
    assert seen['sending -> waiting'] > 800
    assert seen['waiting -> sending'] > 600
    assert seen['waiting -> general'] > 60
    assert seen['sending -> general'] > 60


@pytest.mark.parametrize('policy', ['lock-step', 'window 2', 'LMTP'])
def test_another_policy(policy: str) -> None:
    """The common path is for DATA with commands behind the dot, and for nothing else."""
    assert run(range(20), policy) == Counter()


@pytest.mark.slow
def test_the_same_as_the_general_code_in_many_sessions() -> None:
    run(range(600, 2_500))
