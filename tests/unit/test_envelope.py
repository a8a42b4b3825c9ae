"""The envelope, and the draft that becomes one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from pyramid_sendmail.envelope import Draft, Envelope

GIVEN = {
    'id': '0' * 32,
    'message_id': '<1@example.org>',
    'sender': 'a@example.org',
    'recipients': ('b@example.org',),
    'raw': b'A: b\r\n\r\n',
    'queued_at': 1.0,
    'due': 2.0,
    'expires': 3.0,
    'priority': 'low',
    'subject': 'Hello',
    'tag': 'welcome',
    'depth': 1,
}


def drafted() -> Envelope:
    return Draft(**GIVEN).fixed()  # type: ignore[arg-type]


def test_a_draft_has_what_an_envelope_has() -> None:
    """The same fields in the same order, and the same values where nothing was said."""
    assert [field.name for field in fields(Draft)] == [field.name for field in fields(Envelope)]
    assert Draft.__slots__ == Envelope.__slots__

    needed = {
        **dict.fromkeys(('id', 'message_id', 'sender'), 'x'),
        'recipients': (),
        'raw': b'',
        'queued_at': 1.0,
        'due': 0.0,
    }
    assert Draft(**needed).fixed() == Envelope(**needed)  # type: ignore[arg-type]


def test_a_fixed_draft_is_an_envelope() -> None:
    """It cannot be told from one that was made at once, and nobody can change it."""
    made = Envelope(**GIVEN)  # type: ignore[arg-type]
    envelope = drafted()

    assert type(envelope) is Envelope
    assert envelope == made
    assert hash(envelope) == hash(made)
    assert repr(envelope) == repr(made)
    assert replace(envelope, depth=2) == replace(made, depth=2)
    with pytest.raises(FrozenInstanceError):
        envelope.sender = 'c@example.org'  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del envelope.sender  # type: ignore[misc]
    assert not hasattr(envelope, 'fixed')
