"""Addresses: how people write them, and how SMTP carries them."""

from __future__ import annotations

from email.headerregistry import Address
from email.utils import formataddr
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message.address import (
    Group,
    Mailbox,
    check_address,
    comparison_key,
    mailboxes,
    parse_address,
    parse_addresses,
    parse_list,
)
from pyramid_sendmail.message.address_header import address_line

NAME = st.text(
    st.one_of(
        st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp', 'Zs', 'Co', 'Cn')),
        st.sampled_from(' "\\=?_,;:<>@().é👩\u200d🔬e\u0301ß'),
    ),
    max_size=120,
)

LOCAL = st.text(
    st.one_of(
        st.characters(min_codepoint=32, max_codepoint=126),
        st.sampled_from('.@," <>\\äß日'),
    ),
    min_size=1,
    max_size=20,
)


def unfolded(line: bytes) -> str:
    return line.decode().replace('\r\n', '').partition(': ')[2]


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('a@x', [('', 'a@x')]),
        ('root@localhost', [('', 'root@localhost')]),
        ('Ann <ann@example.org>', [('Ann', 'ann@example.org')]),
        ('<ann@example.org>', [('', 'ann@example.org')]),
        ('"Doe, John" <j@x>', [('Doe, John', 'j@x')]),
        ('"Doe, John" <j@x>, b@y', [('Doe, John', 'j@x'), ('', 'b@y')]),
        ('John Q. Public <j@x>', [('John Q. Public', 'j@x')]),
        ('Jürgen Müller <j@x>', [('Jürgen Müller', 'j@x')]),
        ('"a \\"b\\" \\\\c"  <j@x>', [('a "b" \\c', 'j@x')]),
        ('"a"b "c" <j@x>', [('ab c', 'j@x')]),
        (' "" <j@x> ', [('', 'j@x')]),
        ('=?utf-8?q?J=C3=BCrgen?= =?utf-8?q?_M?= <j@x>', [('Jürgen M', 'j@x')]),
        ('"=?utf-8?q?J=C3=BCrgen?=" <j@x>', [('=?utf-8?q?J=C3=BCrgen?=', 'j@x')]),
        ('Ann (the \\) (first)) Lee <ann@x> (work)', [('Ann Lee', 'ann@x')]),
        ('ann@x (Ann)', [('', 'ann@x')]),
        ('"a b"@x', [('', '"a b"@x')]),
        ('"a@b,c"@x', [('', '"a@b,c"@x')]),
        ('"ann"@x', [('', 'ann@x')]),
        ('"a\\"b"@x', [('', '"a\\"b"@x')]),
        ('"\\a b"@x', [('', '"a b"@x')]),
        ('""@x', [('', '""@x')]),
        ('jörg@x', [('', 'jörg@x')]),
        ('a@Bücher.Example', [('', 'a@xn--bcher-kva.example')]),
        ('a@i❤.ws', [('', 'a@xn--i-7iq.ws')]),
        ('a@faß.de', [('', 'a@xn--fa-hia.de')]),
        ('a@Straße.Example', [('', 'a@xn--strae-oqa.example')]),
        ('a@ελλάδας.gr', [('', 'a@xn--hxakic4aa6c.gr')]),
        ('a@ΕΛΛΆΔΑΣ.gr', [('', 'a@xn--hxakic4aa3d.gr')]),
        ('a@क्\u200dष.in', [('', 'a@xn--11b2ezcw70k.in')]),
        ('a@[127.0.0.1]', [('', 'a@[127.0.0.1]')]),
        ('Ann <a@[IPv6:2001:DB8:0::1]>', [('Ann', 'a@[IPv6:2001:db8::1]')]),
        ('Friends: a@x, "B, C" <b@y>;', [('', 'a@x'), ('B, C', 'b@y')]),
        ('undisclosed-recipients:;', []),
        ('g: a@x;, b@y', [('', 'a@x'), ('', 'b@y')]),
        ('b@y, g: ;', [('', 'b@y')]),
    ],
)
def test_parsed(text: str, found: list[tuple[str, str]]) -> None:
    """Address lists of RFC 5322, and a few other forms that people use, are read."""
    entries = list(parse_list(text, 'to'))

    assert [(mailbox.name, mailbox.address) for mailbox in mailboxes(entries)] == found


