"""A folder that is no queue is refused, and nothing in it is moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from tests.support.queues import NOW, Clock, files, make_envelope

OLD = (
    b'X-Zope-From: bounces@example.org\nX-Zope-To: ann@example.org\n'
    b'From: shop@example.org\nSubject: Old\n\nHello.\n'
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'project'
    root.mkdir(0o700)
    return root


def _lay(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(0o700, parents=True, exist_ok=True)
        (root / name).write_text('of the application')


@pytest.mark.parametrize(
    'names',
    [
        ('new/README', 'cur/current.csv', 'done/todo.txt'),
        ('done/todo.txt',),
        ('setup.py', 'README.rst'),
        ('app/__init__.py',),
        ('failed/report.txt', 'new/README'),
    ],
)
def test_a_folder_of_the_application_is_refused(root: Path, names: tuple[str, ...]) -> None:
    """At first use, whatever it is: the error names a file and the setting; all is as before."""
    _lay(root, *names)
    before = sorted(root.rglob('*'))
    queue = MaildirQueue(str(root))
    for use in (queue.prepare, lambda: queue.put([make_envelope()]), lambda: queue.scan(NOW)):
        with pytest.raises(
            QueueError, match=r'is no mail queue: .* set mail\.queue_path'
        ) as caught:
            use()
        assert any(name.partition('/')[0] in str(caught.value) for name in names)
    assert sorted(root.rglob('*')) == before


@pytest.mark.parametrize(
    'names',
    [
        (),
        ('lost+found/x',),
        ('.gitignore',),
        ('tmp/half-written', 'failed/note'),
        ('reasons/x.txt',),
        ('probe-1-1', 'lock-probe-1-1'),
    ],
)
def test_a_half_made_queue_is_made(root: Path, names: tuple[str, ...]) -> None:
    """An empty folder, a new disk, what a crash has left: nothing speaks against it."""
    _lay(root, *names)
    queue = MaildirQueue(str(root), clock=Clock())
    queue.put([make_envelope()]).publish()
    assert any(name.startswith('new/') for name in files(queue))


@pytest.mark.parametrize('old', [False, True])
def test_a_queue_with_mail_in_it_is_one(root: Path, old: bool) -> None:
    """Mail of ours or of the ancestors is enough, even beside a foreign file."""
    if old:
        _lay(root, 'new/1700000000.77.host.5', 'tmp/x', 'new/notes.txt')
        (root / 'new/1700000000.77.host.5').write_bytes(OLD)
    else:
        MaildirQueue(str(root)).put([make_envelope()]).publish()
        _lay(root, 'new/notes.txt', 'README')
        (root / 'done').rmdir()
    MaildirQueue(str(root), clock=Clock()).prepare()


def test_a_queue_in_use_may_lose_a_folder(root: Path) -> None:
    """A process that has used the queue knows that it is one."""
    queue = MaildirQueue(str(root), clock=Clock())
    queue.prepare()
    _lay(root, 'new/notes.txt', 'README')
    (root / 'cur').rmdir()
    queue.scan(NOW)
    assert (root / 'cur').is_dir()
