"""What the crash matrix and the fault shim have found, each mended defect by its name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.format import decode
from tests.crash.syscalls import STOPPED, Call, Watch
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    files,
    forked,
    make_envelope,
    open_files,
    reap,
    the_file,
)


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock(), hold_ambiguous=True)
    queue.prepare()
    queue.close()
    return queue


def failing(step: str, error: int) -> Callable[[Call], Any]:
    """A policy: what is asked of a place fails."""

    def policy(call: Call) -> Any:
        if call.step == step:
            if call.name == 'close':
                call.perform()
            raise OSError(error, os.strerror(error))
        return call.perform()

    return policy


def stopped(
    queue: MaildirQueue, step: str, work: Callable[[], object], *, torn: bool = False
) -> None:
    """Do it in a child that is stopped at the first call of that name."""

    def policy(call: Call) -> Any:
        if call.step == step:
            if torn:
                call.perform_half()
            os._exit(STOPPED)
        return call.perform()

    def watched() -> None:
        with Watch(queue.path, policy):
            work()

    assert reap(forked(watched)) == STOPPED


def test_a_probe_of_a_stopped_process_is_swept(queue: MaildirQueue) -> None:
    """A process that stopped over a probe left it beside the folders for ever."""
    stopped(queue, 'flock lock-probe', queue.prepare)
    stopped(queue, 'write probe', queue.check_writable)
    left = [name for name in os.listdir(queue.path) if 'probe' in name]
    assert len(left) == 2
    MaildirQueue(queue.path).prepare()
    assert not [name for name in os.listdir(queue.path) if 'probe' in name]


def test_a_probe_that_is_swept_while_in_use_does_no_harm(queue: MaildirQueue) -> None:
    """Another process starts while this one proves that it can write, and that locks work."""
    swept = []

    def policy(call: Call) -> Any:
        result = call.perform()
        if call.place in ('probe', 'lock-probe') and call.name in ('open', 'flock', 'write'):
            for name in os.listdir(queue.path):
                if 'probe' in name and len(swept) < 9:
                    swept.append(name)
                    os.unlink(f'{queue.path}/{name}')
        return result

    with Watch(queue.path, policy):
        queue.prepare()
        queue.check_writable()
    queue.close()
    assert {name.partition('probe')[0] for name in swept} == {'', 'lock-'}


def test_half_a_mark_leaves_a_mail_in_doubt(queue: MaildirQueue) -> None:
    """Recovery wrote C over V together with the letters: after half of that write a mail in doubt
    was sent."""
    envelope = make_envelope()
    assert reap(forked(lambda: queue.put([envelope]))) == 0
    stopped(queue, 'pwrite tmp', lambda: queue.scan(NOW), torn=True)
    claim = claimed(queue)
    assert (claim.todo, [event.kind for event in claim.pending_events]) == ((), ['error'])
    claim.acknowledge(claim.pending_events)
    assert decode(the_file(queue, 'failed').read_bytes()).state == 'C'


def test_a_reason_is_there_before_its_file(queue: MaildirQueue) -> None:
    """A process that stopped in between left a file in failed/ without a reason."""
    name = f'5-{round(NOW * 1000):015d}-0000-{"a" * 32}'
    Path(queue.path, 'new', name).write_bytes(b'X-Env')
    reason = Path(queue.path, 'reasons', f'{name}.txt')
    (ticket,), _ = queue.scan(NOW)
    stopped(queue, 'rename new', lambda: queue.claim(ticket))
    assert files(queue) == [f'new/{name}']
    with pytest.raises(DamagedMail):
        queue.claim(ticket)
    assert files(queue) == [f'failed/{name}']
    assert reason.read_text() != ''


def test_a_file_that_stays_has_no_reason(queue: MaildirQueue) -> None:
    """What cannot be moved to failed/ leaves no reason beside the folders for it."""
    name = f'5-{round(NOW * 1000):015d}-0000-{"a" * 32}'
    Path(queue.path, 'new', name).write_bytes(b'X-Env')
    (ticket,), _ = queue.scan(NOW)
    with Watch(queue.path, failing('rename new', errno.EIO)):
        assert queue.claim(ticket) is None
    assert files(queue) == [f'new/{name}']
    assert os.listdir(f'{queue.path}/reasons') == []


def test_a_file_that_cannot_be_looked_at_is_closed(queue: MaildirQueue) -> None:
    """Each scan left a descriptor open, until none was left for the mail."""
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)
    before = open_files()
    with Watch(queue.path, failing('fstat new', errno.EIO)), pytest.raises(QueueError):
        queue.claim(ticket)
    assert open_files() - before == set()


def test_a_mark_that_cannot_be_synced_is_taken_back(queue: MaildirQueue) -> None:
    """mail.ambiguous = hold: the dot does not leave where its mark cannot be synced, and the mail,
    of which the mark said that it may have left, was held for ever."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    with Watch(queue.path, failing('fsync new', errno.EIO)), pytest.raises(QueueError):
        claim.mark_ambiguous(envelope.recipients)
    claim.release()
    claim = claimed(queue)
    assert (claim.todo, claim.interrupted) == (envelope.recipients, '')
    claim.release()


def test_a_commit_does_not_break_over_a_trigger(queue: MaildirQueue) -> None:
    """An error on closing the trigger came out of publish, and out of tpc_finish with it."""
    queue.wait(0)
    put = queue.put([make_envelope()])
    with Watch(queue.path, failing('close trigger', errno.EIO)):
        put.publish()
    queue.close()
    assert len(queue.scan(NOW)[0]) == 1


@pytest.mark.parametrize('call', ['flock', 'stat', 'fstat'])
def test_a_put_that_cannot_lock_leaves_nothing(queue: MaildirQueue, call: str) -> None:
    """The vote said no, and left an empty file in tmp/."""
    with Watch(queue.path, failing(f'{call} tmp', errno.ENOLCK)), pytest.raises(QueueError):
        queue.put([make_envelope()])
    assert files(queue) == []


def test_a_queue_that_cannot_be_waited_for_says_so(queue: MaildirQueue) -> None:
    """No descriptor for the pipe: prepare raised a bare OSError without a remedy."""
    with (
        Watch(queue.path, failing('pipe2 pipe', errno.EMFILE)),
        pytest.raises(QueueError, match='ulimit -n'),
    ):
        queue.prepare()


def test_mail_that_was_moved_is_not_called_stuck(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder could not be synced after the moves, and the log said that the mail had not been
    moved."""
    put = queue.put([make_envelope()])
    with Watch(queue.path, failing('fsync new/', errno.EIO)):
        put.publish()
    assert files(queue)[0].startswith('new/')
    (record,) = caplog.records
    assert record.levelname == 'CRITICAL'
    assert 'power cut' in record.getMessage()
    assert 'could not be moved' not in record.getMessage()
