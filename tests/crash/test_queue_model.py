"""Nothing that was published is lost, and one holder at a time sends it: random histories of a
queue, its claimers, their deaths, its clock and people's hands, beside a model of its files.

``SOAK=1`` in the environment runs longer histories, and other ones each time.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.directory import Directory
from pyramid_sendmail.queue.maildir.filename import FOLDER_OF, ticket_of
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.format import decode
from pyramid_sendmail.queue.maildir.recognition import FOLDERS
from pyramid_sendmail.queue.ticket import LATEST_EVENT, Ticket
from tests.crash.counts import Tell
from tests.support.folders import folder as tmp_path
from tests.support.queues import NOW, Clock, forked, make_envelope, reap

__all__ = ['tmp_path']

SOAK = bool(os.environ.get('SOAK'))
EXAMPLES = 1500 if SOAK else 6
"""Histories for each seed."""

SEEDS = 10
PHASES = [Phase.generate, Phase.shrink]

HOUR, DAY = 3600, 86400
YEAR = 365 * DAY
LONGEST = 3 * DAY
"""The longest delay of the retry policy: a retry later than that is a clock's fault."""

RULES: Counter[str] = Counter()
SEEN: Counter[str] = Counter()

OURS = re.compile(r'([159])-([0-9]{15})-([0-9]{4})-([0-9a-f]{32})(:2,[A-Za-z]*)?')

Path_ = tuple[str, str]
"""(folder, name)"""


def name_of(envelope: Envelope, due: float, attempt: int) -> str:
    """All times in these tests are whole seconds."""
    letter = {'high': '1', 'normal': '5', 'low': '9'}[envelope.priority]
    return f'{letter}-{int(due) * 1000:015d}-{attempt:04d}-{envelope.id}'


# The model


def _at_once(envelope: Envelope, now: float) -> float:
    """What is due now has the time of ``send``, or 0 if that is still to come."""
    return envelope.queued_at if envelope.queued_at <= now else 0.0


@dataclass(slots=True)
class Content:
    """What changes in a file."""

    letters: dict[str, str]
    state: str
    since: float
    retry_at: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)
    """Of which attempt the reply is that a recipient has in the file."""
    ids: dict[str, str] = field(default_factory=dict)
    """The event that carries a recipient's reply."""

    def forget(self) -> None:
        for to, letter in self.letters.items():
            if letter not in 'dfF':
                self.attempts.pop(to, None)

    def pending(self) -> dict[str, str]:
        return {to: self.ids[to] for to, letter in self.letters.items() if letter in 'df'}

    def place(self, envelope: Envelope, claimed_at: float) -> tuple[str, float]:
        """The folder and the time for these letters; see docs/explanation/queue-format.rst."""
        at_once = _at_once(envelope, claimed_at)
        letters = set(self.letters.values())
        pending = not letters.isdisjoint('df')
        if not letters.isdisjoint('T?'):
            return 'cur', at_once if pending else self.retry_at
        if pending:
            return 'done', at_once
        return ('failed', self.since) if 'F' in letters else ('', 0.0)


@dataclass(eq=False, slots=True)
class File:
    """A file, wherever it lies; ``envelope`` is None for what is no mail, or damaged."""

    envelope: Envelope | None
    content: Content
    lock: object = None
    delivered: set[str] = field(default_factory=set)


def path_of(ticket: Ticket) -> tuple[str, str]:
    """Where a ticket's file lies: folder and name."""
    return FOLDER_OF[ticket.state], ticket.order


@dataclass(eq=False, slots=True)
class Hold:
    """A claim as the model sees it: ``block`` is what the claimer has read, ``path`` where it
    believes the file to be."""

    file: File
    block: Content
    path: Path_
    attempt: int
    todo: tuple[str, ...] = ()
    interrupted: str = ''
    before: str = ''
    settled: bool = False
    claimed_at: float = 0.0
    real: Any = None

    @property
    def envelope(self) -> Envelope:
        assert self.file.envelope is not None
        return self.file.envelope

    def place(self) -> tuple[str, float]:
        return self.block.place(self.envelope, self.claimed_at)


@dataclass(eq=False, slots=True)
class Put:
    """A put whose second phase is to come, or was."""

    envelopes: list[Envelope]
    files: list[File]
    outcome: str = ''
    real: Any = None

    def names(self) -> list[str]:
        own = [name_of(envelope, envelope.due, 0) for envelope in self.envelopes]
        return [own[0], *(f'{name}.{own[0]}' for name in own[1:])]

    def moves(self) -> list[tuple[str, str]]:
        """(name in tmp/, name in new/), the record last."""
        names = self.names()
        return [(name, name.partition('.')[0]) for name in [*names[1:], names[0]]]


