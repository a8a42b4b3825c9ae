"""The envelope: a value that cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from pyramid_sendmail.envelope import Envelope

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
