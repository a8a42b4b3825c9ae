"""The common path does what the general code does: the same results, errors, log lines and system
calls, and the same bytes on disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import queue as queue_module
from pyramid_sendmail.queue.maildir.common_path import CommonClaim, read_common
from pyramid_sendmail.queue.maildir.filename import ticket_of
from pyramid_sendmail.queue.maildir.first_line import lengths_of
from pyramid_sendmail.queue.maildir.format import Unreadable, decode, encode
from pyramid_sendmail.queue.maildir.large_text import LARGE_FILE
from tests.crash.place import Lines
from tests.crash.syscalls import Call, Watch
from tests.support.formats import block_end, version_1, with_checksums
from tests.support.queues import NOW, Clock, claimed, deferred, failed, make_envelope, sent

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed', 'reasons')

ID = '0123456789abcdef0123456789abcdef'


class File(NamedTuple):
    folder: str
    name: str
    data: bytes


# Files as the queue makes them


def mail(*recipients: str, raw: bytes | None = None, **options: Any) -> Envelope:
    envelope = make_envelope(*recipients, id=ID, **options)
    return envelope if raw is None else replace(envelope, raw=raw)


HEAD = b'Message-ID: <1@example.org>\r\nSubject: Hello\r\n\r\n'

COMMON = {
    'plain': mail(),
    'utf-8 recipient': mail('jürgen@bücher.example'),
    'utf-8 sender': mail(sender='jürgen@bücher.example'),
    'null sender': mail(sender=''),
    'long sender': mail(sender=f'{"x" * 900}@example.org'),
    'long recipient': mail(f'{"x" * 900}@example.org'),
    'expires': mail(expires=NOW + 3600.25),
    'expired': mail(expires=NOW - 1),
    'due': mail(queued_at=NOW - 60, due=NOW - 30.5),
    'urgent': mail(priority='high'),
    'tagged': mail(tag='welcome', subject='Grüße "alle" \\', metadata={'order': '7', 'é': ''}),
    'notice': mail(depth=2),
    'no line ends': mail(raw=b'no header, no end'),
    'empty': mail(raw=b''),
    'bare line feeds': mail(raw=HEAD.replace(b'\r\n', b'\n') + b'Hello.\n'),
    '8 bit': mail(raw=HEAD + 'Grüße\r\n'.encode()),
    'lines like ours': mail(raw=HEAD + b'X-Envelope-To: T00000T bob@example.org\r\n' * 3),
    'nearly large': mail(raw=HEAD + b'x' * (LARGE_FILE - 2000)),
    'other id': replace(mail(), id='f' * 32),
}

UNUSUAL = {
    'two recipients': mail('ann@example.org', 'bob@example.org'),
    'twenty recipients': mail(*(f'to{n}@example.org' for n in range(20))),
    'large': mail(raw=HEAD + b'x' * (2 * LARGE_FILE)),
    'folded options': mail(metadata={f'key {n}': 'a value of some length' for n in range(40)}),
}
"""What a single line or a single read does not hold."""


def _untouched(queue: MaildirQueue) -> None:
    """Leave the mail as it was put."""


def _interrupted(queue: MaildirQueue) -> None:
    _forget(queue, claimed(queue))


def _ambiguous(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.mark_ambiguous(claim.todo)
    _forget(queue, claim)


def _forget(queue: MaildirQueue, claim: Any) -> None:
    """Leave the file as a process that dies leaves it."""
    for folder in ('new', 'cur'):
        for path in (Path(queue.path) / folder).iterdir():
            data = path.read_bytes()
            claim.release()
            path.write_bytes(data)


def _deferred(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([deferred(claim.envelope)], retry_at=NOW + 60, report=False)


def _retried(queue: MaildirQueue) -> None:
    _deferred(queue)
    (info,) = queue.mails()
    assert queue.retry(info)


def _reported(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([sent(claim.envelope)])
    claim.release()


def _dead(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([failed(claim.envelope)], report=False)


def _started_over(queue: MaildirQueue) -> None:
    """A person had a dead letter tried again: it is in new/, and has a history."""
    _dead(queue)
    (info,) = queue.mails()
    queue._clock.now = NOW + 5  # type: ignore[attr-defined]
    assert queue.retry(info)


def _held(queue: MaildirQueue) -> None:
    (info,) = queue.mails()
    assert queue.hold(info)


HISTORIES: tuple[Callable[[MaildirQueue], None], ...] = (
    *(_interrupted, _ambiguous, _deferred, _retried, _reported, _dead, _started_over, _held),
)


RECIPES = {
    **{name: (envelope, _untouched) for name, envelope in (COMMON | UNUSUAL).items()},
    **{
        f'{name}{history.__name__.replace("_", " ")}': (envelope, history)
        for name, envelope in (('one', mail()), ('two', mail('a@example.org', 'b@example.org')))
        for history in HISTORIES
    },
    'later': (mail(due=NOW + 60), _untouched),
    'old': (mail(), _untouched),
    'old, deferred': (mail('a@example.org', 'b@example.org'), _deferred),
}


@cache
def file_of(name: str) -> File:
    """Return the file that the general code makes by a recipe."""
    envelope, history = RECIPES[name]
    with TemporaryDirectory() as folder, general_code():
        queue = MaildirQueue(f'{folder}/queue', sync=False, clock=Clock())
        queue.put([envelope]).publish()
        history(queue)
        (file,) = [
            File(each, found.name, found.read_bytes())
            for each in ('new', 'cur', 'done', 'failed')
            for found in (Path(queue.path) / each).iterdir()
        ]
        return file._replace(data=version_1(file.data)) if name.startswith('old') else file


def general_code() -> Any:
    """``with general_code():`` no file is that of a common mail."""
    return patch.object(queue_module, 'read_common', lambda data: None)


PLAIN = File('new', f'5-{NOW * 1000:015.0f}-0000-{ID}', encode(COMMON['plain'], 'C'))


# Mutations


FIELDS = {
    rb'(Envelope: )2': [b'1', b'3', b'0', b' '],
    rb'(message=)[0-9a-f]{8}': [b'00000000', b'FFFFFFFF', b'0x000000', b' ' * 8],
    rb'(rest=)[0-9a-f]{8}': [b'00000000', b'+0000000'],
    rb'(rest=.{8} )[^\r]{20}': [
        b'crlf dots ascii     ',
        b'no-crlf no-dots asci',
        b'crlf no-dots 8bit   ',
        b'crlf no-dots utf-8  ',
    ],
    rb'(rest=.*)\r\n': [b'\n\n', b'  '],
    rb'(State: )\w ': [b'W ', b'V ', b'C ', b'S ', b'X ', b'c '],
    rb'(State: \w )[0-9]{15}': [
        *(b'%015d' % (NOW * 1000 + step) for step in (-60_000, -3, -2, 1, 2, 3, 5_000)),
        *(b'0' * 15, b' ' * 14 + b'7', b'+' + b'1' * 14, b'1_0' * 5, b'x' * 15, b'9' * 15),
    ],
    rb'(State: \w [0-9]{15} )[0-9]{15}': [
        *(b'%015d' % (NOW * 1000 + step) for step in (-60_000, 0, 1, 60_000)),
        *(b'9' * 15, b'-' + b'0' * 14, b'0' * 14 + b'1', b' ' * 15),
    ],
    rb'(State: .*)\r\n': [b'\n\n', b'\r\r', b' \n'],
    rb'(Outcome: )\[\[\]\]     ': [b'[[""]]   ', b'[]       ', b'[[]      ', b'\xff' * 9],
    rb'(Outcome: )\[\[\]\] {50}': [b'[["smtp://a:25"],[1,0,0,451,"later",null,0,0]]'.ljust(54)],
    rb'(Outcome: .{976})\r\n': [b'  ', b'\n\r'],
    rb'(Outcome: (?s:.){978})': [b'X-Envelope-Outcome: ' + b' ' * 976 + b'\r\n', b'\r\n'],
    rb'(Envelope-Id: )[0-9a-f]+': [b'', b'f' * 32, 'é'.encode(), b'\xff', b'a\rb'],
    rb'(Message-Id: ).*(?=\r)': [b'', b'<2@example.org>', b'a\r', b'a\nb'],
    rb'(X-Envelope-)Message-Id': [b'Message-No', b'From'],
    rb'(From: ).*(?=\r)': [b'', b'a\rb', b'\xe9', b'X-Envelope-To: T00000T a'],
    rb'(Options: )': [b' ', b'x', b'\r\n '],
    rb'("queued_at": )[^,]*': [b'1', b'1699999999.5', b'NaN', b'null', b'"1"', b'1700000000.0021'],
    rb'("due": )[^,]*': [b'1800000000.0', b'0', b'"soon"', b'null'],
    rb'("expires": )[^,]*': [b'1800000000.0', b'1', b'"x"', b'1, "width": 2'],
    rb'("subject": )"': [b'1, "s": "', b'"\xff', b'"\t'],
    rb'("metadata": )[^}]*}': [b'[]', b'null', b'"x"', b'{"a": 1}'],
    rb'()"depth"': [b'"id": "x", "depth"', b'"tag": "twice", "depth"', b'"width"'],
    rb'(, )"depth": .': [b'"raw": 1', b'"depth": null'],
    rb'(, )"tag": [^,]*, ': [b''],
    rb'("depth": .})': [b' ', b'}', b'\r\n ', b'\r\nX-Envelope-More: yes'],
    rb'(Options: [^\r]*\r\n)': [
        b'X-Envelope-Padding: ' + b' ' * 900 + b'\r\n',
        b'X-Envelope-Padding: \r\n' * 3,
        b'X-Envelope-Padding: x\r\n',
        b'X-Envelope-Pad: \r\n',
    ],
    rb'(Envelope-To: )T00000T': [
        *(b'D00000D', b'd00000d', b'f00000f', b'F00000F', b'?00000?', b'T00001T', b'T0000OT'),
        *(b'T00000D', b'D00000T', b'x00000x', b'T00000t'),
    ],
    rb'(Envelope-To: .{7} )[^\r]+': [b'', b'a', 'é'.encode(), b'\xe9', b'a\rb', b'a\nb', b' a '],
    rb'(Envelope-To: .*)\r\n': [
        *(b'\n', b'', b'\r\n\r\n', b'\r\nX-Envelope-To: T00000T bob@example.org\r\n'),
        *(b'\r\nX-Envelope-To: T00001T bob@example.org\r\n', b'\r\nX-Envelope-More: 1\r\n'),
    ],
}
"""Each part of a file, and what may stand there instead; the group is kept."""

NAMES = (
    *(f'5-{NOW * 1000 + step:015.0f}-0000-{ID}' for step in (-1000, 1, 60_000)),
    *(f'{digit}-{NOW * 1000:015.0f}-0000-{ID}' for digit in '1459'),
    *(f'5-{NOW * 1000:015.0f}-{attempt}-{ID}' for attempt in ('0001', '9999', '000')),
    *(f'{PLAIN.name}:2,S', f'{PLAIN.name}:2,', f'{PLAIN.name[:-1]}g', 'x', 'y' * 55),
)


@st.composite
def mutated(draw: st.DrawFn) -> File:
    """A file of the corpus, most often a common one, with at most three changes."""
    if draw(st.integers(0, 3)):
        file = file_of(draw(st.sampled_from([*COMMON])))
    else:
        file = file_of(draw(st.sampled_from([*RECIPES])))
    if not draw(st.integers(0, 9)):
        file = file._replace(name=draw(st.sampled_from(NAMES)))
    if not draw(st.integers(0, 9)):
        file = file._replace(folder=draw(st.sampled_from(['new', 'cur', 'done'])))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        pattern = draw(st.sampled_from([*FIELDS]))
        text = draw(st.sampled_from(FIELDS[pattern]))
        data = re.sub(pattern, lambda found, text=text: found[1] + text, file.data, count=1)
        file = file._replace(data=with_checksums(data) if draw(st.integers(0, 3)) else data)
    if not draw(st.integers(0, 9)):
        file = file._replace(data=draw(_damaged(file.data)))
    return file


def _damaged(data: bytes) -> st.SearchStrategy[bytes]:
    def changed(at: int, dropped: int, more: bytes) -> bytes:
        return data[:at] + more + data[at + dropped :]

    places = st.integers(0, min(len(data), block_end(data) + 100))
    return st.one_of(
        places.map(lambda at: data[:at]),
        st.binary(min_size=1, max_size=40).map(lambda more: data + more),
        st.builds(changed, places, st.integers(0, 2), st.binary(max_size=2)),
    )


# What is done with a claim


def _other(claim: Any) -> tuple[str, ...]:
    return ('nobody@example.org',)


def _settle(*kinds: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    def step(claim: Any) -> None:
        events = [kind(claim.envelope) for kind in kinds]
        claim.settle(events, **options)

    return step


STEPS: dict[str, Callable[[Any], Any]] = {
    'mark': lambda claim: claim.mark_ambiguous(claim.todo),
    'mark a list': lambda claim: claim.mark_ambiguous([*claim.todo]),
    'mark another': lambda claim: claim.mark_ambiguous(_other(claim)),
    'mark none': lambda claim: claim.mark_ambiguous(()),
    'clear': lambda claim: claim.clear_ambiguous(),
    'delivered': _settle(sent, report=False),
    'delivered, reported': _settle(sent),
    'delivered, with a time': _settle(sent, retry_at=NOW + 60, report=False),
    'failed': _settle(failed, report=False),
    'failed, reported': _settle(failed),
    'deferred': _settle(deferred, retry_at=NOW + 60, report=False),
    'deferred, reported': _settle(deferred, retry_at=NOW + 60),
    'nothing': _settle(report=False),
    'twice': _settle(sent, sent, report=False),
    'delivered and failed': _settle(sent, failed, report=False),
    'to another': lambda claim: claim.settle([sent(claim.envelope, *_other(claim))], report=False),
    'acknowledge': lambda claim: claim.acknowledge(claim.pending_events),
    'acknowledge none': lambda claim: claim.acknowledge(()),
    'retry events': lambda claim: claim.retry_events(claim.pending_events, NOW + 5),
    'release': lambda claim: claim.release(),
}

LIKELY = ['mark', 'delivered', 'failed', 'deferred', 'release', 'clear', 'delivered, reported']

steps_taken = st.lists(st.one_of(st.sampled_from(LIKELY), st.sampled_from([*STEPS])), max_size=5)


class Fault(NamedTuple):
    """The call of that number fails, and the ``more`` that follow it."""

    call: int
    more: int
    code: int


faults = (
    st.none()
    | st.none()
    | st.builds(
        Fault,
        st.integers(1, 16),
        st.sampled_from([0, 0, 1, 100]),
        st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENOENT]),
    )
)


class Setting(NamedTuple):
    """How the queue is set up, and when."""

    now: float = NOW + 1
    settled: bool = False
    hold_ambiguous: bool = False
    sync: bool = False


surroundings = st.builds(
    Setting,
    now=st.sampled_from([NOW + 1] * 5 + [NOW, NOW - 0.001, NOW - 0.003, NOW - 60, NOW + 60]),
    settled=st.sampled_from([False] * 5 + [True]),
    hold_ambiguous=st.booleans(),
    sync=st.booleans(),
)


class Trace:
    """Everything that can be seen from outside of a claim and what is done with it."""

    def __init__(self, path: str, file: File, setting: Setting, fault: Fault | None) -> None:
        self.seen: list[Any] = []
        self.kind: type | None = None
        self._root = Path(path)
        self._setting = setting
        self._fault = fault
        self._queue = MaildirQueue(
            path,
            sync=setting.sync,
            hold_ambiguous=setting.hold_ambiguous,
            clock=Clock(setting.now),
        )
        self._ticket = ticket_of(file.folder, file.name)
        for folder in FOLDERS:
            found = self._root / folder
            found.mkdir(parents=True, exist_ok=True)
            for each in found.iterdir():
                each.unlink()
        (self._root / file.folder / file.name).write_bytes(file.data)
        (self._root / 'reasons' / f'{ID}.txt').write_bytes(b'a line\n')

    def play(self, steps: list[str]) -> Trace:
        """Claim, and take the steps; keep what each gives."""
        lines = Lines()
        logger = logging.getLogger('pyramid_sendmail')
        logger.addHandler(lines)
        try:
            with Watch(self._root, self._call):
                claim: Any = self._outcome('claim', self._claim)
            self._look()
            if claim is not None:
                self.kind = type(claim)
                self._read(claim)
                for name in steps:
                    with Watch(self._root, self._call):
                        self._outcome(name, lambda step=STEPS[name], claim=claim: step(claim))
                    self._look()
                    self._read(claim)
                claim.release()
                self._look()
            self.seen.append(lines.lines)
        finally:
            logger.removeHandler(lines)
        return self

    def _claim(self) -> Any:
        return self._queue.claim(self._ticket, settled=self._setting.settled)

    def _outcome(self, name: str, work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except DamagedMail as error:
            self.seen.append((name, 'damaged', error.name, error.reason, error.raw))
        except QueueError as error:
            self.seen.append((name, str(error), error.errno, repr(error.__cause__)))
        except (TypeError, IndexError) as error:
            # Options of another type than put writes, and events that cannot be.
            self.seen.append((name, repr(error)))
        else:
            self.seen.append((name, 'done', result is not None))
            return result
        return None

    def _call(self, call: Call) -> Any:
        self.seen.append((call.name, call.place, call._arguments[1:]))
        if self._fault is not None and call.name not in ('close', 'fstat'):
            first, more, code = self._fault
            self._fault = Fault(first - 1, more if first > 0 else more - 1, code)
            if first <= 1 and more >= 0:
                raise OSError(code, os.strerror(code))
        return call.perform()

    def _read(self, claim: Any) -> None:
        envelope = claim.envelope
        self.seen.append(
            (
                type(envelope),
                [
                    getattr(envelope, each.name)
                    for each in fields(Envelope)
                    if not (each.name == 'raw' and type(envelope) is not Envelope)
                ],
                *(claim.todo, claim.attempt, claim.since, claim.interrupted, claim.ambiguous),
                [*claim.pending_events],
            )
        )

    def _look(self) -> None:
        self.seen.append(
            {
                f'{folder}/{path.name}': path.read_bytes()
                for folder in FOLDERS
                for path in (self._root / folder).iterdir()
            }
        )


def both(
    path: str, file: File, steps: list[str], setting: Setting, fault: Fault | None = None
) -> tuple[Trace, Trace]:
    """Play it with the common path, and without."""
    common = Trace(path, file, setting, fault).play(steps)
    with general_code():
        general = Trace(path, file, setting, fault).play(steps)
    return common, general


@pytest.fixture(scope='module')
def path() -> Iterator[str]:
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with TemporaryDirectory(dir=memory) as folder:
        yield f'{folder}/queue'


# Tests


@pytest.mark.parametrize('name', COMMON)
def test_common_mail_takes_the_common_path(path: str, name: str) -> None:
    """What comparisons of the two paths compare is not the general code with itself."""
    common, general = both(path, file_of(name), [], Setting())
    assert common.kind is CommonClaim
    assert general.kind is not None
    assert general.kind is not CommonClaim


@pytest.mark.parametrize('name', [name for name in RECIPES if name not in COMMON])
def test_unusual_mail_takes_the_general_path(path: str, name: str) -> None:
    """Several recipients, earlier attempts, pending events, a dead process: not the common path.

    Mail that a person had started over has one recipient and no attempts: it is common, and its
    history is removed with it.
    """
    common, _ = both(path, file_of(name), [], Setting(now=NOW + 60))
    assert (common.kind is CommonClaim) is (name in ('one started over', 'later'))


@pytest.mark.parametrize('name', RECIPES)
def test_every_step(path: str, name: str) -> None:
    """Every mail of the corpus, and everything that can be done with a claim of it."""
    setting = Setting(now=NOW + 60, hold_ambiguous=True)
    for step in STEPS:
        for steps in ([step], ['mark', step]):
            common, general = both(path, file_of(name), steps, setting)
            assert common.seen == general.seen, steps


def test_every_two_steps(path: str) -> None:
    """Whatever was done before with the claim of a common mail."""
    for first in STEPS:
        for second in STEPS:
            common, general = both(path, PLAIN, [first, second], Setting())
            assert common.seen == general.seen, (first, second)


@pytest.mark.parametrize('code', [errno.EIO, errno.ENOENT], ids=['EIO', 'ENOENT'])
@pytest.mark.parametrize('more', [0, 1, 100])
def test_every_call_that_fails(path: str, code: int, more: int) -> None:
    """Whichever call fails, once or from then on, both paths do and say the same."""
    ends = ['delivered', 'failed', 'deferred', 'delivered, reported', 'release', 'clear']
    for file in (PLAIN, file_of('one started over')):
        for end in ends:
            for number in range(1, 16):
                setting = Setting(now=NOW + 60, hold_ambiguous=True, sync=True)
                steps = ['mark', end, end, 'mark']
                fault = Fault(number, more, code)
                common, general = both(path, file, steps, setting, fault)
                assert common.seen == general.seen, (end, number)


cases = given(file=mutated(), steps=steps_taken, setting=surroundings, fault=faults)

LATER = File('new', f'5-{NOW * 1000 + 60_000:015.0f}-0000-{ID}', encode(mail(due=NOW + 60), 'C'))


AHEAD = PLAIN._replace(data=PLAIN.data.replace(b'C 001700000000000', b'C 001700000005000'))
"""Written by a clock that was ahead."""


@settings(max_examples=150)
@example(file=AHEAD, steps=['mark', 'delivered'], setting=Setting(), fault=None)
@example(file=LATER, steps=['mark', 'delivered'], setting=Setting(), fault=None)
@example(file=PLAIN, steps=['mark', 'delivered'], setting=Setting(), fault=Fault(8, 0, 5))
@cases
def test_the_two_paths_agree(
    path: str, file: File, steps: list[str], setting: Setting, fault: Fault | None
) -> None:
    """Whatever stands in a file, whatever is done with its claim and whichever call fails: the
    results, the errors, the log, the system calls and the bytes on disk are the same."""
    common, general = both(path, file, steps, setting, fault)
    assert common.seen == general.seen


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=3_000)
@cases
def test_the_two_paths_agree_always(
    path: str, file: File, steps: list[str], setting: Setting, fault: Fault | None
) -> None:
    """The same, for long."""
    common, general = both(path, file, steps, setting, fault)
    assert common.seen == general.seen


def _agree(data: bytes) -> bool:
    """Whether the general code reads the same from these bytes, if they are a common mail."""
    mail = read_common(data)
    if mail is None:
        return False
    block = decode(data)
    assert repr(mail.envelope()) == repr(block.envelope)
    assert mail.envelope() == block.envelope
    assert (mail.fixed, [mail.recipient]) == (block.fixed, [*block.envelope.recipients])
    assert (block.state, mail.since, block.retry_at) == ('C', mail.since, 0.0)
    assert mail.since == block.since
    assert (block.letters, block.entries, block.pointers) == (['T'], [], [0])
    return True


@pytest.mark.parametrize('name', ['plain', 'tagged', 'utf-8 recipient'])
def test_every_flipped_byte_of_the_head(name: str) -> None:
    """A damaged file is never common, unless the general code reads it all the same."""
    data = file_of(name).data
    assert _agree(data)
    for at in range(block_end(data)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            changed = bytearray(data)
            changed[at] ^= flip
            _agree(bytes(changed))


def test_every_length() -> None:
    """A file that was cut or extended is not common."""
    data = PLAIN.data
    for size in range(len(data)):
        assert not _agree(data[:size])
        assert not _agree(data + data[-size - 1 :])
        assert not _agree(data + bytes(size + 1))


@pytest.mark.parametrize('pattern', FIELDS)
def test_every_field_replaced(pattern: bytes) -> None:
    """Also where the checksum fits: only what the general code reads in the same way is common."""
    for file in map(file_of, RECIPES):
        for text in FIELDS[pattern]:
            data = re.sub(pattern, lambda found, text=text: found[1] + text, file.data, count=1)
            _agree(data)
            _agree(with_checksums(data))


def test_a_large_file_is_not_common(path: str) -> None:
    """The message of a file of LARGE_FILE bytes stays in the file."""
    envelope = mail(raw=b'')
    room = LARGE_FILE - len(encode(envelope, 'C'))
    for length, is_common in ((room - 1, True), (room, False), (room + 1, False)):
        data = encode(replace(envelope, raw=b'x' * length), 'C')
        common, general = both(path, PLAIN._replace(data=data), ['mark', 'delivered'], Setting())
        assert (common.kind is CommonClaim) is is_common
        assert common.seen == general.seen


def test_a_fitting_checksum_makes_a_file_that_is_read() -> None:
    """The mutations reach what stands behind the checksum."""
    data = with_checksums(PLAIN.data.replace(b'"depth": 0', b'"depth": 5'))
    assert decode(data).envelope.depth == 5
    assert lengths_of(data) == lengths_of(PLAIN.data)
    assert json.dumps(5) in repr(read_common(data))
    with pytest.raises(Unreadable, match='checksum'):
        decode(PLAIN.data.replace(b'"depth": 0', b'"depth": 5'))
