"""Files of an attachment: at a path, or an asset of a package (``myapp:static/logo.png``)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import BinaryIO, cast

from pyramid.path import AssetResolver

__all__ = ['is_asset_spec', 'open_file']

_ASSET_SPEC = re.compile(r'[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\0]+')


def is_asset_spec(path: object) -> bool:
    """Return whether a path is a package and a path in it, as Pyramid writes assets."""
    return isinstance(path, str) and _ASSET_SPEC.fullmatch(path) is not None


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, or an asset as ``config.override_asset`` has it.

    Raises OSError or ValueError, whose text says where it was looked for.
    """
    if not is_asset_spec(path):
        return _open_path(path)
    spec = os.fspath(path)
    package = spec.partition(':')[0]
    with suppress(FileNotFoundError, IsADirectoryError):
        # A file with a colon in its name.
        return open(spec, 'rb')
    try:
        asset = AssetResolver(None).resolve(spec)
        if asset.isdir():
            raise IsADirectoryError(f'the asset {spec} is a folder')
        if not asset.exists():
            raise FileNotFoundError(f'the package {package} has no such file')
        return cast(BinaryIO, asset.stream())
    except ImportError as error:
        raise FileNotFoundError(f'there is no package {package} ({error})') from error
    except NotImplementedError as error:
        raise FileNotFoundError(f'the module {package} has no files') from error


def _open_path(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, 'rb')
    except OSError as error:
        if os.path.isabs(path):
            raise
        raise type(error)(
            f'{error.strerror} in {os.getcwd()}, the current folder of the process; give an '
            "absolute path, or an asset of a package, 'myapp:static/logo.png'"
        ) from error
