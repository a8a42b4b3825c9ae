"""Header lines: any reader gets the text back, and nothing else."""

from __future__ import annotations

import email
import email.policy
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message.encoded_words import decode_words
from pyramid_sendmail.message.headers import (
    check_date,
    check_message_id,
    check_name,
    check_text,
    date_line,
    excerpt,
    fold,
    holds_identifiers,
    preserved_line,
    structured_line,
    unfold,
    unstructured_line,
)

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp')),
        st.sampled_from('  "\\=?_,;:<>@()é👩\u200d🔬e\u0301ßж'),
    ),
    max_size=200,
)


def read(line: bytes, name: str) -> str:
    """Return the value as the standard library reads it."""
    return str(email.message_from_bytes(line + b'\r\n', policy=email.policy.default)[name])


def value_of(line: bytes) -> str:
    text = line.decode('ascii').removesuffix('\r\n').replace('\r\n', '')
    return text.partition(': ')[2]


@given(TEXT)
@example('=?utf-8?Q?=0A?=Bcc: x')
@example('a =?utf-8?q?b c?= d')
@example('x' * 2000)
@example('é ' * 300)
@example(' ')
@example('a  b ')
@example('\ta')
@example('Hello Jürgen and  Jörg, welcome')
def test_unstructured_round_trip(text: str) -> None:
    """Any text without control characters is read back exactly, from short lines of ASCII."""
    line = unstructured_line('Subject', text)

    assert line.isascii()
    assert line.endswith(b'\r\n')
    lines = line[:-2].split(b'\r\n')
    assert all(part[:1] == b' ' and part.strip() for part in lines[1:])
    assert max(map(len, lines)) <= 998
    for word in re.findall(rb'=\?utf-8\?[bq]\?[^?]*\?=', line):
        assert len(word) <= 75
    assert decode_words(value_of(line)) == text
    assert read(line, 'Subject') == text


def test_short_line() -> None:
    """Short ASCII text is written as it is."""
    assert unstructured_line('Subject', 'Welcome') == b'Subject: Welcome\r\n'
    assert unstructured_line('Subject', '') == b'Subject: \r\n'


def test_only_what_must_be_is_encoded() -> None:
    """Only the words that are not ASCII are encoded."""
    line = unstructured_line('Subject', 'Hello Jürgen and welcome')

    assert line == b'Subject: Hello =?utf-8?q?J=C3=BCrgen?= and welcome\r\n'


def test_fold_at_blanks() -> None:
    """A long plain text is folded at its own blanks, at 76 characters, and keeps them all."""
    text = 'one two  three ' * 20 + 'end'

    lines = unstructured_line('Subject', text).decode().split('\r\n')

    assert max(map(len, lines)) <= 76
    assert ''.join(lines) == f'Subject: {text}'


def test_encoded_lines_are_short() -> None:
    """Lines with encoded words have at most 76 characters (RFC 2047, 2)."""
    for text in ('é' * 500, 'a' * 50 + ' é' + ' b' * 300, 'é b c' * 99):
        for name in ('Subject', 'X-Something-Rather-Long'):
            line = unstructured_line(name, text)
            assert max(map(len, line.split(b'\r\n'))) <= 76
            assert read(line, name) == text


def test_list_unsubscribe_survives() -> None:
    """A URL of 300 characters is neither encoded nor folded, and follows the colon (RFC 8058)."""
    url = '<https://example.org/u?' + 'x=?' * 92 + '>'

    assert structured_line('List-Unsubscribe', url) == f'List-Unsubscribe: {url}\r\n'.encode()


def test_references_fold_between_ids() -> None:
    """Message ids are folded only between each other."""
    ids = [f'<{"a" * 30}{number}@example.org>' for number in range(10)]

    line = structured_line('References', ' '.join(ids)).decode()

    assert line.replace('\r\n', '') == 'References: ' + ' '.join(ids)
    assert all(len(part) <= 76 for part in line.split('\r\n'))


