"""The options of ``send``, verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from ..exceptions import MessageError
from .headers import check_text, shown

__all__ = ['checked_metadata', 'checked_tag', 'moment']


def moment(value: datetime | timedelta, where: str, now: float) -> float:
    if isinstance(value, timedelta):
        if value < timedelta():
            raise MessageError(f'{where}: {value} lies in the past; give a positive timedelta')
        moment = now + value.total_seconds()
    elif not isinstance(value, datetime):
        raise MessageError(
            f'{where}: {shown(value)} is no moment; give an aware datetime or a timedelta from now'
        )
    elif value.utcoffset() is None:
        raise MessageError(
            f'{where}: {value.isoformat()} has no time zone; give an aware datetime, as by '
            'datetime.now(timezone.utc)'
        )
    else:
        moment = value.timestamp()
    if moment > _LAST_MOMENT:
        raise MessageError(f'{where}: {value} lies after the year 9998; give an earlier moment')
    return moment


def checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(metadata, Mapping):
        raise MessageError(f'metadata: {shown(metadata)} is not a dict; give a dict of strings')
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise MessageError(f'metadata: {shown(key)} or its value is not a string; use str()')
    try:
        size = len(json.dumps(dict(metadata), ensure_ascii=False).encode('utf-8'))
    except UnicodeEncodeError as error:
        raise MessageError('metadata: it holds a lone surrogate; take it out') from error
    if size > 4096:
        raise MessageError(
            f'metadata: {size} octets as JSON, and 4096 are the limit; keep an id that leads to '
            'the rest'
        )
    return MappingProxyType(dict(metadata))


def checked_tag(tag: object) -> str:
    text = check_text(tag, 'tag')
    if not text or len(text) > 200:
        raise MessageError(f'tag: {shown(text)} is empty or too long; write 1 to 200 characters')
    return text


_LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
