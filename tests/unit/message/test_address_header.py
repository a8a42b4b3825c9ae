"""Headers that hold addresses: folded, quoted and encoded so that readers get them back."""

from __future__ import annotations

import email
import email.policy

from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.message.address import Group, Mailbox, parse_list
from pyramid_sendmail.message.address_header import address_line

NAME = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp', 'Zs', 'Co', 'Cn')),
        st.sampled_from(' "\\=?_,;:<>@().é👩\u200d🔬e\u0301ß'),
    ),
    max_size=120,
)


def unfolded(line: bytes) -> str:
    return line.decode().replace('\r\n', '').partition(': ')[2]


@given(NAME)
@example('Doe, ' * 20)
@example('"' * 90)
@example('a' * 200)
@example('Jürgen ' * 30)
@example('=?utf-8?Q?=0A?=Bcc: x')
@example('a  b')
@example(' a')
def test_display_name_round_trip(name: str) -> None:
    """Any name is read back exactly, by our parser and the standard library's, from ASCII."""
    line = address_line('To', [Mailbox(name, 'a@example.org'), Mailbox('', 'b@example.org')])

    assert line.isascii()
    assert max(map(len, line[:-2].split(b'\r\n'))) <= 998
    assert list(parse_list(unfolded(line), 'to')) == [
        Mailbox(name, 'a@example.org'),
        Mailbox('', 'b@example.org'),
    ]
    header = email.message_from_bytes(line + b'\r\n', policy=email.policy.default)['To']
    assert [address.addr_spec for address in header.addresses] == ['a@example.org', 'b@example.org']
    # That reader loses blanks, and finds one between two encoded words of a name.
    assert ''.join(header.addresses[0].display_name.split()) == ''.join(name.split())
    if line.count(b'=?utf-8') < 2 and name == ' '.join(name.split()):
        assert header.addresses[0].display_name == name


def test_utf8_local_part_is_never_encoded() -> None:
    """An address that is not ASCII makes a line of UTF-8 (RFC 6532); its name stays encoded."""
    line = address_line('To', [Mailbox('Jörg', 'jörg@example.org')])

    assert line.decode() == 'To: =?utf-8?b?SsO2cmc=?= <jörg@example.org>\r\n'


def test_lines_break_between_mailboxes() -> None:
    """A long list is folded after commas, at 76 characters."""
    people = [Mailbox(f'Person {n}', f'person{n}@example.org') for n in range(20)]

    lines = address_line('Cc', people).decode().removesuffix('\r\n').split('\r\n')

    assert max(map(len, lines)) <= 76
    assert all(line.endswith('>,') for line in lines[:-1])


def test_long_quoted_name_keeps_its_quotes() -> None:
    """A quoted name keeps its quotes when it is folded (python/cpython#80222)."""
    line = address_line('To', [Mailbox('Doe, ' * 30 + 'John', 'j@example.org')])

    assert unfolded(line) == '"' + 'Doe, ' * 30 + 'John" <j@example.org>'
    assert max(map(len, line.split(b'\r\n'))) <= 76


def test_groups_are_written() -> None:
    """Groups, empty or not, are read back exactly."""
    groups = [
        Group('undisclosed-recipients'),
        Group('A, B', (Mailbox('', 'a@x'), Mailbox('B', 'b@x'))),
    ]

    line = address_line('To', groups)

    assert line == b'To: undisclosed-recipients:;, "A, B": a@x, B <b@x>;\r\n'
    assert list(parse_list(unfolded(line), 'to')) == groups