@pytest.mark.parametrize(
    ('name', 'separator', 'kept'),
    [
        ('References', ',', ','),
        ('References', '', ''),
        ('In-Reply-To', ',', ','),
        ('List-Unsubscribe', ',', ','),
        ('List-Help', ' ,', ' ,'),
    ],
)
def test_lists_without_blanks(name: str, separator: str, kept: str) -> None:
    """Ids and URLs that were joined without blanks are folded between two of them alone."""
    items = [f'<https://example.org/{number}?{"a,b" * 10}@x>' for number in range(50)]

    line = structured_line(name, separator.join(items)).decode()

    assert all(len(part) <= 76 for part in line.split('\r\n'))
    text = line.replace('\r\n', '').removeprefix(f'{name}: ')
    assert text.replace('> <', '><').replace(', <', ',<') == kept.join(items)
    for other in ('X-A', 'Precedence'):
        with pytest.raises(MessageError, match='998'):
            structured_line(other, ','.join(items))


@pytest.mark.parametrize(
    ('write', 'name', 'text', 'named'),
    [
        (structured_line, 'References', '<é@x>', 'References.*not ASCII.*percent'),
        (structured_line, 'References', '<' + 'a' * 1000 + '@x>', 'References.*998'),
        (structured_line, 'References', '<a@x>\r\nBcc: x', 'References.*line break'),
        (unstructured_line, 'Subject', 'a\nb', 'Subject.*line break'),
        (unstructured_line, 'Subject', 'a\0b', r'Subject.*U\+0000'),
        (unstructured_line, 'Subject', 'a\x85b', 'Subject.*line break'),
        (unstructured_line, 'Subject', 'a\u2028b', 'Subject.*line break'),
        (unstructured_line, 'Subject', 'a\ud800b', 'Subject.*lone surrogate'),
        (preserved_line, 'X-A', 'a\nBcc: x', 'X-A.*line break'),
        (preserved_line, 'X-A', 'a\udcffb', 'X-A.*UTF-8'),
        (preserved_line, 'References', '<é@x>', 'References.*not ASCII'),
        (preserved_line, 'Content-Type', 'text/é', r'Content-Type.*not ASCII.*add_header\(\)'),
        (preserved_line, 'X-A', '=?utf-8?q?=0ABcc:?= é', 'X-A.*line break'),
    ],
)
def test_refused(write: object, name: str, text: str, named: str) -> None:
    """Text that a header cannot hold is refused; the error names the header, and escapes it."""
    with pytest.raises(MessageError, match=named) as caught:
        write(name, text)  # type: ignore[operator]
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_preserved_line_stays() -> None:
    """A header that another program folded and encoded is not encoded again."""
    assert preserved_line('Subject', '=?utf-8?q?=C3=A9?=\n =?utf-8?q?=C3=A8?=\n') == (
        b'Subject: =?utf-8?q?=C3=A9?=\r\n =?utf-8?q?=C3=A8?=\r\n'
    )


def test_preserved_line_is_folded() -> None:
    """Lines that are too long are folded, and lines of blanks removed."""
    long = preserved_line('X-A', 'word ' * 40 + 'end')

    assert max(map(len, long.split(b'\r\n'))) <= 76
    assert preserved_line('X-A', 'a\r\n \r\n b') == b'X-A: a  b\r\n'


@pytest.mark.parametrize(
    'text', ['x' * 2_000, 'a ' + 'x' * 2_000, '=?utf-8?q?=C3=A9?= ' + 'x' * 999]
)
def test_preserved_line_of_a_long_word(text: str) -> None:
    """Free text without blanks is encoded, as that of a Message is; an id is not."""
    line = preserved_line('Subject', text)

    assert max(map(len, line.split(b'\r\n'))) <= 76
    assert decode_words(unfold(line.decode())) == f'Subject: {decode_words(text)}'
    for name in ('Received', 'Content-Language', 'Errors-To'):
        with pytest.raises(MessageError, match='998'):
            preserved_line(name, text)


