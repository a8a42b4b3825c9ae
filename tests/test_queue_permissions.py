"""Who may use a queue: one user, or the members of a group; everybody else is refused."""

from __future__ import annotations

import errno
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
from pyramid_sendmail.queue.names import Ticket
from pyramid_sendmail.queue.permissions import Permissions

from .queue_fixtures import (
    NOW,
    Clock,
    claimed,
    deferred,
    failed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    the_file,
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
        os.umask(umask)
        os.setgroups([GROUP] if member else [])
        os.setgid(user[1])
        os.setuid(user[0])
        work()

    assert reap(forked(child)) == 0


def live(queue: MaildirQueue) -> None:
    """Have mail in every state that there is."""
    root = Path(queue.path)
    queue.prepare()
    queue.put([make_envelope() for _ in range(4)]).publish()
    (root / 'new' / 'foreign').write_text('?')
    (root / 'new' / 'foreign').chmod(queue._store.permissions.file)
    with pytest.raises(DamagedMail):
        queue.claim(Ticket('new', 'foreign'))
    claims: list[Any] = [queue.claim(ticket) for ticket in queue.look(NOW)[0]]
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
    """Whoever lets others read his queue has his reasons: only writing sends mail."""
    open_queue(tmp_path / 'queue', group=False).prepare()
    (tmp_path / 'queue').chmod(0o755)
    open_queue(tmp_path / 'queue', group=False).prepare()


# Two users


@as_root
@pytest.mark.parametrize('umask', [0o000, 0o077])
def test_two_users_share_a_queue(shared: Path, umask: int) -> None:
    """One puts mail, another sends it, and the first looks after what is left: retries, dead
    letters, a stopped put, the history; each wakes the other."""

    def put() -> None:
        queue = open_queue(shared)
        queue.put([make_envelope(id=f'{n:032x}') for n in range(4)]).publish()
        queue.put([make_envelope(id='d' * 32), make_envelope(id='e' * 32)])

    def send() -> None:
        queue = open_queue(shared)
        queue.prepare()
        tickets, _ = queue.look(NOW)
        claims: list[Any] = [queue.claim(ticket) for ticket in tickets if ticket.folder == 'new']
        first, second, third, fourth = claims
        first.settle([sent(first.envelope)], report=False)
        second.settle([deferred(second.envelope)], retry_at=NOW + 60, report=False)
        third.settle([failed(third.envelope)], report=False)
        fourth.sealing(fourth.envelope.recipients)

    def look_after() -> None:
        queue = open_queue(shared)
        queue._clock.now = NOW + 60  # type: ignore[attr-defined]
        queue.prepare()
        queue.put([make_envelope()]).publish()
        assert queue.wait(0), 'it hears the pipe that the other has made'
        claims: list[Any] = [queue.claim(ticket) for ticket in queue.look(NOW + 60)[0]]
        words = sorted(claim.interrupted for claim in claims if claim.todo)
        assert words == ['', '', 'ambiguous']
        for claim in claims:
            if claim.todo:
                claim.settle([sent(claim.envelope)], report=False)
            else:
                assert claim.fates[0].reason.startswith('in doubt')
                claim.reported(claim.fates)
        assert len(list(Path(shared, 'reasons').iterdir())) == 1, 'the dead letter has its history'
        assert queue.expire(time.time() + 60) == 1

    become(WEB, put, umask=umask)
    become(PROCESSOR, send, umask=umask)
    become(WEB, look_after, umask=umask)
    left = files(open_queue(shared))
    assert [name.rpartition('-')[2] for name in left] == ['d' * 32, 'e' * 32]
    assert {name.split('/')[0] for name in left} == {'failed'}
    owners = {path.stat().st_gid for path in [shared, *shared.rglob('*')]}
    assert owners == {GROUP}


@as_root
def test_who_is_no_member_is_refused(shared: Path) -> None:
    """The error names the group, the user and the command that helps."""
    open_queue(shared).prepare()

    def work() -> None:
        with pytest.raises(QueueError, match=f'usermod -aG {GROUP} {STRANGER[0]}'):
            open_queue(shared).put([make_envelope()])
        with pytest.raises(QueueError, match=f'the queue belongs to group {GROUP}'):
            open_queue(shared).prepare()

    shared.parent.chmod(0o755)
    become(STRANGER, work, member=False)


@as_root
def test_a_private_queue_of_another_user_is_refused(place: Path) -> None:
    """Whoever it is; the error names both users and the two remedies."""
    place.chmod(0o777)
    become(WEB, lambda: open_queue(place / 'queue', group=False).prepare())
    with pytest.raises(QueueError, match=rf'belongs to user {WEB[0]}, .* as user 0: .*queue_mode'):
        open_queue(place / 'queue', group=False).put([make_envelope()])
    assert list((place / 'queue' / 'tmp').iterdir()) == []


@as_root
def test_what_only_the_other_user_can_read_is_left_to_him(shared: Path) -> None:
    """A file that was made before the queue was shared is nobody's dead letter."""
    become(WEB, lambda: open_queue(shared).put([make_envelope()]).publish())
    path = the_file(open_queue(shared), 'new')
    path.chmod(0o600)

    def work() -> None:
        queue = open_queue(shared)
        [ticket], _ = queue.look(NOW)
        with pytest.raises(QueueError, match='give this user the right') as caught:
            queue.claim(ticket)
        assert caught.value.errno == errno.EACCES

    become(PROCESSOR, work)
    assert path.exists()
    path.chmod(0o660)
    become(PROCESSOR, lambda: claimed(open_queue(shared)).release())


@as_root
def test_the_owner_puts_the_modes_right(shared: Path) -> None:
    """A private queue becomes a shared one when its owner says so; others can only ask for it."""
    shutil.rmtree(shared)
    shared.parent.chmod(0o777)
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
    with pytest.raises(QueueError, match=f'cur belongs to group 52003.*: chgrp -R {GROUP}'):
        open_queue(shared).prepare()


# What is refused to everybody


def uses(queue: MaildirQueue) -> list[Callable[[], object]]:
    return [queue.prepare, lambda: queue.put([make_envelope()])]


@pytest.mark.parametrize('group', [False, True], ids=['private', 'group'])
@pytest.mark.parametrize('folder', ['.', *FOLDERS])
def test_what_everybody_may_write_to_is_refused(tmp_path: Path, folder: str, group: bool) -> None:
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


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path, folder: str) -> None:
    """Mail would be moved elsewhere, or nowhere."""
    root = tmp_path / 'queue'
    live(open_queue(root, group=False))
    (root / folder).rename(tmp_path / 'elsewhere')
    (root / folder).symlink_to(tmp_path / 'elsewhere')
    for use in uses(open_queue(root, group=False)):
        with pytest.raises(QueueError, match=f'{root / folder} is a symbolic link; remove'):
            use()


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
