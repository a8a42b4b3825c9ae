"""The options of send: how the envelope holds them, and which values are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyramid_sendmail.envelope import ReadOnlyDict
from pyramid_sendmail.exceptions import MessageError
from tests.support.messages import NOW, assert_refused, freeze, plain

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({'sender': 'x'}, "option sender: 'x' has no @"),
    ({'sender': 5}, 'option sender: 5 holds no addresses'),
    ({'sender': 'a@x, b@x'}, 'option sender: .*exactly one'),
    ({'sender': 'a@x\nb'}, 'option sender: .*line break'),
    ({'recipients': []}, 'no recipient'),
    ({'recipients': 'x'}, "option recipients: 'x'"),
    ({'recipients': 5}, 'option recipients: 5'),
    ({'due': 5}, 'due: 5 is not a time; give an aware datetime or a timedelta'),
    ({'due': True}, 'due: True is not a time'),
    ({'due': datetime(2027, 1, 1)}, r'due: 2027-01-01.* no time zone.*datetime\.now'),  # noqa: DTZ001
    ({'due': timedelta(seconds=-1)}, 'due: .*past; give a positive timedelta'),
    ({'due': timedelta(days=99999999)}, 'due: .*year 9998'),
    ({'expires': 'x'}, "expires: 'x' is not a time"),
    ({'expires': timedelta()}, 'expires: .*not after the mail is due; give a later'),
    ({'expires': timedelta(hours=1), 'due': timedelta(hours=2)}, 'expires: .*not after'),
    ({'expires': datetime(2020, 1, 1, tzinfo=UTC)}, 'expires: .*not after'),
    ({'priority': 'urgent'}, "priority: 'urgent'; write 'high', 'normal' or 'low'"),
    ({'priority': 1}, 'priority: 1; write'),
    ({'metadata': 5}, 'metadata: 5 is not a dict; give a dict of strings'),
    ({'metadata': {'a': 1}}, r"metadata: 'a' or its value is not a string; use str\(\)"),
    ({'metadata': {1: 'a'}}, 'metadata: 1 or its value'),
    ({'metadata': {'a': 'x' * 4096}}, 'metadata: 4105 bytes .*4096'),
    ({'metadata': {'a': '\ud800'}}, 'metadata: .*lone surrogate'),
]


@pytest.mark.parametrize(('options', 'named'), BAD_OPTIONS)
def test_bad_option(options: dict[str, Any], named: str) -> None:
    """An option that cannot be used is refused; the text names it and the remedy."""
    with pytest.raises(MessageError) as caught:
        freeze(**options)

    assert_refused(caught.value, named)


def test_options() -> None:
    """The envelope holds the options; a ``due`` in the past means now."""
    later = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=2)
    envelope = freeze(
        plain(tag='welcome'),
        due=timedelta(hours=1),
        expires=later,
        priority='low',
        metadata={'user': '5'},
        depth=1,
    )

    assert (envelope.due, envelope.expires) == (NOW + 3600, NOW + 7200)
    assert (envelope.priority, envelope.tag, envelope.depth) == ('low', 'welcome', 1)
    assert envelope.metadata == {'user': '5'}
    assert isinstance(envelope.metadata, ReadOnlyDict)
    assert freeze(due=datetime(2020, 1, 1, tzinfo=UTC)).due == NOW
    assert freeze(recipients=['Z <z@x>', 'z@X']).recipients == ('z@x',)