BAD = [
    ('', 'empty address'),
    ('   ', 'empty address'),
    ('ann', 'has no @'),
    ('Doe, John <j@x>', 'Doe.*double quotes'),
    ('a b c@x', "the part before the @ is not valid .*: it holds ' '"),
    ('a@x b@y', 'not a mail address'),
    ('a@x;b@y', 'separated by commas'),
    ('a@x,', 'empty address'),
    ('a@x,,b@y', 'empty address'),
    ('a@@x', "the part before the @ is not valid .*: it holds '@'"),
    ('@x', 'the part before the @ is not valid .*: it is empty'),
    ('a@', 'not a domain'),
    ('<>', 'has no @'),
    ('Ann <ann@x', 'nothing may follow'),
    ('Ann <ann@x> Lee', 'nothing may follow'),
    ('<a@x> <b@y>', 'the part before the @ is not valid'),
    ('ann@x <ann@x>', "'@' needs double quotes"),
    ('a > b <c@x>', "'>' needs double quotes"),
    ('<@relay:a@x>', 'not a mail address'),
    ('.a@x', 'the part before the @ is not valid .*: a dot at its beginning'),
    ('a..b@x', 'the part before the @ is not valid .*: two dots in a row'),
    ('a.@x', 'the part before the @ is not valid .*: a dot at its end'),
    ('"a"b"@x', 'out of place'),
    ('"a\tb"@x', 'bare quote or a tab'),
    ('a(@x', 'not closed'),
    ('Ann) <a@x>', 'out of place'),
    ('-oQ/tmp@x', 'hyphen'),
    ('-o@bücher.example', 'hyphen'),
    ('=?utf-8?q?j=C3=B6?=@x', 'encoded word'),
    ('=?utf-8?q?j=C3=B6?=@é.example', 'encoded word'),
    ('a@-x', 'not a domain'),
    ('a@x-.org', 'not a domain'),
    ('a@x..org', 'not a domain'),
    ('a@x.org.', 'not a domain'),
    ('a@x_y.org', 'not a domain'),
    ('a@' + 'x' * 64, 'not a domain'),
    ('a@' + 'x.' * 130 + 'org', 'not a domain'),
    ('x' * 65 + '@x', '64 bytes'),
    ('é' * 33 + '@x', '64 bytes'),
    ('x' * 60 + '@' + 'y.' * 100 + 'org', '254 bytes'),
    ('a@stra\u00adße.de', 'xn--'),
    ('a@xn--ß.de', 'xn--'),
    ('a@' + 'ü.' * 200, 'xn--'),
    ('a@\u3002x.org', 'xn--'),
    ('a@x\u200dy.org', 'xn--'),
    ('a@bücher..de', 'not a domain'),
    ('a@ü' + 'x' * 64, 'xn--'),
    ('a@[127.0.0.256]', 'literal'),
    ('a@[IPv6:zz]', 'literal'),
    ('a@[IPv6:fe80::1%eth0]', 'literal'),
    ('a@[IPv6:fe80::1%> BODY=8BITMIME]', 'literal'),
    ('a@[x', 'out of place'),
    ('a@x\r\nRCPT TO:<b@y>', 'line break'),
    ('a@x\0', 'control character U.0000'),
    ('a\x7f@x', 'control character'),
    ('"Ann\nBcc: b@y" <a@x>', 'line break'),
    ('=?utf-8?q?A=0ABcc=3A_b?= <a@x>', 'line break'),
    ('a\ud800@x', 'lone surrogate'),
    ('a\u202e@x', "the part before the @ is not valid .*: it holds '.u202e'"),
    ('g: a@x', 'semicolon'),
    ('g: a@x,;', 'nothing after'),
    ('g: h: a@x;', 'not a mail address'),
    ('g:; h:;', 'separated by commas'),
    ('g:;;', 'separated by commas'),
    ('g:; b@y', 'separated by commas'),
    (';', 'separated by commas'),
    ('=?utf-8?q?Ann_=3Ca=40x=3E?=', 'it is an encoded word; encode the name alone'),
]


@pytest.mark.parametrize(('text', 'why'), BAD)
def test_refused(text: str, why: str) -> None:
    """An invalid address is refused: the text names it, the argument, the reason and the remedy."""
    with pytest.raises(MessageError, match=why) as caught:
        list(parse_list(text, 'cc'))

    words = str(caught.value)
    assert words.startswith('cc: ')
    assert words.isprintable()
    assert len(words) < 300


