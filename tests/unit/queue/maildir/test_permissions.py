"""Which users may use a queue: one, or the members of a group; all others are refused."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import ticket_of
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.permissions import Permissions
from pyramid_sendmail.queue.maildir.probes import sweep
from pyramid_sendmail.queue.maildir.wakeup import WakeUp
from tests.support.queues import (
    NOW,
    Clock,
    crashes,
    deferred,
    failed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
)

FOLDERS = ('tmp', 'new', 'cur', 'done', 'failed', 'reasons')

GROUP = 52100
WEB, PROCESSOR, STRANGER = (52001, 52001), (52002, 52002), (52003, 52003)
"""Users, with the groups that they have besides GROUP."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason='to become another user needs root')


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def shared(place: Path) -> Path:
    """A queue's folder as an administrator makes it for two users."""
    root = place / 'queue'
    root.mkdir()
    os.chown(root, 0, GROUP)
    root.chmod(0o2770)
    return root


def open_queue(root: Path, *, group: bool = True, **options: Any) -> MaildirQueue:
    return MaildirQueue(str(root), group=group, clock=Clock(), **options)


def become(
    user: tuple[int, int], work: Callable[[], None], *, member: bool = True, umask: int = 0o077
) -> None:
    """Do the work in a child process of that user; what it raises is an error here."""

    def child() -> None:
        turn_into(user, member=member, umask=umask)
        work()

    assert reap(forked(child)) == 0


def turn_into(user: tuple[int, int], *, member: bool = True, umask: int = 0o077) -> None:
    os.umask(umask)
    os.setgroups([GROUP] if member else [])
    os.setgid(user[1])
    os.setuid(user[0])