class Model:
    """A directory of files, and the transitions that are legal."""

    def __init__(self, *, maildir: bool, publish_doubtful: bool) -> None:
        self.maildir = maildir
        self.publish_doubtful = publish_doubtful
        self.paths: dict[Path_, File] = {}
        self.published: dict[str, Envelope] = {}
        self.delivered: dict[str, set[str]] = {}
        self.by_hand: set[str] = set()

    def move(self, source: Path_, target: Path_) -> bool:
        if source not in self.paths:
            return False
        self.paths[target] = self.paths.pop(source)
        return True

    # Put

    def put(self, envelopes: list[Envelope], state: str) -> Put:
        files = []
        for n, each in enumerate(envelopes):
            content = Content(
                dict.fromkeys(each.recipients, 'T'), 'C' if n else state, each.queued_at
            )
            files.append(File(each, content))
        put = Put(envelopes, files)
        files[0].lock = put
        if self.maildir:
            self.paths.update(
                {('tmp', name): f for name, f in zip(put.names(), files, strict=True)}
            )
        return put

    def end(self, put: Put, outcome: str, moved: float = inf) -> None:
        """Publish, discard or doubt; ``moved``: after how many moves the process stops."""
        if put.outcome:
            return
        put.outcome = outcome
        record = put.files[0]
        record.lock = None
        for envelope, file in zip(put.envelopes, put.files, strict=True):
            if outcome != 'discard':
                self.published[envelope.id] = envelope
            if not self.maildir and outcome == 'keep_in_doubt':
                self._doubt(file)
                self.paths['done', name_of(envelope, 0, 0)] = file
            elif not self.maildir and outcome == 'publish':
                self.paths['new', name_of(envelope, envelope.due, 0)] = file
        if outcome == 'discard':
            for name in put.names():
                self.paths.pop(('tmp', name), None)
        elif outcome == 'publish':
            record.content.state = 'C'
            for n, (name, own) in enumerate(put.moves()):
                if n < moved:
                    self.move(('tmp', name), ('new', own))

    def _doubt(self, file: File) -> None:
        assert file.envelope is not None
        content = file.content
        content.state, content.retry_at = 'C', 0.0
        for to in content.letters:
            content.letters[to] = 'f'
            content.attempts[to] = 0
            content.ids[to] = f'{file.envelope.id}-0-error-0'

    def recover(self) -> None:
        groups: dict[str, list[str]] = {}
        for folder, name in self.paths:
            if folder == 'tmp' and OURS.fullmatch(name.partition('.')[0]):
                groups.setdefault(name.partition('.')[2] or name, []).append(name)
        for record, names in groups.items():
            first = self.paths.get(('tmp', record))
            if first is not None and first.lock is not None:
                continue
            state = first.content.state if first is not None else '?'
            SEEN[f'recovered {state}'] += 1
            for name in names:
                file = self.paths[('tmp', name)]
                assert file.envelope is not None
                if state == 'W':
                    del self.paths['tmp', name]
                elif state == 'C' or self.publish_doubtful:
                    self.move(('tmp', name), ('new', name.partition('.')[0]))
                else:
                    self._doubt(file)
                    own = name_of(file.envelope, 0, 1)
                    self.move(('tmp', name), ('done', own))

    # Scan and claim

    def scan(
        self, now: float, limit: int, fresh: bool, all_events: bool
    ) -> tuple[list[Path_], float | None]:
        if self.maildir and not fresh:
            self.recover()
        later: list[float] = []
        due: dict[str, list[Path_]] = {'done': [], 'new': [], 'cur': []}
        for folder, name in self.paths:
            if folder not in (('new',) if fresh else ('done', 'new', 'cur')) or name[0] == '.':
                continue
            match = OURS.fullmatch(name)
            at = int(match[2]) / 1000 if match else -inf
            wrong = self.maildir and match and int(match[3]) > 0 and at > now + LONGEST + 1
            if folder == 'done':
                wrong = at > now + LATEST_EVENT
            envelope = self.paths[folder, name].envelope
            if folder == 'new' and match and not int(match[3]) and envelope is not None:
                wrong = not envelope.not_before
            if at <= now or wrong or (all_events and folder == 'done'):
                due[folder].append((folder, name))
            else:
                later.append(at)
        for paths in due.values():
            paths.sort()
        in_turn = [
            path
            for pair in zip_longest(due['new'][:limit], due['cur'][:limit])
            for path in pair
            if path is not None
        ]
        return [*due['done'][:limit], *in_turn][:limit], min(later, default=None)

    def claim(self, path: Path_, now: float, *, settled: bool) -> Hold | str | None:
        """A Hold, None, or why what lies there is no mail."""
        folder, name = path
        file = self.paths.get(path)
        if file is None or file.lock is not None:
            return None
        envelope = file.envelope
        if envelope is None:
            target, number = name, 0
            while ('failed', target) in self.paths:
                number += 1
                target = f'{name}.{number}'
            self.move(path, ('failed', target))
            return target
        block = deepcopy(file.content)
        match = OURS.fullmatch(name)
        known = max(block.attempts.values(), default=0)
        tried = int(match[3]) if match else known
        due = int(match[2]) / 1000 if match else (block.retry_at if known else envelope.due)
        attempt = max(tried, known)
        if not self.maildir:
            tried = attempt = int(match[3]) if match else 0
        elif folder == 'new' and tried:
            if settled:
                return None
            SEEN['started over'] += 1
            for to, letter in block.letters.items():
                block.letters[to] = 'T' if letter in 'fF?' else letter
            block.forget()
            block.state, block.since, block.retry_at = 'C', now, 0.0
            file.content = deepcopy(block)
            tried = attempt = 0
        if self.maildir:
            block.since = min(block.since, now)
            if block.retry_at > now + LONGEST + 1:
                SEEN['clock was wrong'] += 1
                block.retry_at = now
        hold = Hold(file, block, path, attempt, claimed_at=now)
        if folder in ('new', 'cur') and block.retry_at <= now:
            hold.todo = tuple(to for to, letter in block.letters.items() if letter in 'T?')
        if '?' in block.letters.values():
            hold.interrupted = 'ambiguous'
        elif block.state == 'S':
            hold.interrupted = 'sending'
        if settled and hold.todo:
            return None
        if not self.maildir:
            if folder == 'new' and due > now and envelope.not_before:
                return None
            file.content.since = block.since = min(block.since, now)
            file.lock = hold
            return hold
        first = {'high': '1', 'normal': '5', 'low': '9'}[envelope.priority]
        own = f'{match[1] if match else first}-{int(due) * 1000:015d}-{tried:04d}-{envelope.id}'
        self.move(path, (folder, own))
        hold.path = folder, own
        if not attempt and due > now and envelope.not_before > now:
            return None
        file.lock = hold
        if hold.todo:
            hold.before, block.state = block.state, 'S'
            file.content.state = 'S'
        return hold

    # What a claimer does

    def mark_ambiguous(self, hold: Hold, recipients: list[str]) -> None:
        if self.maildir:
            hold.block.letters.update(dict.fromkeys(recipients, '?'))
            hold.file.content.letters = dict(hold.block.letters)

    def settle(
        self,
        hold: Hold,
        events: list[PendingEvent],
        retry_at: float | None,
        *,
        report: bool,
        stuck: bool,
    ) -> None:
        block = hold.block
        if not hold.settled:
            hold.settled, hold.before = True, ''
            hold.attempt += 1
            for event in events:
                block.letters.update(dict.fromkeys(event.recipients, 'T'))
            block.forget()
            for event in events:
                letter = {'sent': 'd', 'error': 'f', 'deferred': 'T'}[event.kind]
                for to in event.recipients:
                    block.letters[to] = letter
                    # Without a subscriber the file does not keep the reply of a delivery.
                    if report or event.kind != 'sent':
                        block.attempts[to] = event.attempt
                        block.ids[to] = event.id
                if event.kind == 'sent':
                    hold.file.delivered.update(event.recipients)
                    known = self.delivered.setdefault(hold.envelope.id, set())
                    known.update(event.recipients)
            block.state, block.retry_at = 'C', retry_at or 0.0
            if not report:
                self._mark_handled(block, list(block.letters))
        self.rest(hold, stuck=stuck)

    def acknowledge(self, hold: Hold, recipients: list[str]) -> None:
        self._mark_handled(hold.block, recipients)
        self.rest(hold)

    def _mark_handled(self, block: Content, recipients: list[str]) -> None:
        for to in recipients:
            if block.letters[to] in 'df':
                block.letters[to] = block.letters[to].upper()

    def retry_events(self, hold: Hold, due: float) -> None:
        folder, _ = hold.place()
        at = min(due, hold.block.retry_at) if folder == 'cur' else due
        self._record(hold, folder, at)
        hold.file.lock = None

    def rest(self, hold: Hold, *, stuck: bool = False) -> None:
        self._record(hold, *hold.place(), stuck=stuck)
        if not stuck and not hold.block.pending():
            hold.file.lock = None

    def _record(self, hold: Hold, folder: str, due: float, *, stuck: bool = False) -> None:
        if not folder:
            if stuck or self.paths.pop(hold.path, None) is None:
                hold.file.content = deepcopy(hold.block)
            return
        hold.file.content = deepcopy(hold.block)
        if not stuck:
            target = folder, name_of(hold.envelope, due, hold.attempt)
            self.move(hold.path, target)
            hold.path = target

    def release(self, hold: Hold) -> None:
        if hold.before and '?' not in hold.block.letters.values():
            hold.file.content.state = hold.before
        hold.file.lock = None


