"""Where an operation is stopped or made to fail: a queue, a relay, subscribers, and a ledger of
what the relay and the subscribers received.

What must be true afterwards stands in ``verify``: it is the crash table of
docs/explanation/guarantees.rst, read for each recipient from the letters that were found on disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zope.interface import implementer

from pyramid_sendmail.envelope import Envelope, Outcome, PendingEvent, Reply, Tally, Verdict
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.interfaces import IMailer, IMailEventDispatcher, IMailSession
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import NEVER, parse, record_of, ticket_of
from pyramid_sendmail.queue.maildir.format import STATE_AT, Unreadable, decode
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.queues import Clock, make_envelope

__all__ = ['FOLDERS', 'Found', 'Ledger', 'Lines', 'Place', 'mail', 'restore', 'snapshot']

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed')
POLICY = RetryPolicy(delays=(60.0,), jitter=0.0)
GOOD = Verdict('delivered', Reply(250, '2.0.0 queued'))
LATER = Verdict('deferred', Reply(451, '4.3.0 try again later'))
BAD = Verdict('failed', Reply(550, '5.1.1 no such user'))

_open, _write = os.open, os.write


def mail(digit: str, *words: str, **options: Any) -> Envelope:
    """Return a mail to ``good``, ``later`` or ``bad`` recipients, always with the same id."""
    recipients = [f'{word}{n}@example.org' for n, word in enumerate(words)]
    return make_envelope(*recipients, id=digit * 32, **options)


class Ledger:
    """Lines that survive the process that wrote them; ``step``: how a line is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.step: Callable[[Callable[[], Any]], Any] = lambda function: function()
        self._descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def mark(self, *words: str) -> None:
        line = f'{" ".join(words)}\n'.encode()
        self.step(lambda: _write(self._descriptor, line))

    def lines(self, first: str) -> list[list[str]]:
        """The words after ``first``, of each line that begins with it."""
        rows = [line.split(' ') for line in self.path.read_text().splitlines()]
        return [words[1:] for words in rows if words[0] == first]

    def clear(self) -> None:
        os.truncate(self.path, 0)

    def copies(self) -> Counter[tuple[str, str]]:
        """How many copies of each mail the relay has accepted for each recipient."""
        return Counter((id, to) for id, *recipients in self.lines('accepted') for to in recipients)

    def dispatched(self) -> set[str]:
        return {id for (id,) in self.lines('event')}


class Lines(logging.Handler):
    """What was logged, as text, each line with its level."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f'{record.levelname} {record.getMessage()}')

    def about(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]


@implementer(IMailer)
class Relay:
    """Accepts mail for ``good`` recipients and refuses ``bad`` ones. It defers ``later`` ones and
    refuses ``mended`` ones once."""

    name = 'smtp://relay.example.org:25'

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def connect(self) -> Conversation:
        self.ledger.mark('connected')
        return Conversation(self.ledger)


@implementer(IMailSession)
class Conversation:
    """A session of Relay."""

    name = Relay.name

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Callable[..., None] | None = None
    ) -> Iterator[Outcome]:
        for envelope in envelopes:
            outcome = {to: self._verdict(envelope, to) for to in envelope.recipients}
            accepted = [to for to, verdict in outcome.items() if verdict is GOOD]
            if accepted:
                if before_final_dot is not None:
                    before_final_dot(envelope, accepted)
                self._ledger.mark('accepted', envelope.id, *accepted)
            yield outcome

    def _verdict(self, envelope: Envelope, to: str) -> Verdict:
        if to.startswith('bad'):
            return BAD
        once = {'later': LATER, 'mended': BAD}.get(to.partition('@')[0].rstrip('0123456789'))
        if once is not None and [envelope.id, to] not in self._ledger.lines('deferred'):
            self._ledger.mark('deferred', envelope.id, to)
            return once
        return GOOD

    def close(self) -> None:
        """Nothing is held."""

    abandon = close


@implementer(IMailEventDispatcher)
class Subscribers:
    """Writes events to the ledger at once; ``refuse``: its subscribers fail."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.refuse = False

    def wants(self, kind: str) -> bool:
        return kind in self._place.kinds

    def flush(self, timeout: float) -> bool:
        return True

    def dispatch(self, claim: Any, events: Sequence[PendingEvent]) -> None:
        ledger = self._place.ledger
        lasting = [event for event in events if event.kind != 'deferred']
        try:
            if self.refuse and lasting:
                claim.retry_events(lasting, self._place.clock() + 1)
                return
            for event in lasting:
                if event.recipients:
                    ledger.mark('event', event.id)
                    for to in event.recipients:
                        ledger.mark(event.kind, claim.envelope.id, to)
            if lasting:
                claim.acknowledge(lasting)
        except QueueError:
            # As EventDispatcher does: what could not be written is found again.
            logging.getLogger('pyramid_sendmail.events.dispatcher').exception('not settled')
            claim.release()
        else:
            if lasting:
                claim.release()


