"""A power cut at every step of a commit: what mail.queue_sync promises is what is there."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.directory import Directory
from pyramid_sendmail.queue.maildir.format import Unreadable, decode
from tests.crash.bench import log
from tests.crash.place import Lines
from tests.crash.power import Recording, State
from tests.crash.syscalls import Watch
from tests.support.folders import folder as tmp_path
from tests.support.queues import Clock, make_envelope

__all__ = ['log', 'tmp_path']

Sync = Literal['always', 'vote']

MAILS = {
    'one': (make_envelope(id='a' * 32),),
    'three': tuple(make_envelope(id=digit * 32) for digit in 'abc'),
}


def commit(path: Path, mails: tuple[Envelope, ...], sync: Sync, end: str) -> Recording:
    """Record a transaction: it ends with 'publish' or 'discard'."""
    recording = Recording()
    queue = MaildirQueue(str(path), late_sync=sync == 'vote', clock=Clock())
    queue.prepare()
    wanted: list[Directory] = []
    late = queue._late_sync
    if late is not None:
        # What its thread does comes last here.
        late.request = wanted.append  # type: ignore[method-assign]
    with Watch(path, recording):
        put = queue.put(mails)
        recording.mark('voted')
        recording.mark(f'{end} began')
        getattr(put, end)()
        recording.mark(f'{end} returned')
        if late is not None:
            late._wanted = wanted
            late._sync_now()
        recording.mark('synced')
    queue.close()
    return recording


def verify(state: State, mails: tuple[Envelope, ...], path: Path, *, sync: Sync, send: bool) -> str:
    """Let a processor recover, and check what became of each mail; return the word for it."""
    queue = MaildirQueue(str(path), in_doubt='send' if send else 'hold', clock=Clock())
    queue.prepare()
    queue.scan(Clock()())
    found = {}
    for envelope in mails:
        places = [each for each in path.glob('*/*') if envelope.id in each.name.partition('.')[0]]
        files = [each for each in places if each.parent.name not in ('reasons', 'tmp')]
        assert not [each for each in places if each.parent.name == 'tmp']
        assert len(files) <= 1, files
        # In done/ while its event is pending.
        word_of = {'new': 'new', 'done': 'held', 'failed': 'held'}
        found[envelope] = word_of[files[0].parent.name] if files else 'gone'
        if files:
            try:
                assert decode(files[0].read_bytes()).envelope == envelope
            except Unreadable:
                found[envelope] += ', damaged'
    queue.close()
    words = set(found.values())
    marks = state.marks
    certain = 'synced' in marks or (sync == 'always' and 'publish returned' in marks)
    if 'discard began' in marks:
        assert words <= {'gone', 'held', *(['new'] if send else [])}, (marks, found)
    elif 'publish began' in marks and certain:
        assert words == {'new'}, (marks, found)
    elif 'publish began' in marks:
        assert words <= {'new', *([] if send else ['held'])}, (marks, found)
    elif 'voted' in marks:
        assert words == {'new' if send else 'held'}, (marks, found)
    else:
        # Torn files are kept for a person; a claim of one in new/ puts it aside.
        assert send or not {'new', 'new, damaged'} & words, (marks, found)
    return ' and '.join(sorted(words))


@pytest.mark.parametrize('send', [False, True], ids=['hold', 'send'])
@pytest.mark.parametrize('end', ['publish', 'discard'])
@pytest.mark.parametrize('sync', ['always', 'vote'])
@pytest.mark.parametrize('mails', ['one', pytest.param('three', marks=pytest.mark.slow)])
def test_a_power_cut(
    tmp_path: Path, log: Lines, mails: str, sync: Sync, end: str, send: bool
) -> None:
    """Committed mail is published or in doubt, and never lost; uncommitted mail is never sent."""
    recording = commit(tmp_path / 'recorded', MAILS[mails], sync, end)
    words: Counter[tuple[str, str]] = Counter()
    for number, state in enumerate(recording.cuts(random.Random(1), most=40)):
        path = tmp_path / str(number)
        state.lay(path)
        word = verify(state, MAILS[mails], path, sync=sync, send=send)
        words[state.marks[-1] if state.marks else '', word] += 1
        shutil.rmtree(path)
    if end == 'publish':
        doubt = 'new' if send else 'held'
        assert words['publish returned', 'new']
        assert words['voted', doubt]
        # That is what vote gives up, and always does not.
        assert bool(words['publish returned', 'held']) is (sync == 'vote' and not send)
    assert words['', 'gone']