def test_preserved_line_of_raw_bytes() -> None:
    """Bytes that a parser could not decode are read as UTF-8, and encoded."""
    raw = 'Grüße =?utf-8?q?=C3=A9?='.encode().decode('ascii', 'surrogateescape')

    assert read(preserved_line('Subject', raw), 'Subject') == 'Grüße é'


def test_unfold() -> None:
    """Folding is removed; other line breaks stay, for check_text to refuse."""
    assert unfold('a\r\n b\n\tc\r d\r\n') == 'a b\tc d'
    assert unfold('a\nb') == 'a\nb'
    assert unfold('\udcc3\udca9') == 'é'
    assert unfold('\udcff') == '\udcff'


@pytest.mark.parametrize('name', ['', 'a b', 'a:', 'a\r\nBcc', 'é', 'a\0', None, 5])
def test_bad_names(name: object) -> None:
    """A header name that is not ftext is refused (RFC 5322, 3.6.8)."""
    with pytest.raises(MessageError, match=r'headers: .*is not a header name'):
        check_name(name)


def test_check_text_wants_a_string() -> None:
    """A value that is not a string is refused; the text says what to give."""
    with pytest.raises(MessageError, match=r"subject: b'x' is not a string; give a str"):
        check_text(b'x', 'subject')
    assert check_text('a\tb', 'subject') == 'a\tb'


@pytest.mark.parametrize('value', ['<a@b>', '<a.b$c@[127.0.0.1]>', '<x=?@example.org>'])
def test_good_message_ids(value: str) -> None:
    """A message id is a left side, an @ and a right side in angle brackets."""
    assert check_message_id(value, 'Message-ID') == value


@pytest.mark.parametrize(
    'value', ['', 'a@b', '<a>', '<a@b> <c@d>', '<a b@c>', '<é@b>', '<a@b>\n', '<a@@b>', '<a@b']
)
def test_bad_message_ids(value: str) -> None:
    """Anything else is refused as a message id."""
    with pytest.raises(MessageError, match=r'Message-ID: .*<unique@example.org>'):
        check_message_id(value, 'Message-ID')


@pytest.mark.parametrize(
    'value',
    ['Mon, 23 Nov 2026 01:54:03 +0000', '1 Jan 2024 00:00 GMT', '01 Jan 2024 00:00:00 -0000 (UTC)'],
)
def test_good_dates(value: str) -> None:
    """Dates of RFC 5322, 3.3, are accepted."""
    assert check_date(value, 'Date') == value


@pytest.mark.parametrize(
    'value', ['', 'yesterday', '2026-11-23', '31 Feb 2024 00:00 GMT', 'Mon, 23 Nov 26 01:54 +0000']
)
def test_bad_dates(value: str) -> None:
    """Anything else is refused as a date."""
    with pytest.raises(MessageError, match=r'Date: .*format_datetime'):
        check_date(value, 'Date')


def test_date_line() -> None:
    """A Date line is in UTC, and names its zone."""
    assert date_line(0.9) == b'Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n'


def test_fold_never_after_the_colon() -> None:
    """A value that is too long for the first line still follows the colon."""
    assert fold('X', [' ' + 'a' * 100, ' b']) == b'X: ' + b'a' * 100 + b'\r\n b\r\n'


def test_identifiers() -> None:
    """Headers of identifiers are never encoded; List-Id, which has a phrase, may be."""
    assert holds_identifiers('LIST-Unsubscribe')
    assert holds_identifiers('References')
    assert not holds_identifiers('List-Id')
    assert not holds_identifiers('Subject')


def test_excerpt() -> None:
    """An error shows the beginning of a value, escaped."""
    assert excerpt('a\nb') == r"'a\nb'"
    assert excerpt('x' * 100) == "'" + 'x' * 59 + '...'
    assert len(excerpt(list(range(100)))) < 70
    assert excerpt(5) == '5'
