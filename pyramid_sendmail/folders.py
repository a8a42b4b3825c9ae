"""Making folders that no other user may write to, whatever the umask."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ['make_parents', 'make_private_folder']


def make_parents(path: str) -> None:
    """Make the missing folders above a path: 0755, or less by the umask. Raises OSError."""
    parent = os.path.dirname(path)
    try:
        os.mkdir(parent, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_parents(parent)
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(parent, 0o755)


def make_private_folder(path: str) -> None:
    """Make a folder, 0700, and the missing ones above it; one that is there stays as it is.

    Raises OSError, also where the path names something else than a folder.
    """
    path = path.rstrip('/') or '/'  # "mail/" would be the parent of itself
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        make_parents(path)
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(path, 0o700)
