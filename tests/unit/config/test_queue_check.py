"""The queue of the settings is looked at when the application starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyramid_sendmail.config.queue_check import check_queue_folder
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MemoryQueue
from tests.support.configuration import committed, configured, failure

OTHER_USER = 65_534


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Run as another user: root only may do so."""
    if os.geteuid() != 0:
        pytest.skip('only root can become another user')
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder that other users can reach."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(0o755)
    return tmp_path


def refusal(path: Path, *, group: bool = False) -> str:
    with pytest.raises(QueueError) as caught:
        check_queue_folder(str(path), group=group)
    assert caught.value.filename == str(path)
    return str(caught.value)


def test_a_good_queue(tmp_path: Path) -> None:
    """A queue that is there, or can be made, is good; nothing is made."""
    new = tmp_path / 'not' / 'here'
    committed(queue_path=str(new))
    assert list(tmp_path.iterdir()) == []
    there = tmp_path / 'mail'
    there.mkdir(mode=0o700)
    committed(queue_path=str(there))
    assert list(there.iterdir()) == []


def test_what_is_no_folder(tmp_path: Path) -> None:
    """A file, what stands below one, and a link are refused by the start, which says what to do."""
    file, link = tmp_path / 'file', tmp_path / 'link'
    file.touch()
    link.symlink_to(tmp_path)
    for path, words in (
        (file, f'{file} is not a folder'),
        (file / 'mail' / 'queue', f'{file} is not a folder'),
        (link, f'{link} is a symbolic link; set mail.queue_path to {tmp_path}'),
    ):
        text = failure(configured(queue_path=str(path)))
        assert words in text
        assert 'mail.queue_path' in text
    assert 'cannot be created' in refusal(file / 'mail')


def test_a_folder_that_others_may_write_to(tmp_path: Path) -> None:
    """Every user could send mail there."""
    tmp_path.chmod(0o777)
    assert 'chmod o-w' in failure(configured(queue_path=str(tmp_path)))


def test_a_folder_that_is_shared_on_purpose(tmp_path: Path) -> None:
    """A chmod of a sticky folder, as /tmp is, is for queues only: the machine needs it as it is."""
    tmp_path.chmod(0o1777)
    text = failure(configured(queue_path=str(tmp_path)))
    assert f'may write to {tmp_path}, and so send mail; set mail.queue_path to a folder' in text
    assert f'if it is a queue already, chmod o-w {tmp_path}' in text


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    """The folder of the application is refused by the start, not by the first mail."""
    tmp_path.chmod(0o755)
    (tmp_path / 'production.ini').touch()
    text = failure(configured(queue_path=str(tmp_path)))
    assert f'{tmp_path} is no mail queue: it holds production.ini; ' in text
    assert f'set mail.queue_path to a folder of its own, such as {tmp_path}/mail' in text
    assert [each.name for each in tmp_path.iterdir()] == ['production.ini']


def test_another_user(place: Path) -> None:
    """The error names both users, and what to set; a shared queue is its group's."""
    queue = place / 'mail'
    queue.mkdir(mode=0o755)
    with as_user(OTHER_USER):
        text = refusal(queue)
        assert 'belongs to user root, but this process runs as user' in text
        assert 'mail.queue_mode = group' in text
        assert 'may not write to the queue' in refusal(queue, group=True)
        assert 'may not write to' in refusal(place / 'new' / 'mail')
    queue.chmod(0o2770)
    os.chown(queue, 0, OTHER_USER)
    with as_user(OTHER_USER):
        check_queue_folder(str(queue), group=True)
    os.chown(queue, OTHER_USER, OTHER_USER)
    queue.chmod(0o500)
    with as_user(OTHER_USER):
        assert 'chmod u+rwx' in refusal(queue)


def test_root_may_become_another_user(place: Path) -> None:
    """A server loads the application as root, and then becomes the user of the queue."""
    if os.geteuid() != 0:
        pytest.skip('only root can give a folder away')
    os.chown(place, OTHER_USER, OTHER_USER)
    committed(queue_path=str(place))


def test_a_folder_that_cannot_be_reached(place: Path) -> None:
    """A folder below one that this user cannot enter is refused."""
    closed = place / 'closed'
    closed.mkdir(mode=0o700)
    with as_user(OTHER_USER):
        text = refusal(closed / 'mail')
    assert 'cannot be reached: Permission denied; give user ' in text
    assert 'the right to enter the folders above it' in text


def test_a_queue_of_the_application(tmp_path: Path) -> None:
    """A folder that is not used is not looked at."""
    file = tmp_path / 'file'
    file.touch()
    config = configured(queue_path=str(file))
    config.set_mail_queue(MemoryQueue())
    config.commit()
