"""Message and Attachment: values that do not change with the lists and dicts that made them."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.message import Attachment, Message
from tests.support.messages import freeze, plain, read


def test_copied_at_construction() -> None:
    """Later changes of the caller's lists and dicts do not change the message."""
    to, headers, data = ['a@x'], {'X-A': '1'}, bytearray(b'one')
    attachments = [Attachment('a', data)]  # type: ignore[arg-type]
    message = plain(to=to, headers=headers, attachments=attachments)

    to.append('b@x')
    headers['X-A'] = '2'
    attachments.clear()
    data[:] = b'two'

    assert freeze(message).recipients == ('a@x',)
    assert read(freeze(message))['X-A'] == '1'
    assert len(list(read(freeze(message)).iter_attachments())) == 1
    assert message.attachments == (Attachment('a', b'one'),)
    assert hash(message) == hash(plain(to=('a@x',), headers={}, attachments=message.attachments))
    with pytest.raises(AttributeError):
        message.subject = 'x'  # type: ignore[misc]


def test_generators_can_be_sent_twice() -> None:
    """A generator is read at construction, so the message can be sent twice."""
    message = plain(to=(address for address in ('a@x', 'b@x')))

    assert freeze(message).recipients == freeze(message).recipients == ('a@x', 'b@x')


@pytest.mark.parametrize(
    'message',
    [
        plain(),
        plain(
            to=[Address('Ann', 'ann', 'example.org'), 'b@x'],
            html='<p>',
            headers={'X-A': 'b'},
            attachments=[Attachment('a.txt', b'x'), Attachment(None, path=Path('a'))],
        ),
    ],
)
def test_a_message_is_a_value(message: Message) -> None:
    """A message can be pickled, copied and made a dict: task queues and sessions do."""
    assert pickle.loads(pickle.dumps(message)) == message
    assert copy.deepcopy(message) == copy.copy(message) == message
    assert asdict(message)['headers'] == message.headers
    assert json.loads(json.dumps(asdict(message)['headers'])) == dict(message.headers)
    with pytest.raises(TypeError):
        copy.deepcopy(message).headers['X-A'] = '2'  # type: ignore[index]


def test_mapping_stays_read_only() -> None:
    """Headers of a message cannot be changed in place."""
    headers: Mapping[str, str] = plain(headers={'X-A': '1'}).headers

    with pytest.raises(TypeError):
        headers['X-A'] = '2'  # type: ignore[index]


@pytest.mark.parametrize(
    ('kind', 'arguments', 'named', 'remedy'),
    [
        (Message, (), {'recipients': ['a@x'], 'subject': 'x'}, 'Message: recipients=: write to='),
        (Message, (), {'body': 'x', 'extra_headers': {}}, 'body=: write text=; .*: write headers='),
        (Message, ('Hello',), {}, r'Message\(subject=..., to=..., text=...\)'),
        (Attachment, ('a',), {'disposition': 'inline'}, 'Attachment: disposition=: leave it out'),
        (Message, (), {'colour': 'red'}, "unexpected keyword argument 'colour'"),
        (Attachment, (), {}, "missing 1 required positional argument: 'filename'"),
    ],
)
def test_arguments_of_pyramid_mailer(
    kind: Any, arguments: tuple[Any, ...], named: dict[str, Any], remedy: str
) -> None:
    """An argument as pyramid_mailer calls it is an error that names ours."""
    with pytest.raises(TypeError, match=remedy):
        kind(*arguments, **named)