@pytest.mark.parametrize('character', [chr(c) for c in (*range(32), *range(127, 160), 0x2028)])
def test_no_control_character(character: str) -> None:
    """No control character gets into an envelope, wherever it stands (RFC 5321, 4.1.2)."""
    for text in (f'a{character}b@x', f'"a{character}b"@x', f'a@x{character}y', f'<a@x{character}>'):
        if character == '\t' and text.startswith('<'):
            continue
        with pytest.raises(MessageError):
            list(parse_list(text, 'to'))


def test_lists_and_objects() -> None:
    """Addresses are given as a string, an Address, or a list of both."""
    ann = Address('Ann Lee', 'ann', 'example.org')

    assert parse_addresses(ann, 'to') == (Mailbox('Ann Lee', 'ann@example.org'),)
    assert parse_addresses([ann, 'b@x', 'c@x'], 'to') == (
        Mailbox('Ann Lee', 'ann@example.org'),
        Mailbox('', 'b@x'),
        Mailbox('', 'c@x'),
    )
    assert parse_addresses((Address('=?utf-8?q?x?=', 'a b', 'x'),), 'to') == (
        Mailbox('=?utf-8?q?x?=', '"a b"@x'),
    )
    assert parse_addresses((), 'to') == ()


SEVERAL = [
    'b@x, c@x',
    'evil@example.net, Ann <ann@example.org>',
    'Friends: b@x, c@x;',
    'Friends: b@x;',
    'g:;, b@x',
]


@pytest.mark.parametrize('text', SEVERAL)
def test_a_string_is_one_address(text: str) -> None:
    """A string is one address, alone and in a list, so that form input cannot add recipients."""
    for value in (text, [text], ['a@x', text], (text,)):
        with pytest.raises(MessageError, match=r'to: .* is not one address; .* a list') as caught:
            parse_addresses(value, 'to')
        assert repr(text) in str(caught.value)


def test_a_group_of_none() -> None:
    """A group without members adds no recipient, and may stand in To."""
    assert parse_addresses('undisclosed-recipients:;', 'to') == (Group('undisclosed-recipients'),)


@given(name=st.text(max_size=40), address=st.sampled_from(['ann@example.org', ' ann@example.org ']))
@example('evil@example.net, Ann', 'ann@example.org')
@example('Ann <evil@example.net>, "', 'ann@example.org')
@example('g: evil@example.net;', 'ann@example.org')
@example('Miller, Ann', 'ann@example.org')
@example('=?utf-8?q?=2C_evil=40x?=', 'ann@example.org')
def test_a_pair(name: str, address: str) -> None:
    """A pair in a list is a name and an address, whatever the name is."""
    try:
        (found,) = parse_addresses([(name, address)], 'to')
    except MessageError as error:
        assert 'take it out' in str(error)  # noqa: PT017
        return
    assert found == Mailbox(name.strip(' '), 'ann@example.org')
    (read,) = parse_list(unfolded(address_line('To', [found])), 'to')
    assert read == found


def test_pairs_among_others() -> None:
    """Pairs stand beside strings and Address objects; a name may be None."""
    found = parse_addresses([(None, 'a@x'), 'B <b@x>', ('', 'c@x'), Address('D', 'd', 'x')], 'to')

    assert found == (
        Mailbox('', 'a@x'),
        Mailbox('B', 'b@x'),
        Mailbox('', 'c@x'),
        Mailbox('D', 'd@x'),
    )


@pytest.mark.parametrize(
    ('pair', 'why'),
    [
        (('Ann', 'ann@x, evil@x'), "it holds '@'"),
        (('Ann', 'Ann <ann@x>'), "it holds ' '"),
        (('Ann', ''), "'' has no @"),
        (('Ann', None), 'None is not a string'),
        ((5, 'ann@x'), '5 is not a string'),
        (('Ann', 'ann@x', 'x'), 'is not an address; give .* a pair'),
        (['Ann', 'ann@x'], 'is not an address; give .* a pair'),
        (('Ann\nBcc: evil@x', 'ann@x'), 'a line break'),
        (('Ann', 'ann@x\nBcc: evil@x'), 'a line break'),
    ],
)
def test_wrong_pairs(pair: Any, why: str) -> None:
    """The second of a pair is one bare address."""
    with pytest.raises(MessageError, match=f'^to: .*{why}'):
        parse_addresses([pair], 'to')