# The real queue


class StuckFiles(QueueFiles):
    """Files that cannot be moved for a while; ``meanwhile`` is called once between an open and its
    lock."""

    stuck = False
    meanwhile: Callable[[], object] | None = None

    def _locked(self, descriptor: int, directory: Directory, name: str) -> int | None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super()._locked(descriptor, directory, name)

    def rename(
        self, folder: str | Directory, name: str, to: str | Directory, new_name: str
    ) -> bool:
        if self.stuck:
            raise OSError(5, 'Input/output error')
        return super().rename(folder, name, to, new_name)


class World:
    """Three claimers, with one clock."""

    def __init__(self, kind: str, path: Path, in_doubt: str) -> None:
        self.maildir = kind == 'maildir'
        self.in_doubt = in_doubt
        self.clock = Clock()
        self.root = path
        self.queues: list[Any] = [MemoryQueue(clock=self.clock)] * 3
        if self.maildir:
            self.queues = [
                MaildirQueue(
                    str(path), sync=False, in_doubt=in_doubt, longest=LONGEST, clock=self.clock
                )
                for _ in range(3)
            ]
            for queue in self.queues:
                queue._files = StuckFiles(str(path), sync=False)
            self.queues[0].prepare()

    def clear(self) -> None:
        self.clock.now = NOW
        if not self.maildir:
            self.queues[0]._store.mails.clear()
            return
        for queue in self.queues:
            queue._files.stuck, queue._files.meanwhile = False, None
            queue._scanner._verified.clear()
            for descriptor in list(queue._files._open):
                queue._files.close(descriptor)
        for folder in FOLDERS:
            for path in (self.root / folder).iterdir():
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()
        shutil.rmtree(self.root / 'reasons', ignore_errors=True)


# The machine

RECIPIENTS = ('ann@example.org', 'bob@example.org', 'cyd@example.org')
PICK = st.integers(0, 1000)
MAIL = st.fixed_dictionaries(
    {
        'recipients': st.integers(1, 3),
        'due': st.sampled_from([0, 0, 0, -DAY, 5, HOUR, 10 * DAY]),
        'priority': st.sampled_from(['normal', 'high', 'low']),
        'expires': st.sampled_from([None, None, DAY]),
    }
)
VERDICTS = st.lists(
    st.sampled_from(['sent', 'deferred', 'error', 'ambiguous']), min_size=3, max_size=3
)
DELAY = st.sampled_from([1, 60, HOUR, LONGEST])
EVENT_DELAY = st.sampled_from([1, 30, 300])
SHIFTS = [1, -1, 60, HOUR, -HOUR, DAY, 4 * DAY, -4 * DAY, YEAR, -YEAR, 10 * YEAR, -10 * YEAR]


COMMON = (
    *(
        'claim_due',
        'claim_due',
        'claim_due',
        'claim_any',
        'claim_stale',
        'mark_ambiguous',
        'settle',
    ),
    *('settle', 'settle', 'settle', 'report', 'report', 'retry_events', 'retry_events', 'release'),
    *('claim_raced', 'claimer_vanishes', 'pass_time', 'shift_the_clock', 'put', 'second_phase'),
    *('retry_by_hand', 'move_by_hand', 'touch_by_hand'),
)
"""The rules that make up a day, by weight."""