@dataclass(frozen=True, slots=True)
class Found:
    """A mail as it lay on disk. ``record``: the letter of its transaction's record, in tmp/ only.
    ``letters``: by recipient; None where the file cannot be read."""

    folder: str
    state: str
    record: str
    letters: dict[str, str] | None
    moved_by_hand: bool = False
    held: bool = False


@dataclass
class Place:
    """A folder with a queue. ``kinds``: the events with subscribers. ``committed``: mail that was
    committed before; ``mails``: all that can ever be in the queue."""

    folder: Path
    sync: bool = True
    in_doubt: str = 'hold'
    ambiguous: str = 'resend'
    kinds: tuple[str, ...] = ()
    clock: Clock = field(default_factory=Clock)
    mails: tuple[Envelope, ...] = ()
    committed: set[str] = field(default_factory=set)
    _queues: list[MaildirQueue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.folder / 'queue'
        self.ledger = Ledger(self.folder / 'ledger')
        self.dispatcher: Any = Subscribers(self)

    def queue(self) -> MaildirQueue:
        queue = MaildirQueue(
            str(self.path),
            sync=self.sync,
            in_doubt=self.in_doubt,
            hold_ambiguous=self.ambiguous == 'hold',
            longest=POLICY.longest,
            clock=self.clock,
        )
        self._queues.append(queue)
        return queue

    def forget(self) -> None:
        """Close every descriptor and release every lock, as the end of a process does."""
        while self._queues:
            queue = self._queues.pop()
            queue._files.close_inherited()
            queue.close()

    def recorder(self) -> OutcomeRecorder:
        return OutcomeRecorder(POLICY, self.dispatcher, ambiguous=self.ambiguous, clock=self.clock)

    def connection(self) -> RelayConnection:
        return RelayConnection(Relay(self.ledger), monotonic=lambda: 0.0)

    def found(self) -> dict[str, Found]:
        """Each mail on disk by its id. Two files of one mail are an error."""
        seen: dict[str, Found] = {}
        for folder in FOLDERS:
            for path in sorted((self.path / folder).glob('*')):
                data = path.read_bytes()
                id = path.name.partition('.')[0].partition(':')[0].rpartition('-')[2]
                try:
                    block = decode(data)
                    letters = dict(zip(block.envelope.recipients, block.letters, strict=True))
                    id = block.envelope.id
                except Unreadable:
                    letters = None
                state = _letter(path)
                record = ''
                if folder == 'tmp':
                    named = path.with_name(record_of(path.name) or path.name)
                    record = _letter(named) if named.exists() else '?'
                assert id not in seen, f'two files of {id}: {seen[id].folder} and {folder}'
                schedule = parse(path.name)
                by_hand = folder == 'new' and schedule is not None and schedule.attempt > 0
                held = folder == 'failed' and schedule is not None and schedule.due >= NEVER
                seen[id] = Found(folder, state, record, letters, by_hand, held)
        return seen

    def drain(self) -> None:
        """Act as the next process: bring all mail to its end, however long it takes."""
        self.dispatcher.refuse = False
        queue, recorder, connection = self.queue(), self.recorder(), self.connection()
        queue.prepare()
        for _ in range(20):
            tickets, next_due = queue.scan(self.clock.now, all_events=True)
            if not tickets and next_due is None:
                break
            if not tickets:
                assert next_due is not None
                self.clock.now = max(next_due, self.clock.now)
            attempt(self.claims(queue, tickets), connection, recorder, Tally())
        else:
            raise AssertionError(f'the queue does not become empty: {self.found()}')
        self.forget()

    def claims(self, queue: MaildirQueue, tickets: list[Any]) -> Iterator[Any]:
        for ticket in tickets:
            try:
                claim = queue.claim(ticket)
            except DamagedMail as error:
                self.ledger.mark('damaged', error.name)
            else:
                if claim is not None:
                    yield claim

    def verify(self, log: Lines, *, torn: bool = False, reasons: bool = True) -> str:
        """Recover from what is found, send what is to be sent, and see that it is what the table
        says; return a word for what was found. ``torn``: half of a write was made; ``reasons``:
        whether a reason could be written down."""
        before, copies = self.found(), self.ledger.copies()
        committed = self.committed.union(*self.ledger.lines('committed'))
        log.lines.clear()
        self.drain()
        after = self.found()
        for envelope in self.mails:
            found = before.get(envelope.id)
            for to in envelope.recipients:
                end = self.ledger.copies()[envelope.id, to] - copies[envelope.id, to]
                case = _Case(self, envelope, to, copies[envelope.id, to], end, found, log, reasons)
                if found is None:
                    case.gone(committed=envelope.id in committed)
                elif found.letters is None and found.folder != 'tmp':
                    assert torn, f'{found}: damaged'
                    case.kept(after)
                elif found.folder == 'tmp' and not case.recovered:
                    case.in_tmp(after, committed=envelope.id in committed)
                else:
                    case.by_letter(after)
        self._tidy(after, log)
        return _word(before)

    def kept(self, claim: Any) -> None:
        """A claim whose outcome could not be recorded is exclusive still."""
        queue = self.queue()
        folder, name = claim._folder, claim._name
        if (self.path / folder / name).exists():
            assert queue.claim(ticket_of(folder, name)) is None

    def _tidy(self, after: dict[str, Found], log: Lines) -> None:
        assert {found.folder for found in after.values()} <= {'failed'}, after
        beside = {path.name for path in self.path.iterdir()} - {
            *FOLDERS,
            'trigger',
            'reasons',
            'processor',
        }
        assert beside == set(), f'left beside the folders: {beside}'
        assert log.about('Traceback') == []


@dataclass(frozen=True, slots=True)
class _Case:
    """One recipient of one mail: copies ``before`` and in the ``end``, and where it was found."""

    place: Place
    envelope: Envelope
    to: str
    before: int
    end: int
    found: Found | None
    log: Lines
    reasons: bool

    @property
    def letter(self) -> str:
        assert self.found is not None
        return (self.found.letters or {}).get(self.to, 'T')

    @property
    def recovered(self) -> bool:
        """Whether a recovery before this one had marked it already."""
        return self.letter in 'fF'

    def gone(self, *, committed: bool) -> None:
        """No file is left: nothing more happens, and nothing is missing."""
        assert self.end == 0, self
        if [self.envelope.id] in self.place.ledger.lines('dropped'):
            return
        if committed:
            assert self.before == 1, f'lost: {self}'
            self._dispatched('sent')
        else:
            assert self.before == 0, self

    def kept(self, after: dict[str, Found]) -> None:
        """Its file was torn: it is not sent, and lies in failed/ for a person to decide."""
        assert self.end == 0, self
        assert after[self.envelope.id].folder == 'failed', self

    def in_tmp(self, after: dict[str, Found], *, committed: bool) -> None:
        """The letter of the record decides about all mail of the transaction."""
        assert self.found is not None
        assert self.before == 0, self
        letter = self.found.record
        # Without its record, which was removed, the outcome of the commit is unknown.
        doubtful = letter in 'V?'
        if letter == 'W':
            assert not committed, f'lost: {self}'
            assert self.envelope.id not in after, self
            assert self.end == 0, self
        elif doubtful and self.place.in_doubt == 'hold':
            assert self.end == 0, self
            assert after[self.envelope.id].folder == 'failed', self
            self._dispatched('error')
            assert self.log.about('CRITICAL', 'in doubt', self.envelope.id), self
        else:
            assert letter == 'C' or doubtful, self
            assert doubtful or committed, f'sent without a commit: {self}'
            self._delivered(after)

    def by_letter(self, after: dict[str, Found]) -> None:
        """The letter of the recipient decides."""
        assert self.found is not None
        if self.found.folder == 'failed':
            self._dead(after)
        elif self.letter in 'fF' and not (self.found.moved_by_hand and self.letter == 'F'):
            assert self.end == 0, self
            assert after[self.envelope.id].folder == 'failed', self
            self._dispatched('error')
        elif self.letter in 'dD':
            assert (self.before, self.end) == (1, 0), self
            self._dispatched('sent')
        elif self.letter == '?':
            self._ambiguous(after)
        elif self.letter == 'F':
            self._delivered(after)  # a person wants it tried again
        else:
            assert self.letter == 'T', self
            assert self.before == 0, f'sent, and not written down: {self}'
            self._delivered(after)

    def _dead(self, after: dict[str, Found]) -> None:
        """The event of a dead letter was dispatched; a file that was set aside has a reason."""
        assert self.found is not None
        assert self.end == 0, self
        assert after[self.envelope.id] == self.found, self
        if self.letter in 'DF':
            self._dispatched('sent' if self.letter == 'D' else 'error')
        elif self.found.held:
            assert self.before == 0, self
        elif self.reasons:
            assert any(
                self.envelope.id in path.name for path in (self.place.path / 'reasons').iterdir()
            ), self

    def _ambiguous(self, after: dict[str, Found]) -> None:
        """The final dot may have left: the one place where a mail may arrive twice."""
        assert self.log.about('ambiguous', self.envelope.message_id), self
        if self.place.ambiguous == 'hold':
            assert self.end == 0, self
            assert after[self.envelope.id].folder == 'failed', self
            self._dispatched('error')
        else:
            self._delivered(after)

    def _delivered(self, after: dict[str, Found]) -> None:
        if self.to.startswith('bad'):
            assert self.end == 0, self
            assert after[self.envelope.id].folder == 'failed', self
            self._dispatched('error')
        else:
            assert self.end == 1, self
            self._dispatched('sent')

    def _dispatched(self, kind: str) -> None:
        if kind in self.place.kinds:
            assert [self.envelope.id, self.to] in self.place.ledger.lines(kind), self


def _letter(path: Path) -> str:
    """The letter of a mail; one that died before it had a letter was being written."""
    with path.open('rb') as file:
        file.seek(STATE_AT)
        return file.read(1).decode('latin-1') or 'W'


def _word(before: dict[str, Found]) -> str:
    """What was found, so that a test can tell that every row of the table was there."""
    if not before:
        return 'nothing'
    words = {
        found.record
        if found.folder == 'tmp'
        else ''.join(sorted({found.state, *(found.letters or {'': '!'}).values()}))
        for found in before.values()
    }
    return ' '.join(sorted(words))


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file below the queue, by its path."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob('*')
        if stat.S_ISREG(file.stat().st_mode)
    }


def restore(path: Path, files: dict[str, bytes]) -> None:
    """Make the queue hold these files and nothing else."""
    shutil.rmtree(path, ignore_errors=True)
    for folder in FOLDERS:
        (path / folder).mkdir(0o700, parents=True)
    for name, data in files.items():
        (path / name).parent.mkdir(0o700, exist_ok=True)
        descriptor = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, 'wb') as file:
            file.write(data)