class Lines(logging.Handler):
    """What is logged goes into a pipe, a line each."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        os.write(self.descriptor, f'{record.getMessage()}\n'.encode())


def output_as(user: tuple[int, int], work: Callable[[], object], *, member: bool = True) -> str:
    """Run ``work`` as that user; return the lines that it logged, and its error, if any."""
    reading, writing = os.pipe()

    def listen() -> None:
        logging.getLogger('pyramid_sendmail').addHandler(Lines(writing))
        try:
            work()
        except QueueError as error:
            os.write(writing, str(error).encode())

    become(user, listen, member=member)
    os.close(writing)
    with open(reading, encoding='utf-8') as lines:
        return lines.read()


@pytest.fixture
def switched(place: Path) -> Path:
    """A private queue of WEB, with queued mail, a dead letter and a FIFO, that was given to the
    group and has not been used by it yet."""
    root = place / 'queue'
    place.chmod(0o1777)

    def live_alone() -> None:
        queue = open_queue(root, group=False)
        queue.prepare()
        queue.put([make_envelope(id=c * 32) for c in 'abc']).publish()
        claim: Any = queue.claim(queue.scan(NOW)[0][0])
        claim.settle([failed(claim.envelope)], report=False)

    become(WEB, live_alone)
    for path in [root, *root.rglob('*')]:
        os.chown(path, -1, GROUP)
    return root


def live(queue: MaildirQueue) -> None:
    """Have mail in every state that there is."""
    root = Path(queue.path)
    queue.prepare()
    queue.put([make_envelope() for _ in range(4)]).publish()
    (root / 'new' / 'foreign').write_text('?')
    (root / 'new' / 'foreign').chmod(queue._files.permissions.file)
    with pytest.raises(DamagedMail):
        queue.claim(ticket_of('new', 'foreign'))
    claims: list[Any] = [queue.claim(ticket) for ticket in queue.scan(NOW)[0]]
    first, second, third, _ = claims
    first.settle([failed(first.envelope)], report=False)
    second.settle([deferred(second.envelope)], retry_at=NOW + 60, report=False)
    third.settle([sent(third.envelope)])
    queue.put([make_envelope()])


# The modes


@pytest.mark.parametrize('group', [False, True], ids=['private', 'group'])
@pytest.mark.parametrize('umask', [0o000, 0o022, 0o077])
def test_modes_whatever_the_umask(tmp_path: Path, umask: int, group: bool) -> None:
    """Files 0600 and folders 0700, or 0660 and 2770, in every state that a mail goes through."""
    root = tmp_path / 'queue'
    old = os.umask(umask)
    try:
        live(open_queue(root, group=group))
    finally:
        os.umask(old)
    modes = {path: path.stat().st_mode for path in [root, *root.rglob('*')]}
    folder, file = (0o2770, 0o660) if group else (0o700, 0o600)
    for path, mode in modes.items():
        assert stat.S_IMODE(mode) == (folder if stat.S_ISDIR(mode) else file), path
    assert {path.parent.name for path in modes} >= set(FOLDERS)
    assert stat.S_ISFIFO(modes[root / 'trigger'])


def test_a_private_queue_is_asked_to_be_no_more(tmp_path: Path) -> None:
    """A folder that others may read is accepted: only writing sends mail."""
    open_queue(tmp_path / 'queue', group=False).prepare()
    (tmp_path / 'queue').chmod(0o755)
    open_queue(tmp_path / 'queue', group=False).prepare()


# Two users


@as_root
@pytest.mark.parametrize('umask', [0o000, 0o077])
def test_two_users_share_a_queue(shared: Path, umask: int) -> None:
    """One puts mail, the other sends it, and the first handles the rest: retries, dead letters, a
    put of a dead process, the history; each wakes the other."""

    def put() -> None:
        queue = open_queue(shared)
        queue.put([make_envelope(id=f'{n:032x}') for n in range(4)]).publish()
        queue.put([make_envelope(id='d' * 32), make_envelope(id='e' * 32)])

    def send() -> None:
        queue = open_queue(shared)
        queue.prepare()
        tickets, _ = queue.scan(NOW)
        claims: list[Any] = [queue.claim(ticket) for ticket in tickets if ticket.state == 'new']
        first, second, third, fourth = claims
        first.settle([sent(first.envelope)], report=False)
        second.settle([deferred(second.envelope)], retry_at=NOW + 60, report=False)
        third.settle([failed(third.envelope)], report=False)
        fourth.mark_ambiguous(fourth.envelope.recipients)

    def look_after() -> None:
        queue = open_queue(shared)
        queue._clock.now = NOW + 60  # type: ignore[attr-defined]
        queue.prepare()
        queue.put([make_envelope()]).publish()
        assert queue.wait(0), 'it is woken by the pipe that the other has made'
        claims: list[Any] = [queue.claim(ticket) for ticket in queue.scan(NOW + 60)[0]]
        words = sorted(claim.interrupted for claim in claims if claim.todo)
        assert words == ['', '', 'ambiguous']
        for claim in claims:
            if claim.todo:
                claim.settle([sent(claim.envelope)], report=False)
            else:
                assert claim.pending_events[0].reason.startswith('in doubt')
                claim.acknowledge(claim.pending_events)
        assert len(list(Path(shared, 'reasons').iterdir())) == 1, 'the dead letter has its history'
        assert queue.purge_failed(time.time() + 60) == 1

    become(WEB, put, umask=umask)
    become(PROCESSOR, send, umask=umask)
    become(WEB, look_after, umask=umask)
    left = files(open_queue(shared))
    assert [name.rpartition('-')[2] for name in left] == ['d' * 32, 'e' * 32]
    assert {name.split('/')[0] for name in left} == {'failed'}
    owners = {path.stat().st_gid for path in [shared, *shared.rglob('*')]}
    assert owners == {GROUP}


@as_root
def test_both_users_renew_the_heartbeat(shared: Path) -> None:
    """A processor of either user shows that it runs, and both see it; a user outside the group
    does not."""
    path = shared / 'processor'

    def renew() -> None:
        queue = open_queue(shared)
        queue.prepare()
        queue.renew_heartbeat(NOW)
        assert queue.last_heartbeat() == NOW

    for user in (WEB, PROCESSOR, WEB):
        assert output_as(user, renew) == ''
    assert stat.S_IMODE(path.stat().st_mode) == 0o660

    def outside() -> None:
        assert open_queue(shared).last_heartbeat() is None

    become(STRANGER, outside, member=False)


@as_root
def test_a_user_outside_the_group_is_refused(shared: Path) -> None:
    """The error names the group, the user and the command that helps."""
    open_queue(shared).prepare()

    def work() -> None:
        with pytest.raises(QueueError, match=f'usermod -aG {GROUP} {STRANGER[0]}'):
            open_queue(shared).put([make_envelope()])
        with pytest.raises(QueueError, match=f'queue {shared} belongs to group {GROUP}'):
            open_queue(shared).prepare()

    shared.parent.chmod(0o755)
    become(STRANGER, work, member=False)


@as_root
def test_a_private_queue_of_another_user_is_refused(place: Path) -> None:
    """The error names both users and the two remedies."""
    place.chmod(0o1777)
    become(WEB, lambda: open_queue(place / 'queue', group=False).prepare())
    with pytest.raises(
        QueueError, match=rf'belongs to user {WEB[0]}, .* as user root; .*queue_mode'
    ):
        open_queue(place / 'queue', group=False).put([make_envelope()])
    assert list((place / 'queue' / 'tmp').iterdir()) == []


@as_root
@pytest.mark.parametrize('folder', ['new', 'done'])
def test_a_file_that_only_the_other_user_can_read_stays(shared: Path, folder: str) -> None:
    """A file that was made before the queue was shared is not a dead letter: it stays, is logged
    once with the remedy, and the other mail is sent."""

    def put() -> None:
        queue = open_queue(shared)
        queue.put([make_envelope(id=c * 32) for c in 'ab']).publish()
        if folder == 'done':
            for ticket in queue.scan(NOW)[0]:
                claim: Any = queue.claim(ticket)
                claim.settle([sent(claim.envelope)])
                claim.release()

    become(WEB, put)
    path = min((shared / folder).iterdir())
    path.chmod(0o600)

    def send() -> None:
        queue = open_queue(shared)
        for _ in range(2):
            claims = [queue.claim(ticket) for ticket in queue.scan(NOW, all_events=True)[0]]
            assert [claim.envelope.id for claim in claims if claim] == ['b' * 32]
            for claim in claims:
                if claim:
                    claim.release()

    text = output_as(PROCESSOR, send)
    assert text.count(f'{path} stays where it is') == 1
    assert f'may not be read and written by user {PROCESSOR[0]}; chmod 660 it' in text
    assert 'mail.queue_mode = group' in text
    assert path.exists()
    path.chmod(0o660)
    assert output_as(PROCESSOR, lambda: open_queue(shared).scan(NOW)) == ''


@as_root
def test_lines_about_files_of_the_other_user_have_an_end(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many such files there are, each is logged once, up to a limit."""
    monkeypatch.setattr('pyramid_sendmail.queue.maildir.files._LOGGED_NAMES', 3)
    become(WEB, lambda: open_queue(shared).put([make_envelope() for _ in range(5)]).publish())
    for path in (shared / 'new').iterdir():
        path.chmod(0o600)

    def scan() -> None:
        queue = open_queue(shared)
        assert [queue.claim(ticket) for ticket in queue.scan(NOW)[0]] == [None] * 5

    assert output_as(PROCESSOR, scan).count('stays where it is') == 3