class QueueMachine(RuleBasedStateMachine):
    """Rules do to the real queue and to the model the same; invariants compare."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.clear()
        self.model = Model(maildir=world.maildir, publish_doubtful=world.in_doubt == 'send')
        self.clock = world.clock
        self.puts: list[Put] = []
        self.holds: list[Hold] = []
        self.tickets: list[Ticket] = []
        self.number = 0
        RULES['(histories)'] += 1

    # Put

    def _envelopes(self, mails: list[dict[str, Any]]) -> list[Envelope]:
        envelopes = []
        for each in mails:
            self.number += 1
            now = self.clock.now
            envelopes.append(
                make_envelope(
                    *RECIPIENTS[: each['recipients']],
                    # Not in the order of the numbers.
                    id=f'{self.number * 7919 % 997:08x}{self.number:024x}',
                    queued_at=now,
                    due=max(now + each['due'], 0),
                    priority=each['priority'],
                    expires=each['expires'] and now + each['expires'],
                )
            )
        return envelopes

    @initialize(names=st.lists(st.sampled_from(COMMON), min_size=6, max_size=14), data=st.data())
    def start(self, names: list[str], data: st.DataObject) -> None:
        self._day(names, data)

    @precondition(lambda self: len(self.puts) < 4)
    @rule(mails=st.lists(MAIL, min_size=1, max_size=3), which=st.integers(0, 2))
    def put(self, mails: list[dict[str, Any]], which: int) -> None:
        RULES['put'] += 1
        self._put(mails, which)

    def _put(self, mails: list[dict[str, Any]], which: int) -> Put:
        envelopes = self._envelopes(mails)
        put = self.model.put(envelopes, 'V')
        put.real = self.world.queues[which].put(envelopes)
        own = [('new', name_of(envelope, envelope.due, 0)) for envelope in envelopes]
        assert [path_of(each) for each in put.real.tickets] == own
        self.puts.append(put)
        return put

    @rule(mails=st.lists(MAIL, min_size=1, max_size=2), which=st.integers(0, 2))
    def put_and_publish(self, mails: list[dict[str, Any]], which: int) -> None:
        RULES['put_and_publish'] += 1
        self._published(mails, which)

    def _published(self, mails: list[dict[str, Any]], which: int) -> None:
        put = self._put(mails, which)
        put.real.publish()
        self.model.end(put, 'publish')
        self.puts.remove(put)

    @precondition(lambda self: self.puts)
    @rule(
        which=PICK,
        calls=st.lists(
            st.sampled_from(['publish', 'discard', 'keep_in_doubt']), min_size=1, max_size=3
        ),
    )
    def second_phase(self, which: int, calls: list[str]) -> None:
        """What is called first decides."""
        RULES['second_phase'] += 1
        put = self.puts.pop(which % len(self.puts))
        for call in calls:
            getattr(put.real, call)()
            self.model.end(put, call)
        SEEN[put.outcome] += 1

    @precondition(lambda self: self.world.maildir)
    @rule(
        mails=st.lists(MAIL, min_size=1, max_size=3),
        at=st.sampled_from(['writing', 'voted', 'publishing']),
        moved=st.integers(0, 3),
        which=st.integers(0, 2),
    )
    def putter_dies(self, mails: list[dict[str, Any]], at: str, moved: int, which: int) -> None:
        RULES['putter_dies'] += 1
        envelopes = self._envelopes(mails)
        moved = min(moved, len(envelopes))
        queue = self.world.queues[which]

        def work() -> None:
            if at == 'writing':
                real = queue._files.write

                def write(descriptor: int, data: bytes, offset: int = 0) -> None:
                    if data == b'V':
                        os._exit(0)
                    real(descriptor, data, offset)

                queue._files.write = write
            put = queue.put(envelopes)
            if at == 'voted':
                os._exit(0)
            left = [moved]
            rename = os.rename

            def moving(source: str, target: str, **folders: int) -> None:
                if not left[0]:
                    os._exit(0)
                left[0] -= 1
                rename(source, target, **folders)

            os.rename = moving  # type: ignore[assignment]
            put.publish()

        assert reap(forked(work)) == 0
        put = self.model.put(envelopes, 'W' if at == 'writing' else 'V')
        put.files[0].lock = None
        if at == 'publishing':
            self.model.end(put, 'publish', moved)
        elif at == 'voted':
            self.model.published.update({each.id: each for each in envelopes})

    # Scan and claim

    @rule(
        which=st.integers(0, 2),
        limit=st.sampled_from([100, 100, 100, 2, 1]),
        fresh=st.sampled_from([False, False, True]),
        all_events=st.booleans(),
    )
    def scan(self, which: int, limit: int, fresh: bool, all_events: bool) -> None:
        RULES['scan'] += 1
        self._scan(which, limit, fresh, all_events)

    def _scan(
        self, which: int = 0, limit: int = 100, fresh: bool = False, all_events: bool = False
    ) -> list[Ticket]:
        """In order, what is due, and when the next one will be."""
        now = self.clock.now
        tickets, next_due = self.world.queues[which].scan(
            now, limit=limit, fresh=fresh, all_events=all_events
        )
        expected = self.model.scan(now, limit, fresh, all_events)
        assert ([path_of(each) for each in tickets], next_due) == expected
        self.tickets = [*self.tickets, *tickets][-20:]
        return list(tickets)

    @rule(which=st.integers(0, 2), pick=PICK, settled=st.sampled_from([False, False, True]))
    def claim_due(self, which: int, pick: int, settled: bool) -> None:
        """Scan, and take one of what is due, held or not."""
        RULES['claim_due'] += 1
        tickets = self._scan(which)
        if tickets:
            self._claim(which, tickets[pick % len(tickets)], settled)

    @precondition(lambda self: self.model.paths)
    @rule(which=st.integers(0, 2), pick=PICK, settled=st.booleans())
    def claim_any(self, which: int, pick: int, settled: bool) -> None:
        """Whatever lies there, its time come or not."""
        RULES['claim_any'] += 1
        paths = sorted(
            path
            for path in self.model.paths
            if path[0] in ('new', 'cur', 'done') and path[1][0] != '.'
        )
        if paths:
            self._claim(which, ticket_of(*paths[pick % len(paths)]), settled)

    @precondition(lambda self: self.tickets)
    @rule(which=st.integers(0, 2), pick=PICK, settled=st.booleans())
    def claim_stale(self, which: int, pick: int, settled: bool) -> None:
        """By a listing that may be long out of date."""
        RULES['claim_stale'] += 1
        self._claim(which, self.tickets[pick % len(self.tickets)], settled)

    @precondition(lambda self: self.world.maildir)
    @rule(
        pick=PICK,
        how=st.sampled_from(['settle', 'release', 'hold', 'replace', 'remove']),
        verdicts=VERDICTS,
        delay=DELAY,
    )
    def claim_raced(self, pick: int, how: str, verdicts: list[str], delay: int) -> None:
        """Between a claimer's open and its lock another one, or a person, was quicker."""
        paths = [
            path_of(each)
            for each in self._scan()
            if (file := self.model.paths[path_of(each)]).lock is None and file.envelope
        ]
        if not paths:
            return
        RULES['claim_raced'] += 1
        folder, name = paths[pick % len(paths)]

        def meanwhile() -> None:
            SEEN[f'raced: {how}'] += 1
            if how in ('replace', 'remove'):
                self._touch_by_hand((folder, name), how)
                return
            hold = self._claim(1, ticket_of(folder, name))
            if hold is not None and how == 'settle' and hold.todo:
                events, retry_at = self._events(hold, verdicts, delay)
                hold.real.settle(events, retry_at=retry_at, report=False)
                self.model.settle(hold, events, retry_at, report=False, stuck=False)
            elif hold is not None and how != 'hold':
                hold.real.release()
                self.model.release(hold)
            self._forget_released()

        store = self.world.queues[0]._files
        store.meanwhile = meanwhile
        if how == 'replace':
            # What was opened is not what lies there now.
            assert self.world.queues[0].claim(ticket_of(folder, name)) is None
        else:
            self._claim(0, ticket_of(folder, name))
        assert store.meanwhile is None

    def _claim(self, which: int, ticket: Ticket, settled: bool = False) -> Hold | None:
        path = path_of(ticket)
        damaged, real = '', None
        try:
            real = self.world.queues[which].claim(ticket, settled=settled)
        except DamagedMail as error:
            damaged = error.name
        there = self.model.paths.get(path)
        held = there is not None and there.lock is not None
        hold = self.model.claim(path, self.clock.now, settled=settled)
        if isinstance(hold, str):
            assert damaged == hold
            SEEN['set aside'] += 1
            return None
        assert damaged == ''
        assert (real is None) == (hold is None), (path, real, hold)
        if hold is None:
            SEEN['claim refused, held' if held else 'claim refused'] += 1
            return None
        assert not held
        self._compare(real, hold)
        hold.real = real
        self.holds.append(hold)
        SEEN['claimed'] += 1
        return hold

    def _compare(self, real: Any, hold: Hold) -> None:
        """A claim with what the model has; and whatever the model has: no recipient twice, and
        nothing before its time."""
        assert real.envelope == hold.envelope
        assert (real.todo, real.attempt, real.since) == (hold.todo, hold.attempt, hold.block.since)
        assert real.interrupted == hold.interrupted
        letters = hold.block.letters
        assert real.ambiguous == tuple(to for to in hold.todo if letters[to] == '?')
        pending = {to: event.id for event in real.pending_events for to in event.recipients}
        assert pending == hold.block.pending()
        assert hold.file.delivered.isdisjoint(real.todo)
        if real.todo and not hold.attempt and hold.envelope.id not in self.model.by_hand:
            assert hold.envelope.not_before <= self.clock.now
        if real.interrupted:
            SEEN[f'interrupted: {real.interrupted}'] += 1

    # What a claimer does

    def _pick(self, pick: int, *, settled: bool | None = None) -> Hold | None:
        holds = [
            hold
            for hold in self.holds
            if settled is None or settled == (hold.settled or not hold.todo)
        ]
        return holds[pick % len(holds)] if holds else None

    @precondition(lambda self: self.holds)
    @rule(pick=PICK, count=st.integers(1, 3))
    def mark_ambiguous(self, pick: int, count: int) -> None:
        hold = self._pick(pick, settled=False)
        if hold is None:
            return
        RULES['mark_ambiguous'] += 1
        hold.real.mark_ambiguous(hold.todo[:count])
        self.model.mark_ambiguous(hold, list(hold.todo[:count]))

    def _events(
        self, hold: Hold, verdicts: list[str], delay: int
    ) -> tuple[list[PendingEvent], float | None]:
        number = hold.attempt + 1
        groups: dict[str, list[str]] = {}
        for to, verdict in zip(hold.todo, verdicts, strict=False):
            # As ``mail.ambiguous = hold`` has it for one half of the mail, 'resend' for the other.
            held = 'error' if int(hold.envelope.id[:8], 16) % 2 else 'deferred'
            kind = held if verdict == 'ambiguous' else verdict
            groups.setdefault(kind, []).append(to)
        retry_at = self.clock.now + delay if 'deferred' in groups else None
        reply = Reply(250, 'accepted')
        return [
            PendingEvent(
                f'{hold.envelope.id}-{number}-{kind}-{group}',
                kind,  # type: ignore[arg-type]
                tuple(recipients),
                number,
                'model:',
                reply,
                str(reply),
            )
            for group, (kind, recipients) in enumerate(groups.items())
        ], retry_at

    @precondition(lambda self: self.holds)
    @rule(pick=PICK, verdicts=VERDICTS, delay=DELAY, report=st.booleans(), stuck=st.integers(0, 4))
    def settle(self, pick: int, verdicts: list[str], delay: int, report: bool, stuck: int) -> None:
        hold = self._pick(pick, settled=False)
        if hold is None:
            return
        RULES['settle'] += 1
        events, retry_at = self._events(hold, verdicts, delay)
        before = hold.block.pending()
        folder, _ = self._after(hold, events, report)
        if self.world.maildir and stuck == 0 and folder:
            # The disk is in trouble: nothing moves, the claim is kept, and settled once more.
            store = hold.real._files
            store.stuck = True
            with pytest.raises(QueueError):
                hold.real.settle(events, retry_at=retry_at, report=report)
            store.stuck = False
            self.model.settle(hold, events, retry_at, report=report, stuck=True)
            SEEN['settled twice'] += 1
            self.the_disk_is_as_the_model_has_it()
        hold.real.settle(events, retry_at=retry_at, report=report)
        self.model.settle(hold, events, retry_at, report=report, stuck=False)
        SEEN[f'settled, {folder or "gone"}{", pending before" if before else ""}'] += 1
        self._forget_released()

    def _after(self, hold: Hold, events: list[PendingEvent], report: bool) -> tuple[str, float]:
        twin = deepcopy(hold.block)
        for event in events:
            letter = {'sent': 'd', 'error': 'f', 'deferred': 'T'}[event.kind]
            twin.letters.update(dict.fromkeys(event.recipients, letter))
        if not report:
            twin.letters = {
                to: letter.upper() if letter in 'df' else letter
                for to, letter in twin.letters.items()
            }
        return twin.place(hold.envelope, hold.claimed_at)

    def _forget_released(self) -> None:
        self.holds = [hold for hold in self.holds if hold.file.lock is hold]

    @precondition(lambda self: self.holds)
    @rule(pick=PICK, part=st.booleans())
    def report(self, pick: int, part: bool) -> None:
        hold = self._pick(pick, settled=True)
        if hold is None:
            return
        RULES['report'] += 1
        events = hold.real.pending_events[: 1 if part else None]
        hold.real.acknowledge(events)
        self.model.acknowledge(hold, [to for event in events for to in event.recipients])
        self._forget_released()

    @precondition(lambda self: self.holds)
    @rule(pick=PICK, delay=EVENT_DELAY)
    def retry_events(self, pick: int, delay: int) -> None:
        hold = self._pick(pick, settled=True)
        if hold is None or not hold.block.pending():
            return
        RULES['retry_events'] += 1
        hold.real.retry_events(hold.real.pending_events, self.clock.now + delay)
        self.model.retry_events(hold, self.clock.now + delay)
        self._forget_released()

    @precondition(lambda self: self.holds)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        RULES['release'] += 1
        hold = self._pick(pick)
        assert hold is not None
        for _ in range(2):
            hold.real.release()
        self.model.release(hold)
        self._forget_released()

    # Death

    @precondition(lambda self: self.holds and self.world.maildir)
    @rule(pick=PICK)
    def claimer_vanishes(self, pick: int) -> None:
        """The object goes with its descriptor, as everything of a process that dies."""
        RULES['claimer_vanishes'] += 1
        hold = self._pick(pick)
        assert hold is not None
        descriptor = hold.real._descriptor
        hold.real._files._open.pop(descriptor, None)
        os.close(descriptor)
        hold.file.lock = None
        self._forget_released()

    @precondition(lambda self: self.world.maildir)
    @rule(
        which=st.integers(0, 2),
        pick=PICK,
        stage=st.sampled_from(['claimed', 'ambiguous', 'settled']),
        verdicts=VERDICTS,
        delay=DELAY,
    )
    def claimer_dies(
        self, which: int, pick: int, stage: str, verdicts: list[str], delay: int
    ) -> None:
        """A child claims, goes so far, and dies over it."""
        tickets = self._scan(which)
        held = {path for path, file in self.model.paths.items() if file.lock or not file.envelope}
        tickets = [each for each in tickets if path_of(each) not in held]
        if not tickets:
            return
        RULES['claimer_dies'] += 1
        ticket = tickets[pick % len(tickets)]
        hold = self.model.claim(path_of(ticket), self.clock.now, settled=False)
        assert not isinstance(hold, str)
        events, retry_at = self._events(hold, verdicts, delay) if hold is not None else ([], None)
        queue = self.world.queues[which]

        def work() -> None:
            claim = queue.claim(ticket)
            assert (claim is None) == (hold is None)
            if claim is not None and claim.todo and stage != 'claimed':
                claim.mark_ambiguous(claim.todo)
                if stage == 'settled':
                    claim.settle(events, retry_at=retry_at)

        assert reap(forked(work)) == 0
        if hold is not None:
            if hold.todo and stage != 'claimed':
                self.model.mark_ambiguous(hold, list(hold.todo))
                if stage == 'settled':
                    self.model.settle(hold, events, retry_at, report=True, stuck=False)
            hold.file.lock = None
            SEEN[f'died when {stage}'] += 1

    # Clocks and hands

    @rule(shift=st.sampled_from(SHIFTS))
    def shift_the_clock(self, shift: int) -> None:
        RULES['shift_the_clock'] += 1
        self.clock.now = min(max(self.clock.now + shift, 5e8), 5e9)

    @rule(shift=st.sampled_from([60, HOUR, DAY]))
    def pass_time(self, shift: int) -> None:
        RULES['pass_time'] += 1
        self.clock.now = min(self.clock.now + shift, 5e9)

    def _lying(self, *folders: str) -> list[Path_]:
        return sorted(path for path in self.model.paths if path[0] in folders)

    @precondition(lambda self: self.world.maildir and self._lying('failed'))
    @rule(pick=PICK)
    def retry_by_hand(self, pick: int) -> None:
        """``mv failed/x new/``"""
        RULES['retry_by_hand'] += 1
        lying = self._lying('failed')
        self._move_by_hand(lying[pick % len(lying)], 'new', '')

    @precondition(lambda self: self.world.maildir and self._lying('new', 'cur', 'done'))
    @rule(pick=PICK, how=st.sampled_from(['hold', 'hold', 'flags', 'back']))
    def move_by_hand(self, pick: int, how: str) -> None:
        """Into failed/, held or not; as mail programs do it; or from cur/ into new/."""
        RULES['move_by_hand'] += 1
        lying = self._lying('new', 'cur', 'done')
        folder, name = lying[pick % len(lying)]
        if how == 'flags' and not name.endswith(':2,S'):
            self._move_by_hand((folder, name), folder, ':2,S')
        elif how != 'flags' and folder != 'done':
            self._move_by_hand((folder, name), 'failed' if how == 'hold' else 'new', '')

    def _move_by_hand(self, path: Path_, folder: str, more: str) -> None:
        target = folder, path[1] + more
        if target in self.model.paths:
            return
        os.rename(self.world.root.joinpath(*path), self.world.root.joinpath(*target))
        self.model.move(path, target)
        file = self.model.paths[target]
        if file.envelope is not None:
            self.model.by_hand.add(file.envelope.id)

    @precondition(lambda self: self.world.maildir and self._lying('new', 'cur', 'done', 'failed'))
    @rule(pick=PICK, how=st.sampled_from(['touch', 'replace', 'copy', 'remove', 'truncate']))
    def touch_by_hand(self, pick: int, how: str) -> None:
        """Backups, editors, and people: ``cp -a`` makes a new inode of the same bytes."""
        RULES['touch_by_hand'] += 1
        lying = self._lying('new', 'cur', 'done', 'failed')
        self._touch_by_hand(lying[pick % len(lying)], how)

    def _touch_by_hand(self, at: Path_, how: str) -> None:
        file, path = self.model.paths[at], self.world.root.joinpath(*at)
        if file.envelope is None or (file.lock is not None and how not in ('touch', 'remove')):
            return
        if how == 'touch':
            os.utime(path, (self.clock.now - 10 * YEAR, self.clock.now + 10 * YEAR))
        elif how == 'replace':
            shutil.copy2(path, self.world.root / 'copy')
            os.rename(self.world.root / 'copy', path)
        elif how == 'copy':
            self.number += 1
            other = at[0], f'copy-{self.number}'
            shutil.copy2(path, self.world.root.joinpath(*other))
            twin = File(file.envelope, deepcopy(file.content), None, set(file.delivered))
            self.model.paths[other] = twin
        elif how == 'remove':
            path.unlink()
            del self.model.paths[at]
        else:
            os.truncate(path, path.stat().st_size - 1)
            self.model.paths[at] = File(None, Content({}, '', 0.0))
        self.model.by_hand.add(file.envelope.id)

    @precondition(lambda self: self.world.maildir)
    @rule(
        folder=st.sampled_from(['new', 'cur', 'done', 'tmp']),
        kind=st.sampled_from(['text', 'empty', 'folder', 'link', 'dot', 'like ours']),
    )
    def drop_a_foreign_file(self, folder: str, kind: str) -> None:
        RULES['drop_a_foreign_file'] += 1
        self.number += 1
        name = f'{"." if kind == "dot" else ""}foreign-{self.number}'
        if kind == 'like ours' and folder != 'tmp':
            name = f'5-{int(self.clock.now) * 1000:015d}-0000-{self.number:032x}'
        path = self.world.root / folder / name
        if kind == 'folder':
            path.mkdir()
        elif kind == 'link':
            path.symlink_to('nowhere')
        else:
            path.write_text('' if kind == 'empty' else 'Subject: lunch\n\nAt noon?\n')
        self.model.paths[folder, name] = File(None, Content({}, '', 0.0))

    # What a processor does all day, which chance alone seldom brings about

    @rule(
        which=st.integers(0, 2),
        verdicts=st.lists(VERDICTS, min_size=4, max_size=4),
        delay=DELAY,
        report=st.booleans(),
    )
    def work(self, which: int, verdicts: list[list[str]], delay: int, report: bool) -> None:
        """Deliver some of what is due, and report it."""
        RULES['work'] += 1
        for ticket, own in zip(self._scan(which), verdicts, strict=False):
            hold = self._claim(which, ticket)
            if hold is None:
                continue
            if hold.todo:
                events, retry_at = self._events(hold, own, delay)
                hold.real.settle(events, retry_at=retry_at, report=report)
                self.model.settle(hold, events, retry_at, report=report, stuck=False)
            if hold.file.lock is hold:
                hold.real.acknowledge(hold.real.pending_events)
                self.model.acknowledge(hold, list(hold.block.letters))
            self._forget_released()

    @rule(names=st.lists(st.sampled_from(COMMON), min_size=4, max_size=12), data=st.data())
    def day(self, names: list[str], data: st.DataObject) -> None:
        """Claims, and what may become of them."""
        RULES['day'] += 1
        self._day(names, data)

    def _day(self, names: list[str], data: st.DataObject) -> None:
        for name in ['put_and_publish', 'claim_due', *names]:
            step = getattr(type(self), name)
            each = getattr(step, RULE_MARKER)
            if all(condition(self) for condition in each.preconditions):
                step(
                    self,
                    **{
                        argument: data.draw(strategy, argument)
                        for argument, strategy in each.arguments_strategies.items()
                    },
                )
                self.the_disk_is_as_the_model_has_it()
                self.nothing_is_lost()

    # What must be true after every step

    @invariant()
    def the_disk_is_as_the_model_has_it(self) -> None:
        if not self.world.maildir:
            self._memory_is_as_the_model_has_it()
            return
        found = {
            (folder, entry.name)
            for folder in FOLDERS
            for entry in os.scandir(self.world.root / folder)
        }
        assert found == set(self.model.paths)
        for path, file in self.model.paths.items():
            if file.envelope is None:
                continue
            block = decode(self.world.root.joinpath(*path).read_bytes())
            content = file.content
            assert block.envelope == file.envelope
            assert block.letters == list(content.letters.values()), path
            # Outside of tmp/ ``V`` says no more than ``C``.
            state = 'C' if block.state == 'V' and path[0] != 'tmp' else block.state
            assert (state, block.since, block.retry_at) == (
                'C' if content.state == 'V' and path[0] != 'tmp' else content.state,
                content.since,
                content.retry_at,
            ), path

    def _memory_is_as_the_model_has_it(self) -> None:
        mails = self.world.queues[0]._store.mails.values()
        found = {
            mail.envelope.id: (
                FOLDER_OF[mail.state],
                mail.state == 'failed' or mail.ticket.order,
                [letter.lower() for letter in mail.letters.values()],
                mail.retry_at,
                mail.claimed,
            )
            for mail in mails
        }
        expected = {
            file.envelope.id: (
                folder,
                folder == 'failed' or name,
                [letter.lower() for letter in file.content.letters.values()],
                file.content.retry_at,
                file.lock is not None,
            )
            for (folder, name), file in self.model.paths.items()
            if file.envelope is not None
        }
        assert found == expected

    @invariant()
    def nothing_is_lost(self) -> None:
        """What was published, and no hand has touched, is there, or every recipient has it."""
        there = {file.envelope.id for file in self.model.paths.values() if file.envelope}
        for id, envelope in self.model.published.items():
            if id not in there and id not in self.model.by_hand:
                assert self.model.delivered.get(id, set()) == set(envelope.recipients)

    def teardown(self) -> None:
        """All processes end; at last all that was published is delivered, or in failed/."""
        for put in self.puts:
            put.real.discard()
            self.model.end(put, 'discard')
        for hold in self.holds:
            hold.real.release()
            self.model.release(hold)
        self.holds.clear()
        for _ in range(20):
            self.clock.now += 11 * DAY
            scans = 0
            while tickets := self._scan():
                scans += 1
                assert scans < 100, f'no claim gets {tickets}'
                for ticket in tickets:
                    taken = self._claim(0, ticket)
                    if taken is None:
                        continue
                    if taken.todo:
                        events, _ = self._events(taken, ['sent'] * 3, 0)
                        taken.real.settle(events, report=False)
                        self.model.settle(taken, events, None, report=False, stuck=False)
                    else:
                        taken.real.acknowledge(taken.real.pending_events)
                        self.model.acknowledge(taken, list(taken.block.letters))
            self.the_disk_is_as_the_model_has_it()
            self.nothing_is_lost()
            if self.model.scan(self.clock.now, 100, False, True) == ([], None):
                return
            self.clock.now = max(self.clock.now, 5e9)
        raise AssertionError('the queue is never drained')


