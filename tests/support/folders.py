"""Folders in memory, for tests that make thousands of cases and wait for no disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

__all__ = ['folder']


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, if the system has one, otherwise on disk.

    Modules that make thousands of cases import it as their ``tmp_path``.
    """
    memory = Path('/dev/shm')
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as name:
        yield Path(name)
