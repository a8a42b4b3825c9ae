"""Everything at once, for half a minute; with SOAK=1, 10,000 mails, and then 5,000 mails with
eight processors. TEST_SEED repeats a run."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from tests.crash.audit import audit
from tests.crash.counts import Tell
from tests.crash.soak_relay import STALLS, WORKERS
from tests.support.queues import NOW, claimed, failed, make_envelope, until

ROOT = Path(__file__).resolve().parents[2]
SOAK = bool(os.environ.get('SOAK'))

FLOOR = 200
"""Mails that the slowest machine manages."""


SIZES = {
    'four': ['--mails', '10000'] if SOAK else ['--mails', '2000', '--seconds', '12'],
    'eight': ['--mails', '5000', '--processors', '8'],
}


@pytest.mark.slow
@pytest.mark.finding(96, 133)
@pytest.mark.timeout(2400 if SOAK else 300)
@pytest.mark.parametrize('size', SIZES if SOAK else ['four'])
def test_soak(tell: Tell, size: str) -> None:
    """Processors and producers are killed and stopped, their clock is stepped, relays fail, stall
    and are slow: each committed mail arrives or lies in failed/, only mail that was called
    ambiguous arrives twice, subscribers receive the end of each, no other file stays behind, and a
    connection that stalls holds up no other."""
    seed = os.environ.get('TEST_SEED', str(random.SystemRandom().randrange(10**6)))
    program = [sys.executable, '-W', 'ignore', '-m', 'tests.crash.soak', '--seed', seed]
    done = subprocess.Popen(
        [*program, *SIZES[size]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = done.communicate()
        until(lambda: not _lives(done.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(done.pid, 9)
    tell(f'soak: {output}')
    assert done.returncode == 0, output
    figures = {name: int(count) for count, name in re.findall(r'^ *(\d+) (.+)$', output, re.M)}
    assert figures['mails given to send'] >= FLOOR
    happened = ('kills', 'stops', 'steps', 'producers killed', 'slow replies')
    assert min(figures[name] for name in happened) > 0
    assert min(figures[f'stalls: {phase}'] for phase in STALLS) > 0
    # A loop that stands still while a connection stalls has no more than this in flight.
    in_flight = len(STALLS) * (WORKERS - 1)
    assert sum(figures[f'beside: {phase}'] for phase in STALLS) > in_flight


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Relay:
    arrived: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def pairs(self) -> Counter[tuple[str, str]]:
        return self.arrived


class Run:
    """The accounts of a soak of one mail that arrived and one that failed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.relay = Relay()
        queue = MaildirQueue(str(root / 'mail'), sync=False)
        good, bad = make_envelope('ann@example.org'), make_envelope('nobody@example.org')
        queue.put([bad]).publish()
        claim = claimed(queue, NOW)
        claim.settle([failed(bad)], report=False)
        queue.close()
        self.good, self.bad = good.message_id, bad.message_id
        self.relay.arrived[self.good, 'ann@example.org'] = 1
        self.write('ledger', f'{self.good} ann@example.org\n{self.bad} nobody@example.org\n')
        self.write('log-1', '')
        self.sql('orders-1', 'CREATE TABLE orders (message_id TEXT)')
        self.sql('orders-1', 'INSERT INTO orders VALUES (?), (?)', self.good, self.bad)
        self.sql('events', 'CREATE TABLE events (id, kind, message_id, recipients, reason)')
        self.tell('1', 'sent', self.good, 'ann@example.org')
        self.tell('2', 'error', self.bad, 'nobody@example.org')

    def write(self, name: str, text: str) -> None:
        with (self.root / name).open('a') as file:
            file.write(text)

    def sql(self, name: str, statement: str, *values: str) -> None:
        with closing(sqlite3.connect(self.root / name)) as connection, connection:
            connection.execute(statement, values)

    def tell(self, *values: str) -> None:
        self.sql('events', 'INSERT INTO events VALUES (?, ?, ?, ?, ?)', *values, '')

    def audit(self) -> dict[str, int]:
        relays: Any = [self.relay]
        return audit(self.root, relays)


def again(run: Run) -> None:
    run.relay.arrived[run.good, 'ann@example.org'] += 1


LIES: dict[str, Callable[[Run], object]] = {
    'never sent or aborted': lambda run: run.sql('orders-1', 'DELETE FROM orders'),
    'committed, and neither': lambda run: run.relay.arrived.clear(),
    'not committed and not in doubt': lambda run: run.sql(
        'orders-1', 'DELETE FROM orders WHERE message_id = ?', run.bad
    ),
    'repeated, and never called ambiguous': again,
    'refused and delivered': lambda run: run.relay.arrived.update(
        [(run.bad, 'nobody@example.org')]
    ),
    'no subscriber knows': lambda run: run.sql('events', "DELETE FROM events WHERE kind = 'sent'"),
    'with events of two ends': lambda run: run.tell('3', 'sent', run.good, 'ann@example.org'),
    'dispatched with different recipients': lambda run: run.tell(
        '1', 'sent', run.good, 'bob@example.org'
    ),
    'another end': lambda run: run.sql('events', "UPDATE events SET kind = 'error'"),
    'violations of SMTP': lambda run: run.relay.violations.append('DATA before MAIL'),
    'tracebacks': lambda run: run.write('log-1', 'Traceback (most recent call last):\n'),
}


def test_the_audit_finds_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    """A mail that arrived and one that failed; and one that arrived twice and was called so."""
    run = Run(tmp_path)
    figures = run.audit()
    assert (figures['pairs at the relay'], figures['pairs in failed/']) == (1, 1)
    again(run)
    run.write('log-1', f'WARNING {run.good}: ambiguous for ann@example.org (attempt 1, x): lost\n')
    assert run.audit()['pairs that arrived again, each called ambiguous'] == 1


@pytest.mark.parametrize('found', LIES)
def test_the_audit_finds(found: str, tmp_path: Path) -> None:
    """Each way in which a promise may be broken is found, and named."""
    run = Run(tmp_path)
    LIES[found](run)
    with pytest.raises(AssertionError, match=found):
        run.audit()
