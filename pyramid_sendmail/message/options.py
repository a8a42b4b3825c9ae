"""The options of ``send``, verified. Each function raises MessageError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import get_args

from ..envelope import Priority, ReadOnlyDict
from ..exceptions import MessageError
from .headers import check_text, excerpt
from .text import plain_text

__all__ = ['checked_metadata', 'checked_priority', 'checked_tag', 'checked_time']


def checked_time(value: datetime | timedelta, where: str, now: float) -> float:
    """Return an aware datetime, or a timedelta from ``now``, as epoch seconds."""
    if isinstance(value, timedelta):
        if value < timedelta():
            raise MessageError(f'{where}: {value} lies in the past; give a positive timedelta')
        seconds = now + value.total_seconds()
    elif not isinstance(value, datetime):
        raise MessageError(
            f'{where}: {excerpt(value)} is not a time; give an aware datetime or a timedelta from '
            'now'
        )
    elif value.utcoffset() is None:
        raise MessageError(
            f'{where}: {value.isoformat()} has no time zone; give an aware datetime, such as '
            'datetime.now(timezone.utc)'
        )
    else:
        seconds = value.timestamp()
    if seconds > _LATEST_TIME:
        raise MessageError(f'{where}: {value} lies after the year 9998; give an earlier moment')
    return seconds


def checked_priority(priority: Priority) -> Priority:
    """Return one of 'high', 'normal' and 'low'."""
    for known in _PRIORITIES:
        if priority == known:
            # Not what was given: a member of an Enum is equal to its value, and written otherwise.
            return known
    raise MessageError(f"priority: {excerpt(priority)}; write 'high', 'normal' or 'low'")


def checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return a read-only copy of a dict of strings of at most METADATA_LIMIT bytes as JSON."""
    if not isinstance(metadata, Mapping):
        raise MessageError(f'metadata: {excerpt(metadata)} is not a dict; give a dict of strings')
    copied: dict[str, str] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise MessageError(f'metadata: {excerpt(key)} or its value is not a string; use str()')
        name = plain_text(key, 'metadata', excerpt(key))
        copied[name] = plain_text(value, 'metadata', f'the value of {excerpt(key)}')
    try:
        size = len(json.dumps(copied, ensure_ascii=False).encode('utf-8'))
    except UnicodeEncodeError as error:
        raise MessageError('metadata: it holds a lone surrogate; take it out') from error
    if size > METADATA_LIMIT:
        raise MessageError(
            f'metadata: {size} bytes as JSON are more than the limit of {METADATA_LIMIT}; keep '
            'an id that leads to the rest'
        )
    return ReadOnlyDict(copied)


def checked_tag(tag: object) -> str:
    """Return a tag of 1 to TAG_LIMIT characters without control characters."""
    text = check_text(tag, 'tag')
    if not text or len(text) > TAG_LIMIT:
        raise MessageError(
            f'tag: {excerpt(text)} is empty or too long; write 1 to {TAG_LIMIT} characters'
        )
    return text


METADATA_LIMIT = 4096
"""Bytes of ``metadata`` as JSON."""

TAG_LIMIT = 200
"""Characters of a tag."""

_PRIORITIES: tuple[Priority, ...] = get_args(Priority)

_LATEST_TIME = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
