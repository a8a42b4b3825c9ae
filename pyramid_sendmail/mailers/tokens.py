"""Access tokens, for relays that take no passwords (RFC 6749, 1.4)."""

from __future__ import annotations

import os

__all__ = ['TokenFile']


class TokenFile:
    """Gives the token in a file, which another program renews.

    ``path``: absolute. The file is read each time. Raises ValueError, naming it, where it cannot
    be read or its first line is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if not os.path.isabs(self._path):
            raise ValueError(f'token_file={self._path} is not absolute')

    def __repr__(self) -> str:
        return f'TokenFile({self._path!r})'

    def __call__(self) -> str:
        try:
            with open(self._path, encoding='ascii') as file:
                token = file.readline().strip()
        except OSError as error:
            raise ValueError(f'token_file={self._path}: {error.strerror}') from error
        except UnicodeDecodeError:
            # Its text would quote what it has read.
            raise ValueError(f'token_file={self._path} is not ASCII') from None
        if not token:
            raise ValueError(f'token_file={self._path} has an empty first line')
        return token
