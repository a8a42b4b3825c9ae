"""Folders that no other user may write to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyramid_sendmail.folders import make_parents, make_private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures('no_umask')
def test_missing_parents(tmp_path: Path) -> None:
    """Made 0755, and the path itself is not made."""
    make_parents(f'{tmp_path}/a/b/c')
    assert [mode(tmp_path / each) for each in ('a', 'a/b')] == [0o755, 0o755]
    assert not (tmp_path / 'a/b/c').exists()
    make_parents(f'{tmp_path}/a/b/c')


@pytest.mark.usefixtures('no_umask')
@pytest.mark.parametrize('path', ['mail', 'mail/', 'a/mail', 'a/b/mail', 'a/b/mail/', 'a//mail//'])
def test_private_folder(tmp_path: Path, path: str) -> None:
    """Made 0700, with the missing folders above it; made a second time, it stays."""
    make_private_folder(f'{tmp_path}/{path}')
    made = tmp_path / path
    assert mode(made) == 0o700
    for above in [each for each in made.parents if tmp_path in each.parents]:
        assert mode(above) == 0o755
    make_private_folder(f'{tmp_path}/{path}')


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """The administrator's choice stays, also behind a link."""
    (tmp_path / 'shared').mkdir()
    (tmp_path / 'shared').chmod(0o750)
    (tmp_path / 'link').symlink_to('shared')
    for name in ('shared', 'link'):
        make_private_folder(f'{tmp_path}/{name}')
    assert mode(tmp_path / 'shared') == 0o750


@pytest.mark.parametrize(
    ('path', 'error'),
    [
        ('file', FileExistsError),
        ('file/mail', NotADirectoryError),
        ('file/a/mail', NotADirectoryError),
        ('dangling', FileExistsError),
    ],
)
def test_something_else_is_there(tmp_path: Path, path: str, error: type[OSError]) -> None:
    """A file, or a link to nothing, cannot be made a folder."""
    (tmp_path / 'file').touch()
    (tmp_path / 'dangling').symlink_to('nothing')
    with pytest.raises(error):
        make_private_folder(f'{tmp_path}/{path}')
