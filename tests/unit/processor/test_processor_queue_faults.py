"""The queue processor and a queue that fails: as a whole, or for one file or outcome."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailClaim
from pyramid_sendmail.retry import RetryPolicy
from tests.support.attempts import REFUSED
from tests.support.processors import (
    DEFERRED,
    READ_ONLY,
    SENDING_RESUMED,
    SENDING_STOPPED,
    ProcessorSetup,
    UnwritableClaim,
    is_empty,
    log_levels,
    make_maildir,
    put_pending_event,
    running_processor,
)
from tests.support.queues import files, make_envelope, until


@pytest.mark.parametrize('call', ['check_writable', 'scan', 'claim'])
@pytest.mark.parametrize('error', [READ_ONLY, ZeroDivisionError('a bug')])
def test_a_queue_that_fails(
    failing: ProcessorSetup,
    call: str,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent while the queue fails, and everything once it works again."""
    monkeypatch.setattr('pyramid_sendmail.processor.processor.ERROR_PAUSE', 0.02)
    failing.queue.errors[call] = error
    failing.put_many(3)
    failing.queue.wait(0)  # a scan alone finds the mail now
    with failing.running(poll=0.02):
        until(lambda: failing.queue.calls[call] >= 3)
        until(lambda: caplog.records)
        assert failing.mailer.sent == []
        if call == 'check_writable':
            assert failing.mailer.connections == 0
        if error is READ_ONLY:
            assert log_levels(caplog, SENDING_STOPPED) == ['ERROR']
        else:
            assert any(record.exc_info for record in caplog.records)
        failing.queue.errors.clear()
        failing.mailer.wait_for(3)
    assert set(failing.sent_ids().values()) == {1}
    assert is_empty(failing)


