"""Large input: no header, name or content keeps ``send`` busy, and none ends it."""

from __future__ import annotations

import email
import email.policy
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from email.header import Header
from email.message import EmailMessage
from email.message import Message as AnyMessage
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.mailers.path_syntax import is_valid_path
from pyramid_sendmail.message import Attachment, EnvelopeFactory
from pyramid_sendmail.message.address import Mailbox
from pyramid_sendmail.message.address_header import address_line
from pyramid_sendmail.queue.maildir.reply_slot import write_slot
from tests.support.growth import grows_linearly
from tests.support.messages import assert_refused, assert_wire, factory, freeze, plain, read, shape

SIZE = 8_000
"""Characters of the shorter header."""

SHAPES: dict[str, Callable[[int], str]] = {
    'semicolons': lambda n: 'a/b' + ';' * n,
    'semicolons in quotes': lambda n: 'multipart/mixed; a="' + ';' * n,
    'quotes and semicolons': lambda n: 'multipart/mixed; a="' + ';"' * (n // 2),
    'parameters': lambda n: 'text/plain' + '; a=b' * (n // 5),
    'quoted parameters': lambda n: 'text/plain' + '; a=";"' * (n // 7),
    'sections': lambda n: 'a/b' + ''.join(f'; a*{i}*=%C3' for i in range(n // 11)),
    'a long name of a parameter': lambda n: f'a/b; {"x" * n}=y',
    'many long names of parameters': lambda n: 'a/b' + f'; {"x" * 80}=é' * (n // 84),
    'a long value': lambda n: f'a/b; boundary="{"x" * n}"',
    'a long value of words': lambda n: f'a/b; filename="{"x " * (n // 2)}"',
    'a long value that is not ASCII': lambda n: f'a/b; filename="{"é" * n}"',
    'a type without an end': lambda n: 'x' * n,
    'slashes': lambda n: '/' * n,
    'backslashes': lambda n: 'a/b; a="' + '\\' * n,
    'quotes': lambda n: '"' * n,
    'escaped quotes': lambda n: '"' + '\\"' * (n // 2),
    'blanks': lambda n: 'a' + ' ' * n + 'b',
    'words': lambda n: 'a ' * (n // 2),
    'tabs': lambda n: 'a\t' * (n // 2) + 'b',
    'folded': lambda n: 'a\n ' * (n // 3) + 'b',
    'folded in quotes': lambda n: '"' + 'a\n ' * (n // 3) + '"',
    'commas': lambda n: 'a@x,' * (n // 4) + 'a@x',
    'parentheses': lambda n: '(' * n + 'a@x',
    'comments': lambda n: '()' * (n // 2) + 'a@x',
    'groups': lambda n: 'a:' * (n // 2) + 'a@x',
    'angles': lambda n: '<' * n,
    'encoded words': lambda n: '=?utf-8?q?=C3=A9?= ' * (n // 19),
    'halves of encoded words': lambda n: '=?utf-8?q?' * (n // 10),
    'beginnings of encoded words': lambda n: '=?' * (n // 2),
    'characters that are not ASCII': lambda n: 'é' * n,
    'words that are not ASCII': lambda n: 'é ' * (n // 2),
}
"""Values of headers, each of about so many characters."""

NAMES = ('Content-Type', 'Content-Transfer-Encoding', 'Subject', 'To')


def headers(*pairs: tuple[str, str], payload: Any = 'x') -> EmailMessage:
    """Return a message whose headers no parser has seen."""
    message = EmailMessage()
    message._headers = list(pairs)  # type: ignore[attr-defined]
    message._payload = payload  # type: ignore[attr-defined]
    return message


def root(name: str, value: str) -> Any:
    return headers((name, value), *([] if name == 'To' else [('To', 'a@x')]))


def inside(kind: str) -> Callable[[str, str], Any]:
    def message(name: str, value: str) -> Any:
        parts = [headers((name, value)), headers((name, value), payload=[headers()])]
        return headers(
            ('To', 'a@x'), ('Content-Type', f'multipart/{kind}; boundary=b'), payload=parts
        )

    return message


def attached(name: str, value: str) -> Any:
    mail = f'{name}: {value}\n\né'.encode()
    return plain(attachments=[Attachment('a.eml', mail, content_type='message/rfc822')])


def dkim(name: str, value: str) -> Any:
    return headers(('From', 'a@x'), ('To', 'a@x'), ('DKIM-Signature', 'h=from'), (name, value))


SENT_ON = {'sender': 's@x', 'recipients': 'r@x'}

WAYS: dict[str, tuple[Callable[[str, str], Any], dict[str, Any]]] = {
    'root': (root, {}),
    'sent on': (root, SENT_ON),
    'part': (inside('mixed'), {}),
    'part, sent on': (inside('mixed'), SENT_ON),
    'signed': (inside('signed'), {}),
    'attached': (attached, {}),
    'dkim': (dkim, {}),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('kind', SHAPES)
def test_headers_of_other_libraries(kind: str, way: str) -> None:
    """Twice as long a header takes at most three times as long, wherever it stands."""
    message, options = WAYS[way]
    for name in NAMES:

        def sent(size: int, name: str = name) -> None:
            with suppress(MessageError):
                factory.envelope(message(name, SHAPES[kind](size)), **options)

        assert grows_linearly(sent, SIZE), name


@pytest.mark.timeout(120)
@pytest.mark.parametrize('kind', SHAPES)
def test_arguments_of_a_message(kind: str) -> None:
    """Twice as long a text takes at most three times as long, whatever argument it is given to."""

    def arguments(text: str) -> list[dict[str, Any]]:
        return [
            {'subject': text},
            {'to': text},
            {'headers': {'X-A': text}},
            {'headers': {'References': text}},
            {'headers': {'Errors-To': text}},
            {'tag': text},
            {'html': f'<a href="cid:{text}'},
            {'html': f'<img src=cid:{text}'},
            {'html': f'<style>url(cid:{text}'},
            {'text': text},
            {'attachments': [Attachment(text, b'')]},
            {'attachments': [Attachment('a', b'', content_type=text)]},
            {'attachments': [Attachment('a', b'', content_id=text)]},
        ]

    for number in range(len(arguments(''))):

        def sent(size: int, number: int = number) -> None:
            with suppress(MessageError):
                factory.envelope(plain(**arguments(SHAPES[kind](size))[number]))

        assert grows_linearly(sent, SIZE), list(arguments(''))[number]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    'unit',
    [
        *('<', '<a ', '<a href="', '<a href=\'x" ', '<!--', '<!--[if', '<style>', '<textarea>'),
        *('<style>/*', '<style>*/', '<p style="/*', '/*', '/**/'),
        *('<img src=cid:', '<img src="cid:a" ', '<p style="url(cid:', 'url(', '&', '=', ' ', '/'),
        *('<a b=', '<img srcset="cid:a,', '</', '<a\n', 'cid:'),
    ],
)
def test_html(unit: str) -> None:
    """Html of any kind is read in linear time."""

    def sent(size: int) -> None:
        with suppress(MessageError):
            factory.envelope(plain(html='<b>' + unit * (size // len(unit)) + 'cid:'))

    assert grows_linearly(sent, 200_000)


@pytest.mark.timeout(120)
def test_many_pictures() -> None:
    """Ten thousand inline pictures are no more than twice five thousand."""

    def sent(count: int) -> None:
        html = ''.join(f'<img src="cid:c{number}">' for number in range(count))
        files = [Attachment('a.png', b'x', content_id=f'c{n}') for n in range(count)]
        envelope = factory.envelope(plain(text=None, html=html, attachments=files))
        assert envelope.raw.count(b'Content-Disposition: inline') == count

    assert grows_linearly(sent, 1000)


@pytest.mark.timeout(120)
@pytest.mark.parametrize('policy', [email.policy.default, email.policy.SMTP, email.policy.compat32])
def test_a_signed_message_with_a_long_name_of_a_parameter(policy: Any) -> None:
    """The standard library's generator folded such a header for ever."""
    text = (
        'From: a@x\r\nTo: b@x\r\nContent-Type: multipart/signed; boundary=q; '
        f'protocol="application/pgp-signature"; micalg=pgp-sha256; {"x" * 80}=y\r\n\r\n'
        '--q\r\n\r\nHello\r\n--q\r\nContent-Type: application/pgp-signature\r\n\r\nx\r\n--q--\r\n'
    )

    envelope = freeze(email.message_from_string(text, policy=policy))

    assert envelope.raw.endswith(text.partition('\r\n\r\n')[2].encode())
    assert b'x' * 80 + b'=y' in envelope.raw


@pytest.mark.timeout(120)
@pytest.mark.parametrize('kind', ['signed', 'mixed'])
def test_a_long_name_of_a_parameter_inside(kind: str) -> None:
    """Nor does it matter where such a header stands, and whether a program has made it."""
    inner = EmailMessage()
    inner.set_content('Hello')
    inner['Content-Disposition'] = f'inline; {"x" * 80}=é'
    message = headers(
        ('To', 'a@x'), ('Content-Type', f'multipart/{kind}; boundary=b'), payload=[inner]
    )

    if kind == 'signed':
        with pytest.raises(MessageError, match='multipart/signed has a header Content-Disp'):
            freeze(message)
    else:
        assert shape(read(freeze(message))) == {'multipart/mixed': ['text/plain']}


@pytest.mark.parametrize(
    ('message', 'named'),
    [
        (plain(subject='é' * 10_000_000), 'subject: 10000000 characters are more .*; shorten it'),
        (plain(headers={'X-A': 'x' * 100_001}), 'X-A: 100001 characters .*100000; shorten it'),
        (
            plain(attachments=[Attachment('é' * 1_000_000, b'')]),
            'filename: .* has 1000000 characters, more than 1000; shorten',
        ),
        (
            plain(attachments=[Attachment('a', b'', content_type='a/b' + '; a=b' * 400_000)]),
            "'a': its content_type has 2000003 characters, more than 2000; leave parameters",
        ),
        (headers(('To', 'a@x'), ('X-A', 'x ' * 50_001)), 'X-A: 100002 characters'),
        (headers(('To', 'a@x,' * 250_001)), 'To: 1000004 characters are more .* 1000000'),
        (headers(('To', 'a@x'), ('Subject', Header('x' * 100_001))), 'Subject: 100001 char'),  # type: ignore[arg-type]
    ],
)
def test_limits(message: Any, named: str) -> None:
    """What is too long is refused; the text names it, its length and the limit."""
    with pytest.raises(MessageError) as caught:
        factory.envelope(message)

    assert_refused(caught.value, named)


def test_the_longest_that_is_taken() -> None:
    """A header of any text up to the limit leaves, in lines that SMTP carries."""
    for text in ('é' * 100_000, 'x ' * 49_999 + 'x', 'x' * 100_000, '"' * 100_000):
        assert freeze(plain(subject=text)).subject == text


@pytest.mark.timeout(60)
def test_a_part_that_stands_in_itself_many_times() -> None:
    """Ten parts of ten parts of ten parts are bounded by mail.max_size and by their number."""
    small = EnvelopeFactory(default_sender='a@x', max_size=100_000)
    for payload in ('x' * 100, ''):
        message: AnyMessage = headers(payload=payload)
        for _ in range(40):
            message = headers(('Content-Type', 'multipart/mixed'), payload=[message, message])
        message['To'] = 'a@x'
        with pytest.raises(MessageError, match=r'max_size = 100000; send less|or more than 20000'):
            small.envelope(message)
        with pytest.raises(MessageError, match='or more than 20000; attach'):
            factory.envelope(message)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    'data',
    [
        b'Content-Type: message/rfc822\n\n' * 2000 + b'\xff',
        b''.join(
            b'Content-Type: multipart/mixed; boundary=%d\n\n--%d\n' % (n, n) for n in range(99)
        )
        + b'\xff',
        b'Content-Type: multipart/mixed; boundary=b\n\n' + b'--b\n\n' * 9_000 + b'\xff',
        b'X: \xff\n\n' + b'\n' * 2_000_000,
        b'X: \xff' + b'\n a' * 1_000_000,
        b'Content-Type: multipart/mixed; boundary="'
        + b'x' * 90_000
        + b'"\n\n'
        + b'--\xff\n' * 90_000,
    ],
)
def test_an_attached_mail_is_parsed_within_bounds(data: bytes) -> None:
    """A stated mail of any depth, number of parts and lines is refused or encoded, soon."""
    message = plain(attachments=[Attachment('a.eml', data, content_type='message/rfc822')])
    with suppress(MessageError):
        assert_wire(factory.envelope(message).raw)


def test_caches_keep_no_long_texts() -> None:
    """Sixty long names, addresses and slots leave no trace in memory."""
    tracemalloc.start()
    try:
        for number in range(60):
            name = 'word ' * 4000 + str(number)
            address_line('To', [Mailbox(name, 'a@example.org')])
            is_valid_path(f'{name}@example.org')
            with suppress(MessageError):
                factory.envelope(plain(to=[f'{name} <a@example.org>'], sender=f'{name} <a@x.org>'))
            if number < 9:
                write_slot([], 10_000 + number)
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
