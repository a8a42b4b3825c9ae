"""What must be true after a soak: four accounts of the same mail are compared.

====================== ==========================================================================
``ledger``             every mail that a producer has given to ``send``, and its recipients
``orders-*``           the databases of the producers: which transactions have committed
the relays             which (Message-ID, recipient) arrived, and how often
``events``, the log    the events of the subscribers, and what was called ambiguous
====================== ==========================================================================
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pyramid_sendmail.queue.maildir.format import EnvelopeBlock, decode
from tests.support.smtp.server import ScriptedSMTPServer

__all__ = ['audit']

Pair = tuple[str, str]

_AMBIGUOUS = re.compile(r'^\w+ (<[^>]+>): ambiguous for (.+?) \(attempt ', re.MULTILINE)
_DOUBT = re.compile(r'in doubt: (<[^>]+>)')


def audit(root: Path, relays: Sequence[ScriptedSMTPServer]) -> dict[str, int]:
    """Compare the accounts; return figures. Raises AssertionError."""
    sent = set(_ledger(root / 'ledger'))
    committed = {row[0] for path in root.glob('orders-*[0-9]') for row in _rows(path, 'orders')}
    expected = {pair for pair in sent if pair[0] in committed}
    arrived: Counter[Pair] = Counter()
    for relay in relays:
        arrived += relay.pairs()
    log = '\n'.join(path.read_text() for path in root.glob('log-*'))
    ambiguous = Counter(
        (message_id, to)
        for message_id, names in _AMBIGUOUS.findall(log)
        for to in names.split(', ')
    )
    blocks = _dead_letters(root / 'mail' / 'failed')
    failed = {pair for block in blocks for pair in _pairs(block, 'F')}
    doubted = {block.envelope.message_id for block in blocks if _in_doubt(block)}
    dispatched = _dispatched(_rows(root / 'events', 'events'))

    _none('never sent or aborted, and yet at the relay', set(arrived) - expected)
    _none('committed, and neither at the relay nor in failed/', expected - set(arrived) - failed)
    _none(
        'in failed/, not committed and not in doubt',
        {p for p in failed - expected if p[0] not in doubted},
    )
    repeated = {pair for pair, count in arrived.items() if count - 1 > ambiguous[pair]}
    _none('repeated, and never called ambiguous', repeated)
    _none(
        'refused and delivered, and never called ambiguous',
        (failed & set(arrived)) - set(ambiguous),
    )
    _none('in doubt and sent', {pair for pair in arrived if pair[0] in doubted})
    _none('in doubt without a line in the log', doubted - set(_DOUBT.findall(log)))
    finals: dict[Pair, set[tuple[str, str]]] = defaultdict(set)
    for (id, kind), pairs in dispatched.items():
        assert len(set(pairs)) == 1, (
            f'the event {id} was dispatched with different recipients: {pairs}'
        )
        for pair in pairs[0]:
            finals[pair].add((kind, id))
    _none('at an end, and no subscriber knows', (expected | failed) - set(finals))
    _none('with events of two ends', {pair for pair, events in finals.items() if len(events) > 1})
    wrong = {
        pair
        for pair, events in finals.items()
        if ({kind for kind, _ in events} == {'error'}) != (pair in failed)
    }
    _none('with an event of another end than the queue has', wrong)
    _none('violations of SMTP', [text for relay in relays for text in relay.violations])
    failures = [line for line in log.splitlines() if line.startswith('Traceback')]
    raised = log.count('LookupError: a subscriber fails now and then')
    assert len(failures) <= raised, f'{len(failures)} tracebacks, {raised} of them wanted'
    return {
        'mails given to send': len({message_id for message_id, _ in sent}),
        'mails committed': len(committed),
        'pairs committed': len(expected),
        'pairs at the relay': len(arrived),
        'pairs that arrived again, each called ambiguous': sum(n > 1 for n in arrived.values()),
        'pairs called ambiguous': len(ambiguous),
        'pairs in failed/': len(failed),
        'of them given up by age': log.count(': given up: '),
        'mails in doubt': len(doubted),
        'of them committed': len(doubted & committed),
        'events': len(dispatched),
        'events dispatched again': sum(len(pairs) > 1 for pairs in dispatched.values()),
        'subscribers that raised': raised,
    }


def _none(what: str, found: Iterable[Any]) -> None:
    found = sorted(found)
    assert not found, f'{what}: {len(found)}, such as {found[:5]}'


def _ledger(path: Path) -> Iterable[Pair]:
    for line in path.read_text().splitlines():
        message_id, *recipients = line.split()
        yield from ((message_id, to) for to in recipients)


def _rows(path: Path, table: str) -> list[tuple[Any, ...]]:
    """Nothing where a producer was killed before it had made its table."""
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        made = connection.execute('SELECT 1 FROM sqlite_master WHERE name = ?', [table])
        if made.fetchone() is None:
            return []
        return connection.execute(f'SELECT * FROM {table}').fetchall()


def _dispatched(rows: Iterable[tuple[str, ...]]) -> dict[tuple[str, str], list[frozenset[Pair]]]:
    """The pairs of each event, once for each time that it was dispatched."""
    found: dict[tuple[str, str], list[frozenset[Pair]]] = defaultdict(list)
    for id, kind, message_id, recipients, _reason in rows:
        found[id, kind].append(frozenset((message_id, to) for to in recipients.split()))
    return found


def _dead_letters(folder: Path) -> list[EnvelopeBlock]:
    return [decode(path.read_bytes()) for path in folder.iterdir()]


def _pairs(block: EnvelopeBlock, letter: str) -> Iterable[Pair]:
    envelope = block.envelope
    for to, own in zip(envelope.recipients, block.letters, strict=True):
        if own == letter:
            yield envelope.message_id, to


def _in_doubt(block: EnvelopeBlock) -> bool:
    return any((entry.reason or '').startswith('in doubt') for entry in block.entries)
