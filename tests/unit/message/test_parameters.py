"""Parameters of MIME headers: read from any text, and found again by readers."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message.headers import preserved_line, unfold
from pyramid_sendmail.message.parameters import (
    content_line,
    parameter,
    set_parameter,
    split_parameters,
    with_parameters,
)

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp')),
        st.sampled_from('  "\\=?_,;:<>@()é👩\u200d🔬e\u0301ßж'),
    ),
    max_size=200,
)


def _is_no_msg_id(name: str) -> bool:
    """Return whether the old reader keeps a name: it strips angle brackets around a whole one."""
    return not (name.startswith('<') and name.endswith('>'))


@given(TEXT.filter(lambda text: text.strip() == text and text != '').filter(_is_no_msg_id))
@example('x' * 300 + '.pdf')
@example('ü' * 300 + '.pdf')
@example('a"b\\c.pdf')
@example("it's 100%.pdf")
@example('=?utf-8?q?x?=.pdf')
def test_file_name_round_trip(name: str) -> None:
    """Any file name is read back exactly, by the new reader and the old one (RFC 2231)."""
    value = with_parameters('Content-Disposition', 'attachment', [('filename', name)])
    line = preserved_line('Content-Disposition', value)

    assert max(map(len, line.split(b'\r\n'))) <= 78
    for policy in (email.policy.default, email.policy.compat32):
        message = email.message_from_bytes(line + b'\r\n', policy=policy)
        assert message.get_filename() == name
        assert message.get_content_disposition() == 'attachment'


def test_parameters_are_checked() -> None:
    """A line break in a parameter's name or value is refused."""
    with pytest.raises(MessageError, match=r'Content-Type, name.*line break'):
        with_parameters('Content-Type', 'text/plain', [('name', 'a\r\nBcc: x')])
    with pytest.raises(MessageError, match=r'Content-Type.*parameter'):
        with_parameters('Content-Type', 'text/plain', [('a b', 'x')])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('text/plain', ('text/plain', [])),
        ('text/plain;', ('text/plain', [])),
        (
            'a/b; Charset = utf-8 ;;x="a;\\"b" junk; y',
            ('a/b', [('charset', 'utf-8'), ('x', '"a;\\"b"'), ('y', '')]),
        ),
        ('a/b; x="never closed; y=z', ('a/b', [('x', '"never closed'), ('y', 'z')])),
        ('; a=b', ('', [('a', 'b')])),
    ],
)
def test_split_parameters(text: str, expected: object) -> None:
    """Parameters are found in good headers and in bad ones."""
    assert split_parameters(text) == expected


def test_a_parameter() -> None:
    """A parameter is read without its quotes, and replaced together with its RFC 2231 form."""
    assert parameter('a/b; x="a\\"b"; X=c', 'x') == 'a"b'
    assert parameter('a/b; x=1', 'y') is None
    assert set_parameter('a/b; x*0=1; x*1=2; y="z"', 'x', 'w') == 'a/b; y="z"; x="w"'


@pytest.mark.parametrize('name', ['Content-Type', 'Content-Disposition'])
def test_raw_bytes_in_a_file_name(name: str) -> None:
    """A file name of raw UTF-8, or too long for a line, is written as RFC 2231 has it."""
    for file_name in ('Grüße aus Köln.pdf', 'word ' * 300 + 'end.pdf'):
        line = content_line(name, f'attachment/x; y*=utf-8\'\'%C3%A9; filename="{file_name}"')

        assert max(map(len, line.split(b'\r\n'))) <= 998
        message = email.message_from_bytes(
            line.replace(b'attachment/x', b'attachment' if name[8] == 'D' else b'a/x') + b'\r\n',
            policy=email.policy.default,
        )
        assert message[name].params['filename'] == file_name
        assert message[name].params['y'] == 'é'


def test_raw_bytes_elsewhere() -> None:
    """A type that is not ASCII is refused."""
    with pytest.raises(MessageError, match=r'Content-Type.*not ASCII'):
        content_line('Content-Type', 'text/é; x=y')


def test_a_long_name_of_a_parameter() -> None:
    """The standard library's folding never ends for such a header."""
    line = content_line('Content-Type', f'a/b; {"x" * 80}=é')

    assert unfold(line.decode()) == f"Content-Type: a/b; {'x' * 80}*=utf-8''%C3%A9"