@pytest.fixture
def quiet() -> Iterator[None]:
    """What people do to a queue is logged, thousands of times here."""
    logger = logging.getLogger('pyramid_sendmail')
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


REACHED = {
    'maildir': {
        *(
            'publish',
            'discard',
            'keep_in_doubt',
            'recovered W',
            'recovered V',
            'recovered C',
            'claimed',
        ),
        *('claim refused', 'claim refused, held', 'set aside', 'started over', 'clock was wrong'),
        *('interrupted: sending', 'interrupted: ambiguous', 'settled twice'),
        *('died when claimed', 'died when ambiguous', 'died when settled'),
        *(f'settled, {folder}' for folder in ('cur', 'done', 'failed', 'gone')),
    },
    'memory': {
        *('publish', 'discard', 'keep_in_doubt', 'claimed', 'claim refused', 'claim refused, held'),
        *(f'settled, {folder}' for folder in ('cur', 'done', 'failed', 'gone')),
    },
}
MAILDIR_ALONE = {
    *(
        'claim_raced',
        'putter_dies',
        'claimer_vanishes',
        'claimer_dies',
        'retry_by_hand',
        'move_by_hand',
    ),
    *('touch_by_hand', 'drop_a_foreign_file'),
}


@pytest.mark.timeout(3600 if SOAK else 400)
@pytest.mark.parametrize(
    ('kind', 'in_doubt'),
    [('maildir', 'hold'), ('maildir', 'send'), ('memory', 'hold')],
    ids=['maildir', 'maildir, in doubt send', 'memory'],
)
def test_the_queue_survives(
    kind: str, in_doubt: str, tmp_path: Path, quiet: None, tell: Tell
) -> None:
    """Whatever claimers, crashes, clocks and hands do in whatever order: every file is where the
    model has it, with the letters that the model has; one holder at a time; no recipient who has a
    mail gets it again; what was published is delivered, waits, or lies in failed/."""
    world = World(kind, tmp_path / 'queue', in_doubt)
    RULES.clear()
    SEEN.clear()
    machine: Any = partial(QueueMachine, world)
    for number in range(SEEDS):
        run_state_machine_as_test(
            machine if SOAK else seed(number)(machine),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=False,
                suppress_health_check=list(HealthCheck),
                phases=PHASES,
            ),
        )
    for queue in world.queues:
        queue.close()
    tell(
        f'queue, {kind}, in doubt {in_doubt}:\n'
        f'  {sum(RULES.values())} steps: {dict(sorted(RULES.items()))}\n'
        f'  reached: {dict(sorted(SEEN.items()))}'
    )
    rules = {name for name, member in vars(QueueMachine).items() if hasattr(member, RULE_MARKER)}
    assert (rules if world.maildir else rules - MAILDIR_ALONE) <= set(RULES)
    assert REACHED[kind] <= set(SEEN)