@as_root
def test_a_private_queue_is_shared_with_what_waits_in_it(switched: Path) -> None:
    """Its owner opens the folders, the mail, the histories and the FIFO to the group; until then
    the other user gets an error with the remedy, and changes nothing."""
    before = {path: path.lstat().st_mode for path in [switched, *switched.rglob('*')]}
    text = output_as(PROCESSOR, open_queue(switched).prepare)
    assert f'chmod 2770 {switched}, or start the process of user {WEB[0]} first' in text
    assert {path: path.lstat().st_mode for path in before} == before
    become(WEB, lambda: open_queue(switched).prepare())
    for path in [switched, *switched.rglob('*')]:
        mode = path.stat().st_mode
        assert stat.S_IMODE(mode) == (0o2770 if stat.S_ISDIR(mode) else 0o660), path

    def send() -> None:
        queue = open_queue(switched)
        queue.prepare()
        for ticket in queue.scan(NOW)[0]:
            claim: Any = queue.claim(ticket)
            claim.settle([sent(claim.envelope)], report=False)
        assert queue.purge_failed(time.time() + 60) == 1
        assert files(queue) == []

    assert output_as(PROCESSOR, send) == ''


@as_root
def test_what_another_group_could_read_is_not_opened_to_it(switched: Path) -> None:
    """A file that was not given to the queue's group stays its maker's alone."""
    path = min((switched / 'new').iterdir())
    os.chown(path, -1, STRANGER[1])
    become(WEB, lambda: open_queue(switched).prepare())
    assert {stat.S_IMODE(file.stat().st_mode) for file in (switched / 'new').iterdir()} == {
        0o600,
        0o660,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@as_root
def test_an_owner_outside_the_group_is_refused(shared: Path) -> None:
    """The system would remove the setgid bit from the owner's folders: no folder is made, and the
    error has the remedy."""
    os.chown(shared, WEB[0], GROUP)
    shared.chmod(0o2770)
    text = output_as(WEB, open_queue(shared).prepare, member=False)
    assert f'usermod -aG {GROUP} {WEB[0]}' in text
    assert list(shared.iterdir()) == []


@as_root
def test_the_remedy_is_not_to_join_the_group_of_root(place: Path) -> None:
    """A queue that root has made has root's group: it needs another one."""
    open_queue(place / 'queue').prepare()
    text = output_as(WEB, open_queue(place / 'queue').prepare)
    assert f'chgrp -R GROUP {place / "queue"}' in text
    assert 'usermod' not in text


@as_root
def test_a_process_that_does_not_know_of_the_group_is_refused(shared: Path) -> None:
    """Without mail.queue_mode the owner would put mail that no other user can send: the vote fails
    with the setting to write."""
    os.chown(shared, WEB[0], GROUP)
    shared.chmod(0o2770)
    become(WEB, lambda: open_queue(shared).prepare())
    text = output_as(WEB, lambda: open_queue(shared, group=False).put([make_envelope()]).publish())
    assert f'the group {GROUP} may write to {shared}; set mail.queue_mode = group' in text
    assert files(open_queue(shared)) == []


@as_root
def test_a_folder_that_keeps_the_other_users_files_is_put_right(shared: Path) -> None:
    """In a sticky folder a user could not move the files of the other."""
    os.chown(shared, WEB[0], GROUP)
    shared.chmod(0o2770)
    become(WEB, lambda: open_queue(shared).prepare())
    (shared / 'new').chmod(0o3770)
    assert f'chmod 2770 {shared / "new"}' in output_as(PROCESSOR, open_queue(shared).prepare)
    become(WEB, lambda: open_queue(shared).prepare())
    assert stat.S_IMODE((shared / 'new').stat().st_mode) == 0o2770


@as_root
@pytest.mark.parametrize('mode', [0o2770, 0o2775, 0o2771])
def test_a_mode_that_will_do_is_left_as_it_is(shared: Path, mode: int) -> None:
    """Neither of two users may change what the administrator has made, nor has to."""
    shared.chmod(mode)
    for user in (WEB, PROCESSOR):
        assert output_as(user, open_queue(shared).prepare) == ''
    assert stat.S_IMODE(shared.stat().st_mode) == mode


@pytest.mark.slow
@as_root
def test_a_stopped_put_of_a_shared_queue_is_brought_to_its_end_by_the_other(
    shared: Path,
) -> None:
    """Stopped at any call, with the strictest umask: the other user finds no file that it cannot
    read, and leaves nothing behind."""
    become(WEB, lambda: open_queue(shared).prepare())

    def put() -> None:
        turn_into(WEB)
        open_queue(shared).put([make_envelope(), make_envelope()]).publish()

    def recover() -> None:
        queue = open_queue(shared, in_doubt='send')
        queue.prepare()
        queue.scan(NOW)
        for ticket in queue.scan(NOW)[0]:
            claim: Any = queue.claim(ticket)
            claim.settle([sent(claim.envelope)], report=False)
        assert files(queue) == []

    def check() -> None:
        assert 'may not be read' not in output_as(PROCESSOR, recover)
        beside = {path.name for path in shared.iterdir()}
        assert beside <= {*FOLDERS, 'trigger'}

    assert crashes(put, check) > 20


def test_a_file_that_is_swept_away_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that starts at that moment does a put no harm."""
    queue = open_queue(tmp_path / 'queue')
    queue.prepare()
    real, swept = os.fchmod, 0

    def fchmod(descriptor: int, mode: int) -> None:
        nonlocal swept
        real(descriptor, mode)
        if swept < 3:
            swept += 1
            sweep(open_queue(tmp_path / 'queue')._files)

    monkeypatch.setattr(os, 'fchmod', fchmod)
    queue.put([make_envelope()]).publish()
    assert swept == 3
    assert len(files(queue)) == 1


def test_a_new_file_of_a_shared_queue_is_new(tmp_path: Path) -> None:
    """What lies where it is to be is never written over, and nothing is left of the attempt."""
    store = QueueFiles(str(tmp_path), group=True)
    path = tmp_path / 'tmp' / 'other'
    path.parent.mkdir()
    path.write_bytes(b'of another user')
    with pytest.raises(FileExistsError):
        store.create('tmp', 'other')
    assert path.read_bytes() == b'of another user'
    assert [*tmp_path.rglob('*')] == [path.parent, path]


def test_a_shared_queue_whose_folder_was_removed_is_made_again(tmp_path: Path) -> None:
    """As a private one is, by the next put."""
    queue = open_queue(tmp_path / 'queue')
    queue.put([make_envelope()]).publish()
    (tmp_path / 'queue' / 'tmp').rmdir()
    queue.put([make_envelope()]).publish()
    assert [name.partition('/')[0] for name in files(queue)] == ['new', 'new']
    assert {path.name for path in (tmp_path / 'queue').iterdir()} == {*FOLDERS} - {'reasons'}


@pytest.mark.parametrize('mode', [0o660, 0o600])
def test_a_trigger_of_the_other_kind_is_put_right(tmp_path: Path, mode: int) -> None:
    """The owner of the FIFO corrects its mode."""
    path = tmp_path / 'trigger'
    os.mkfifo(path, 0o600)
    path.chmod(0o606)
    trigger = WakeUp(QueueFiles(str(path.parent), group=mode == 0o660))
    trigger.listen()
    trigger.close()
    assert stat.S_IMODE(path.stat().st_mode) == mode


@as_root
def test_the_owner_puts_the_modes_right(shared: Path) -> None:
    """A private queue becomes a shared one when its owner says so; others can only ask for it."""
    shutil.rmtree(shared)
    shared.parent.chmod(0o1777)
    become(WEB, lambda: open_queue(shared, group=False).prepare())
    for path in [shared, *shared.iterdir()]:
        os.chown(path, -1, GROUP)

    def refused() -> None:
        with pytest.raises(QueueError, match=f'chmod 2770 {shared}'):
            open_queue(shared).prepare()

    shared.chmod(0o750)
    become(PROCESSOR, refused)
    become(WEB, lambda: open_queue(shared).prepare())
    assert {stat.S_IMODE(path.stat().st_mode) for path in [shared, *shared.glob('[a-s]*')]} == {
        0o2770
    }
    become(PROCESSOR, lambda: open_queue(shared).put([make_envelope()]).publish())


@as_root
def test_a_folder_of_another_group_is_refused(shared: Path) -> None:
    """What is put there could not be sent by the other user."""
    open_queue(shared).prepare()
    os.chown(shared / 'cur', -1, STRANGER[1])
    with pytest.raises(QueueError, match=f'cur belongs to group 52003.*; chgrp -R {GROUP}'):
        open_queue(shared).prepare()


# Refused for every user


def uses(queue: MaildirQueue) -> list[Callable[[], object]]:
    return [queue.prepare, lambda: queue.put([make_envelope()])]


@pytest.mark.parametrize('group', [False, True], ids=['private', 'group'])
@pytest.mark.parametrize('folder', ['.', *FOLDERS])
def test_a_world_writable_folder_is_refused(tmp_path: Path, folder: str, group: bool) -> None:
    """The root and each folder: the error names it and the command that helps, and nothing is
    written."""
    root = tmp_path / 'queue'
    queue = open_queue(root, group=group)
    live(queue)
    before = files(queue)
    path = root if folder == '.' else root / folder
    for mode in (0o777, 0o1777, 0o702):
        path.chmod(mode)
        for use in uses(open_queue(root, group=group)):
            with pytest.raises(QueueError, match=f'chmod o-w {path}') as caught:
                use()
            assert caught.value.filename == str(root)
    assert files(queue) == before
    path.chmod(Permissions(group).folder)
    open_queue(root, group=group).prepare()


@pytest.mark.parametrize('folder', ['.', *FOLDERS])
def test_what_a_group_may_write_to_is_refused_if_it_is_private(tmp_path: Path, folder: str) -> None:
    """The error says how to share it, and how not to; one command does for all folders."""
    root = tmp_path / 'queue'
    live(open_queue(root, group=False))
    path = root if folder == '.' else root / folder
    path.chmod(0o770)
    for use in uses(open_queue(root, group=False)):
        with pytest.raises(QueueError, match=r'set mail\.queue_mode = group') as caught:
            use()
        assert f'may write to {path}' in str(caught.value)
        assert f'chmod g-w {root} {root}/*' in str(caught.value)
    for each in (root, *root.glob('*')):
        each.chmod(each.stat().st_mode & ~stat.S_IWGRP)
    open_queue(root, group=False).prepare()


@pytest.mark.parametrize('target', ['elsewhere', 'nowhere'])
@pytest.mark.parametrize('folder', FOLDERS)
def test_a_link_in_the_place_of_a_folder_is_refused(
    tmp_path: Path, folder: str, target: str
) -> None:
    """Mail would be moved elsewhere, or nowhere."""
    root = tmp_path / 'queue'
    live(open_queue(root, group=False))
    (root / folder).rename(tmp_path / 'elsewhere')
    (root / folder).symlink_to(tmp_path / target)
    for use in uses(open_queue(root, group=False)):
        with pytest.raises(QueueError, match=f'{root / folder} is a symbolic link; remove'):
            use()
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('slash', ['', '/', '//'])
@pytest.mark.parametrize('target', ['real', 'nowhere'])
def test_a_link_is_a_link_however_it_is_written(tmp_path: Path, target: str, slash: str) -> None:
    """With a slash at its end a link is what it leads to; what leads nowhere is not made."""
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / target)
    with pytest.raises(QueueError, match=f'set mail.queue_path to {tmp_path / target}'):
        MaildirQueue(f'{tmp_path}/link{slash}').prepare()
    assert not (tmp_path / 'nowhere').exists()
    assert list((tmp_path / 'real').iterdir()) == []


@pytest.mark.parametrize('group', [False, True], ids=['private', 'group'])
def test_a_file_in_the_place_of_reasons_stays_as_it_is(tmp_path: Path, group: bool) -> None:
    """No history can be written there, and the file is not changed."""
    open_queue(tmp_path / 'queue', group=group).prepare()
    path = tmp_path / 'queue' / 'reasons'
    path.write_text('mine')
    path.chmod(0o644)
    open_queue(tmp_path / 'queue', group=group).prepare()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_link_in_the_place_of_the_queue_is_refused(tmp_path: Path) -> None:
    """Who may change the link could have mail go elsewhere; the error names what it points to. A
    link above it is the administrator's, as /var/run is."""
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    for use in uses(open_queue(tmp_path / 'link', group=False)):
        with pytest.raises(QueueError, match=f'set mail.queue_path to {tmp_path / "real"}'):
            use()
    assert list((tmp_path / 'real').iterdir()) == list((tmp_path / 'real').glob('*'))
    open_queue(tmp_path / 'link' / 'queue', group=False).prepare()
    assert (tmp_path / 'real' / 'queue' / 'new').is_dir()
