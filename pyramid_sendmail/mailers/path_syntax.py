"""Whether an address may stand in an SMTP command, so that none can carry a second command."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ['is_valid_path']

_PATH = re.compile(
    r"""
    (?: "(?: [^"\\\x00-\x1f\x7f] | \\[^\x00-\x1f\x7f] )*"   # a quoted local part
      | [^\s"\\<>,;:@()\[\]\x00-\x1f\x7f]+                  # or a dotted one
    )
    (?: @ [^\s"\\<>,;@()\x00-\x1f\x7f]+ )?                  # Postmaster needs no domain
    """,
    re.VERBOSE,
)


_CACHED_LENGTH = 320
"""Characters of the longest address whose answer is kept in memory."""


def is_valid_path(address: str) -> bool:
    """Return whether an address may stand between ``<`` and ``>`` (RFC 5321, 4.1.2; 6531, 3.3)."""
    return (_is_valid if len(address) <= _CACHED_LENGTH else _is_valid.__wrapped__)(address)


@lru_cache(maxsize=256)
def _is_valid(address: str) -> bool:
    try:
        address.encode()
    except UnicodeEncodeError:
        return False
    return _PATH.fullmatch(address) is not None