def test_a_pair_without_a_list() -> None:
    """A pair that is not in a list looks like two addresses: the text says how to write it."""
    with pytest.raises(
        MessageError, match=r"'Ann' has no @; .* or \[\('Ann', 'ann@example.org'\)\]"
    ):
        parse_addresses(('Ann', 'ann@example.org'), 'to')


@pytest.mark.parametrize(
    ('value', 'why'),
    [
        (5, '5 holds no addresses'),
        (None, 'None holds no addresses'),
        (b'a@x', "b'a@x' holds no addresses"),
        ({'a@x': 'Ann'}, 'holds no addresses'),
        ([b'a@x'], "b'a@x' is not an address; give a str"),
        ([None], 'None is not an address'),
        (Address('Ann', 'postmaster'), 'has no @'),
        (Address('A\tnn\x07', 'a', 'x'), 'U.0007'),
    ],
)
def test_wrong_types(value: Any, why: str) -> None:
    """A value of another type is refused, and the text says what to give."""
    with pytest.raises(MessageError, match=f'^to: .*{why}'):
        parse_addresses(value, 'to')


def test_exactly_one() -> None:
    """An argument for one address refuses several, none and groups."""
    assert parse_address('Ann <a@x>', 'sender') == 'a@x'
    values: list[Any] = ['a@x, b@x', [], 'g: a@x;']
    for value in values:
        with pytest.raises(MessageError, match=r'sender: .*exactly one'):
            parse_address(value, 'sender')


def test_comparison_key() -> None:
    """The domain's case does not distinguish addresses, the local part's does (RFC 5321, 2.4)."""
    assert comparison_key('Ann@EXAMPLE.org') == 'Ann@example.org'


@given(NAME.map(lambda name: ' '.join(name.split())))
def test_parsed_as_others_write_it(name: str) -> None:
    """Addresses written by the standard library, encoded or not, are read back exactly."""
    address = Address(name, 'a', 'example.org')

    assert list(parse_list(formataddr((name, 'a@x')), 'to')) == [Mailbox(name, 'a@x')]
    assert list(parse_list(str(address), 'to', encoded=False)) == [Mailbox(name, 'a@example.org')]


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                'Ann',
                'J\u00f6rg',
                '"Doe, J"',
                '""',
                '"a\\"b"',
                '=?utf-8?q?x?=',
                '.',
                ':',
                ';',
                ',',
                '\\',
            ),
            *(
                ' ',
                ' ',
                '  ',
                '\t',
                '\xa0',
                '(c)',
                '<a@b.c>',
                '<a.b@c>',
                '<-a@b.c>',
                '<=?x?=@b.c>',
                '<',
            ),
            *(
                f'<{"x" * 65}@b.c>',
                f'<a@{"x." * 130}c>',
                '<a@\u00e9.c>',
                '<"q q"@b.c>',
                '< a@b.c >',
                'a@b',
            ),
        ]
    ),
    max_size=5,
).map(''.join)


@given(PIECES | PIECES.map(lambda name: f'{name} <a@b.c>'), st.booleans())
@example('Ann Lee <a@b.c>', True)
@example('"Doe, Ann" <a@b.c>', True)
@example('"" <a@b.c>', False)
@example('=?utf-8?q?x?= <a@b.c>', False)
def test_the_fast_path_is_the_slow_path(text: str, encoded: bool) -> None:
    """A blank at the end makes a name and an address take the slow path: both paths give the same
    result, or the same error."""

    def read(text: str) -> object:
        try:
            return parse_list(text, 'to', encoded=encoded)
        except MessageError as error:
            return str(error).partition(' is not a mail address: ')[2]

    assert read(text) == read(f'{text} ')


@given(LOCAL)
def test_local_part_round_trip(local: str) -> None:
    """Any local part survives quoting: the address parsed from the header is the same."""
    quoted = '"' + local.replace('\\', '\\\\').replace('"', '\\"') + '"'
    try:
        address = check_address(f'{quoted}@example.org', 'to')
    except MessageError as error:
        assert 'hyphen' in str(error) or 'encoded word' in str(error)  # noqa: PT017
        return

    line = address_line('To', [Mailbox('Ann', address)])
    assert list(parse_list(unfolded(line), 'to')) == [Mailbox('Ann', address)]
    if local.isascii():
        assert Address(addr_spec=address).username == local