@pytest.mark.parametrize(
    'error', [QueueError(errno.EACCES, 'permission denied'), ZeroDivisionError('a bug')]
)
def test_a_file_that_cannot_be_claimed_does_not_stop_others(
    failing: ProcessorSetup, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign file, a bad sector, a bug with one mail: the log names it once, other mail is sent,
    and so is this one as soon as it can be claimed."""
    bad = failing.put()
    [name] = files(failing.queue)
    name = name.partition('/')[2]
    failing.queue.errors[name] = error
    with failing.running(poll=0.02):
        failing.put_many(10)
        failing.mailer.wait_for(10)
        until(lambda: failing.queue.calls[name] >= 3)
        assert log_levels(caplog, f'{name} cannot be claimed') == ['ERROR']
        assert log_levels(caplog, SENDING_STOPPED) == []
        until(lambda: len(files(failing.queue)) == 1)
        failing.queue.errors.clear()
        failing.mailer.wait_for(11)
    assert failing.sent_ids()[bad.message_id] == 1


def test_a_done_folder_that_cannot_be_used(
    failing: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """Events that cannot be dispatched do not stop the mail."""
    put_pending_event(failing)
    failing.queue.errors['done'] = READ_ONLY
    with failing.running(poll=0.02):
        failing.put()
        failing.mailer.wait_for(2)
        until(lambda: log_levels(caplog, 'events in done/ could not be dispatched'))
    assert empty_but_done(failing)


def empty_but_done(setup: ProcessorSetup) -> bool:
    return [name.split('/')[0] for name in files(setup.queue)] == ['done']


def test_an_outcome_that_cannot_be_recorded(
    failing: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """If the disk is full after the relay accepted a mail, nothing more is claimed and nothing is
    sent twice; sending continues when there is room."""
    failing.dispatcher.kinds = ('sent',)
    first, second = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        # Two mails are in flight: the second is answered after the first could not be written.
        if envelope.recipients == ('second@example.org',):
            assert second.wait(10)
        else:
            assert first.wait(10)

    failing.mailer.before = before
    failing.put('first@example.org')
    with failing.running(workers=2, poll=0.02):
        until(lambda: failing.mailer.connections == 1)
        failing.put('second@example.org')
        until(lambda: failing.mailer.connections == 2)
        failing.put_many(20)
        UnwritableClaim.broken = True
        first.set()
        until(lambda: log_levels(caplog, '').count('CRITICAL') == 1)
        second.set()
        until(lambda: log_levels(caplog, '').count('CRITICAL') == 2)
        sent = len(failing.mailer.sent)
        checks = failing.queue.calls['check_writable']
        until(lambda: failing.queue.calls['check_writable'] >= checks + 3)
        assert len(failing.mailer.sent) == sent == 2
        assert failing.dispatcher.pending_events == []
        UnwritableClaim.broken = False
        failing.mailer.wait_for(22)
        until(lambda: is_empty(failing))
    assert set(failing.sent_ids().values()) == {1}
    assert len(failing.dispatcher.pending_events) == 22
    assert log_levels(caplog, SENDING_RESUMED) == ['WARNING']


def test_an_outcome_is_recorded_at_the_end(failing: ProcessorSetup) -> None:
    """An outcome that could not be written is tried once more before the locks are released."""
    UnwritableClaim.broken = True
    failing.put()
    processor = failing.processor()
    original = failing.queue.close

    def mended(timeout: float) -> bool:
        UnwritableClaim.broken = False
        return True

    failing.dispatcher.flush = mended  # type: ignore[method-assign]
    with pytest.raises(QueueError):
        processor.run_once()
    assert original
    assert is_empty(failing)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that a test may fill or make read-only."""
    mounted = tmp_path / 'disk'
    mounted.mkdir()
    mount = shutil.which('mount')
    if os.geteuid() or not mount:
        pytest.skip('needs root and mount, for a small file system (run the tests in a container)')
    command = [mount, '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'mount is not allowed here: {done.stderr.strip()}')
    yield mounted
    subprocess.run(['umount', '-l', str(mounted)], check=True)


def test_a_read_only_file_system(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No connection while the file system is read-only; afterwards everything is sent once."""
    setup = ProcessorSetup(make_maildir(small_disk / 'mail'))
    setup.mailer.unavailable = 'Connection refused'
    setup.put_many(3)
    with setup.running(poll=0.02, pause=0.05):
        until(lambda: setup.mailer.connections >= 1)
        # It is busy while the processor has just opened a file.
        until(lambda: not subprocess.call(['mount', '-o', 'remount,ro', str(small_disk)]))
        setup.mailer.unavailable = None
        until(lambda: 'read-only' in caplog.text)
        connections = setup.mailer.connections
        failures = len(caplog.records)
        caplog.set_level(logging.DEBUG)
        until(lambda: len(caplog.records) >= failures + 2)
        assert setup.mailer.connections == connections
        assert setup.mailer.sent == []
        subprocess.run(['mount', '-o', 'remount,rw', str(small_disk)], check=True)
        setup.mailer.wait_for(3)
        until(lambda: is_empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    setup.queue.close()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open('ab', 0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_file_system(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent until there is room to record an outcome."""
    monkeypatch.setattr('pyramid_sendmail.queue.maildir.queue.PROOF_INTERVAL', 0.0)
    setup = ProcessorSetup(make_maildir(small_disk / 'mail'))
    setup.put_many(3)
    filler = small_disk / 'filler'
    with setup.running(poll=0.02, pause=0.05):
        setup.mailer.wait_for(3)
        until(lambda: is_empty(setup))
        # Stored while there is room; to publish needs none.
        put = setup.queue.put([make_envelope(queued_at=setup.clock()) for _ in range(2)])
        for _ in range(10):
            # Removed files that are still open, and a last probe, take room for a moment.
            fill(filler)
            time.sleep(0.02)
        put.publish()
        until(lambda: 'No space left' in caplog.text)
        assert len(setup.mailer.sent) == 3
        filler.unlink()
        setup.mailer.wait_for(5)
        until(lambda: is_empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    setup.queue.close()


@pytest.mark.parametrize('call', ['check_writable', 'scan', 'claim'])
def test_run_once_and_a_queue_that_fails(failing: ProcessorSetup, call: str) -> None:
    """``run_once`` raises the error, and sends nothing."""
    failing.put_many(3)
    failing.queue.errors[call] = READ_ONLY
    with pytest.raises(QueueError):
        failing.processor().run_once()
    assert failing.mailer.sent == []
    failing.queue.errors.clear()
    assert failing.processor().run_once() == Tally(delivered=3)


def test_run_once_and_a_bug(failing: ProcessorSetup) -> None:
    """``run_once`` ends with an error, not as if everything had been sent."""
    failing.put()
    failing.queue.errors['check_writable'] = ZeroDivisionError('a bug')
    with pytest.raises(MailerUnavailable, match='ZeroDivisionError'):
        failing.processor().run_once()


def damage(setup: ProcessorSetup) -> list[str]:
    """Put everything into the queue that should not be there; return the names."""
    new = Path(setup.queue.path, 'new')
    names = [f'5-{1700000000000:015d}-0000-{n:032x}' for n in range(6)]
    whole = make_envelope()
    setup.queue.put([whole]).publish()
    [path] = [each for each in new.iterdir() if whole.id in each.name]
    data = path.read_bytes()
    path.unlink()
    (new / names[0]).write_bytes(b'')
    (new / names[1]).write_bytes(data[:-3])
    (new / names[2]).write_bytes(data.replace(b'Hello', b'Hallo'))
    (new / names[3]).write_bytes(os.urandom(4096))
    (new / names[4]).mkdir()
    (new / names[5]).symlink_to('nowhere')
    (new / 'README').write_text('not a mail')
    (new / 'nul').write_bytes(b'\0' * 100)
    return [*names, 'README', 'nul']


@pytest.mark.parametrize('once', [False, True])
def test_damaged_files_do_not_stop_others(on_disk: ProcessorSetup, once: bool) -> None:
    """They become error events and move to failed/, and all other mail is delivered."""
    on_disk.dispatcher.kinds = ('error', 'sent')
    on_disk.put_many(10)
    names = damage(on_disk)
    on_disk.put_many(10)
    processor = on_disk.processor()
    if once:
        assert processor.run_once() == Tally(delivered=20)
    else:
        with running_processor(processor):
            on_disk.mailer.wait_for(20)
            until(lambda: len(files(on_disk.queue)) == len(names))
    damaged = [event for event in on_disk.dispatcher.pending_events if event.kind == 'error']
    assert len(damaged) == len(names)
    assert all(event.reason.startswith('damaged: ') for event in damaged)
    assert sorted(files(on_disk.queue)) == sorted(f'failed/{name}' for name in names)


def test_damaged_files_in_done(on_disk: ProcessorSetup) -> None:
    """A damaged file in done/ becomes an error event too."""
    on_disk.dispatcher.kinds = ('error',)
    Path(on_disk.queue.path, 'done', f'5-{1:015d}-0001-{1:032x}').write_bytes(b'nonsense')
    on_disk.put()
    assert on_disk.processor().run_once() == Tally(delivered=1)
    assert len(on_disk.dispatcher.pending_events) == 1


def test_a_damaged_file_whose_subscriber_fails(on_disk: ProcessorSetup) -> None:
    """The claim that stands for the file implements the interface, and changes nothing."""
    dispatched: list[Any] = []
    on_disk.dispatcher.dispatch = lambda claim, events: dispatched.append((claim, events))  # type: ignore[method-assign]
    Path(on_disk.queue.path, 'new', 'README').write_bytes(b'nonsense')
    on_disk.processor().run_once()
    [(claim, events)] = dispatched
    assert verifyObject(IMailClaim, claim)
    assert claim.envelope.raw == b'nonsense'
    assert (list(claim.pending_events), list(claim.todo)) == ([], [])
    claim.mark_ambiguous(())
    claim.clear_ambiguous()
    claim.settle(events)
    claim.retry_events(events, 0.0)
    claim.acknowledge(events)
    claim.release()


def test_a_file_that_vanishes(on_disk: ProcessorSetup) -> None:
    """If a file vanishes between the scan and the claim, the others are sent."""
    envelopes = on_disk.put_many(5)
    original = on_disk.queue.scan

    def scan(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        for path in Path(on_disk.queue.path, 'new').glob(f'*{envelopes[2].id}'):
            path.unlink()
        return found

    on_disk.queue.scan = scan
    with on_disk.running():
        on_disk.mailer.wait_for(4)
    assert len(on_disk.mailer.sent) == 4


def test_old_queues_of_one_host(on_disk: ProcessorSetup) -> None:
    """zope.sendmail's file names end alike if the host's name has a hyphen: a file that arrives
    during the run is not taken for an earlier one."""
    left = [1, 2]

    def write(number: int) -> None:
        Path(on_disk.queue.path, 'new', f'17000000{number}.123.web-1').write_bytes(
            b'X-Zope-From: a@example.org\nX-Zope-To: ann@example.org\nSubject: x\n\nHello\n'
        )

    on_disk.mailer.before = lambda envelope: write(left.pop()) if left else None
    write(0)
    assert on_disk.processor().run_once() == Tally(delivered=3)


def test_a_file_system_that_fills_between_two_proofs(
    small_disk: Path,
) -> None:
    """What is sent then has its outcome, as soon as there is room again: nothing is lost, and
    nothing is sent twice."""
    setup = ProcessorSetup(make_maildir(small_disk / 'mail'))
    setup.mailer.script('bob@example.org', DEFERRED)
    setup.mailer.script('eve@example.org', REFUSED)
    filler = small_disk / 'filler'
    with setup.running(poll=0.02, pause=0.05, policy=RetryPolicy(delays=(0.05,), jitter=0.0)):
        setup.put()
        setup.mailer.wait_for(1)
        until(lambda: is_empty(setup))
        put = setup.queue.put(
            [
                make_envelope(f'{word}@example.org', queued_at=setup.clock())
                for word in ('ann', 'bob', 'eve')
            ]
        )
        for _ in range(10):
            fill(filler)
            time.sleep(0.02)
        put.publish()
        setup.mailer.wait_for(3)
        filler.unlink()
        setup.mailer.wait_for(5)
        until(lambda: [name.split('/')[0] for name in files(setup.queue)] == ['failed'])
    assert sorted(setup.sent_ids().values()) == [1, 1, 1, 2]
    setup.queue.close()
