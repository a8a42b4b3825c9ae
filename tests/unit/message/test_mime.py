"""MIME parts: any text and any data arrive as they are, in lines that a relay takes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.message.mime import base64_lines, encoded_text
from pyramid_sendmail.message.verify import verify
from tests.support.messages import freeze, plain, read

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=['Cs']), st.sampled_from('\r\n.\0 \t=é👩\u200d🔬e\u0301')
    ),
    max_size=300,
)


def canonical(text: str) -> str:
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    return text if not text or text.endswith('\n') else f'{text}\n'


@given(TEXT, TEXT)
@example('\n.\n', '\r.\r')
@example('\r\n.\r', '.')
@example('x' * 5000, 'é' * 5000)
@example('From here\n\nFrom there', '\0' * 100)
@example('a ' * 40 + '\n\t', ' ')
def test_any_text(text: str, html: str) -> None:
    """Any text and html arrive exactly, except for line ends, in lines that a relay accepts."""
    message = read(freeze(plain(text=text, html=html)))

    parts = [part.get_payload(decode=True) for part in message.iter_parts()]
    found = [part.decode() for part in parts if isinstance(part, bytes)]
    expected = [canonical(text).replace('\n', '\r\n'), canonical(html).replace('\n', '\r\n')]
    # What is not encoded ends where the boundary's own line break begins.
    assert [part.replace('\r\n', '\n') for part in found] == [
        part.replace('\r\n', '\n') for part in expected
    ]


def test_readable_encodings() -> None:
    """Text that is mostly ASCII becomes quoted-printable, other text base64."""
    assert b'Encoding: quoted-printable' in freeze(plain(text='Grüße aus Köln')).raw
    assert b'Encoding: quoted-printable' in freeze(plain(text='x' * 79)).raw
    assert b'Encoding: base64' in freeze(plain(text='Привет')).raw


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b'word ', b'x' * 78, b'\xe9', b'\n'])))
@example(b'\r\0\r\n')
@example(b'x' * 5000 + b'\r')
@example(b'\xe9x' * 100)
def test_unverified_bodies_are_valid(data: bytes | list[bytes]) -> None:
    """Encoded texts and files, which ``verify`` is not given, would pass it."""

    data = data if isinstance(data, bytes) else b''.join(data)
    for body in (encoded_text(data)[1], base64_lines(data)):
        verify(b'A: b\r\n\r\n' + body + b'\r\n', ['A'])


@pytest.mark.parametrize('length', [0, 1, 56, 57, 58, 29183, 29184, 29185, 29241, 90000])
def test_base64_has_lines_of_76(length: int) -> None:
    """Base64 of any length equals the standard library's, with CRLF."""
    data = bytes(n * n % 251 for n in range(length))
    assert base64_lines(data) == base64.encodebytes(data).replace(b'\n', b'\r\n')
