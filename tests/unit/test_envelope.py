"""The envelope: a value that cannot be changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, ReadOnlyDict

ENVELOPE = Envelope(
    id='0' * 32,
    message_id='<1@example.org>',
    sender='a@example.org',
    recipients=('b@example.org',),
    raw=b'A: b\r\n\r\n',
    queued_at=1.0,
    due=2.0,
)


def test_an_envelope_is_fixed() -> None:
    """No field can be changed or deleted, and the metadata that it has by default is read-only."""
    with pytest.raises(FrozenInstanceError):
        ENVELOPE.sender = 'c@example.org'  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del ENVELOPE.sender
    with pytest.raises(TypeError):
        ENVELOPE.metadata['a'] = 'b'  # type: ignore[index]
    assert isinstance(hash(ENVELOPE), int)


def test_the_repr_hides_the_content() -> None:
    """A log that shows an envelope shows neither its bytes nor its subject."""
    assert 'A: b' not in repr(ENVELOPE)
    assert 'subject' not in repr(ENVELOPE)


def test_a_copy_of_an_envelope() -> None:
    """An envelope with metadata can be pickled and copied, and the copy is read-only, too."""
    given = replace(ENVELOPE, metadata=ReadOnlyDict(order='17'))
    for made in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given), copy.copy(given)):
        assert made == given
        with pytest.raises(TypeError, match='cannot be changed'):
            made.metadata.update(order='18')
    assert asdict(given)['metadata'] == {'order': '17'}


@pytest.mark.parametrize(
    'change',
    [
        lambda given: given.__setitem__('a', 'c'),
        lambda given: given.__delitem__('a'),
        lambda given: given.__ior__({'a': 'c'}),
        lambda given: given.clear(),
        lambda given: given.pop('a'),
        lambda given: given.popitem(),
        lambda given: given.setdefault('b', 'c'),
        lambda given: given.update(a='c'),
    ],
)
def test_a_read_only_dict(change: Callable[[Any], Any]) -> None:
    """No method changes it."""
    given = ReadOnlyDict(a='b')

    with pytest.raises(TypeError, match='cannot be changed; make another'):
        change(given)

    assert given == {'a': 'b'}
