"""Mail addresses: what people write is parsed once, strictly, to what SMTP carries."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard

from ..exceptions import MessageError
from .headers import WIDTH, check_text, decoded, encoded_words, fold, readable, shown

__all__ = [
    'Addresses',
    'Group',
    'Mailbox',
    'address_line',
    'check_address',
    'check_senders',
    'mailboxes',
    'parse_address',
    'parse_addresses',
    'parse_list',
    'same',
]

if TYPE_CHECKING:
    from email.headerregistry import Address

Addresses: TypeAlias = 'str | Address | Iterable[str | Address]'
"""What ``to``, ``cc``, ``bcc``, ``reply_to`` and ``recipients`` take."""

_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'

_DOT_ATOM = re.compile(rf'{_ATOM}(?:\.{_ATOM})*')
_DOMAIN = re.compile(rf'{_LABEL}(?:\.{_LABEL})*')
_PLAIN = re.compile(rf'(?!-)({_ATOM}(?:\.{_ATOM})*)@{_LABEL}(?:\.{_LABEL})*')
_WORD = r'[^ \t"()<>:;,@\[\]\\]+'
_NAMED = re.compile(rf'(?:({_WORD}(?: {_WORD})*)|"([^"\\]*)") <([^ <>"]+)>')
_PHRASE = re.compile(rf'{_ATOM}(?: {_ATOM})*')
_LEXEME = re.compile(
    r'(?P<blank>[ \t]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<literal>\[[^\[\]\\]*\])'
    rf'|(?P<special>[<>:;,@])|(?P<atom>{_WORD})'
)

_WRITE = 'write name@example.org, or "Name" <name@example.org>'
_Lexeme = tuple[str, str]

_REMEMBERED = 320
"""Characters of an address list, at most, that is remembered with what it means."""


class Mailbox(NamedTuple):
    """A display name (or '') and a bare address, its domain in ASCII."""

    name: str
    address: str


class Group(NamedTuple):
    """A name for several mailboxes, or for none: ``undisclosed-recipients:;``."""

    name: str
    members: tuple[Mailbox, ...] = ()


def parse_addresses(value: object, where: str) -> tuple[Mailbox | Group, ...]:
    """The addresses of a string, an ``email.headerregistry.Address``, or a list of these.

    A string holds one address or several between commas (RFC 5322, 3.4), names with or without
    RFC 2047 encoding; a string in a list, one. ``where`` names the argument in a MessageError,
    which also names the address.
    """
    if value == ():
        return ()
    if isinstance(value, str):
        return parse_list(value, where)
    if _is_object(value):
        return (_of_object(value, where),)
    if type(value) is not tuple and (
        not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | dict)
    ):
        raise MessageError(
            f'{where}: {shown(value)} holds no addresses; give a str, an '
            'email.headerregistry.Address, or a list of these'
        )
    found: list[Mailbox | Group] = []
    for item in value:
        if isinstance(item, str):
            # What a form's field holds shall not become several recipients.
            entries = parse_list(item, where)
            if len(entries) > 1:
                raise MessageError(
                    f'{where}: {shown(item)} is not one address; give each a place in the list'
                )
            found.extend(entries)
        elif _is_object(item):
            found.append(_of_object(item, where))
        else:
            raise MessageError(
                f'{where}: {shown(item)} is not an address; give a str or an '
                'email.headerregistry.Address'
            )
    return tuple(found)


def parse_address(value: object, where: str) -> str:
    """The bare address of a string or an ``Address`` that holds exactly one."""
    found = parse_addresses(value, where)
    if len(found) != 1 or not isinstance(found[0], Mailbox):
        raise MessageError(f'{where}: {shown(value)} is not exactly one address; {_WRITE}')
    return found[0].address


def check_senders(default_sender: str | None, envelope_sender: str | None) -> None:
    """Verify the settings of these names. Raises MessageError."""
    if default_sender:
        parse_address(default_sender, 'mail.default_sender')
    if envelope_sender:
        parse_address(envelope_sender, 'mail.envelope_sender')


def parse_list(text: str, where: str, *, encoded: bool = True) -> tuple[Mailbox | Group, ...]:
    """The mailboxes and groups of an address list; ``encoded``: names may hold encoded words."""
    if type(text) is not str or len(text) > _REMEMBERED:
        return _parsed(text, where, encoded)
    return _known(text, where, encoded)


def _parsed(text: str, where: str, encoded: bool) -> tuple[Mailbox | Group, ...]:
    text = check_text(text, where)
    if _PLAIN.fullmatch(text):
        return (Mailbox('', check_address(text, where)),)
    # What nearly all others are; _entries reads them in the same way.
    named = _NAMED.fullmatch(text)
    if named and _PLAIN.fullmatch(named[3]) and not (named[1] and '=?' in named[1]):
        return (Mailbox(named[1] or named[2], check_address(named[3], where)),)
    return tuple(_entries(text, where, encoded))


_known = lru_cache(maxsize=256)(_parsed)
"""Most applications send from a few addresses, over and over."""


def _entries(text: str, where: str, encoded: bool) -> Iterator[Mailbox | Group]:
    current: list[_Lexeme] = []
    group: str | None = None
    members: list[Mailbox] = []
    closed = False
    for kind, lexeme in [*_lexemes(text, where), ('special', '')]:
        if kind != 'special' or lexeme in ('<', '>', '@') or (lexeme == ':' and group is not None):
            current.append((kind, lexeme))
            continue
        blank = all(kind == 'blank' for kind, _ in current)
        if lexeme == ':' and not closed:
            group = _phrase(current, text, where, encoded)
        elif lexeme == ';' and group is not None:
            if not blank:
                members.append(_mailbox(current, where, encoded))
            elif members:
                raise _wrong(text, where, 'a comma has nothing after it')
            yield Group(group, tuple(members))
            group, members, closed = None, [], True
        elif closed and blank and lexeme in (',', ''):
            closed = False
        elif group is not None and lexeme == '':
            raise _wrong(text, where, 'a group ends with a semicolon')
        elif closed or lexeme == ';':
            raise _wrong(text, where, 'addresses are separated by commas')
        elif group is not None:
            members.append(_mailbox(current, where, encoded))
        else:
            yield _mailbox(current, where, encoded)
        current = []


def check_address(text: str, where: str) -> str:
    """The address as SMTP carries it (RFC 5321, 4.1.2): as few quotes as possible, domain in ASCII.

    A local part may hold UTF-8 (RFC 6531), which a relay has to offer. A domain that is not ASCII
    becomes A-labels by IDNA 2003, as the standard library has it; one that this would change is
    refused. Raises MessageError.
    """
    if len(text) <= 254 and (plain := _PLAIN.fullmatch(text)) and len(plain[1]) <= 64:
        if plain[1].startswith('=?') and plain[1].endswith('?='):
            raise _wrong(text, where, 'its local part is an encoded word, which RFC 2047 forbids')
        return text
    check_text(text, where)
    local, at, domain = text.rpartition('@')
    if not at:
        raise _wrong(text, where, 'it has no @ (a name with a comma needs double quotes)')
    local = _local(local, text, where)
    address = f'{local}@{_domain(domain, text, where)}'
    if len(address.encode('utf-8')) > 254:
        raise _wrong(text, where, 'it is longer than 254 octets (RFC 5321, 4.5.3.1)')
    return address


def address_line(name: str, entries: Iterable[Mailbox | Group]) -> bytes:
    """The header ``name`` with these addresses.

    Names are quoted or encoded where they must be; an address is never encoded: a local part that
    is not ASCII makes a line of UTF-8 (RFC 6532).
    """
    entries = tuple(entries)
    return _known_line(name, entries) if len(entries) == 1 else _line(name, entries)


def _line(name: str, entries: tuple[Mailbox | Group, ...]) -> bytes:
    written = [_written(entry) for entry in entries]
    tokens: list[str] = []
    for index, tokens_of_one in enumerate(written):
        if index < len(written) - 1:
            tokens_of_one[-1] += ','
        whole = ' ' + ' '.join(tokens_of_one)
        # The first one stands behind the name of the header.
        room = WIDTH - (0 if index else len(name) + 1)
        # Better between two mailboxes than within one.
        tokens.extend([whole] if len(whole) <= room else [f' {token}' for token in tokens_of_one])
    return fold(name, tokens)


_known_line = lru_cache(maxsize=256)(_line)


def mailboxes(entries: Iterable[Mailbox | Group]) -> list[Mailbox]:
    """The mailboxes, those of groups included."""
    found: list[Mailbox] = []
    for entry in entries:
        if isinstance(entry, Group):
            found.extend(entry.members)
        else:
            found.append(entry)
    return found


def same(address: str) -> str:
    """What two spellings of one address share: the domain's case does not matter."""
    local, _, domain = address.rpartition('@')
    return f'{local}@{domain.lower()}'


def _is_object(value: object) -> TypeGuard[Address]:
    """Whether it is an Address: whoever has one has imported its module, which takes longer than
    all of ours."""
    module = sys.modules.get('email.headerregistry')
    return module is not None and isinstance(value, module.Address)


def _of_object(value: Address, where: str) -> Mailbox:
    return Mailbox(check_text(value.display_name, where), check_address(value.addr_spec, where))


def _lexemes(text: str, where: str) -> Iterator[_Lexeme]:
    position = 0
    while position < len(text):
        if text[position] == '(':
            position = _after_comment(text, position, where)
            yield 'blank', ' '
            continue
        match = _LEXEME.match(text, position)
        if match is None:
            raise _wrong(text, where, f'{text[position]!r} stands alone or is out of place')
        yield str(match.lastgroup), match[0]
        position = match.end()


def _after_comment(text: str, position: int, where: str) -> int:
    depth = 0
    while position < len(text):
        character = text[position]
        position += 2 if character == '\\' else 1
        depth += (character == '(') - (character == ')')
        if not depth:
            return position
    raise _wrong(text, where, 'a parenthesis is not closed')


def _mailbox(lexemes: list[_Lexeme], where: str, encoded: bool) -> Mailbox:
    text = ''.join(lexeme for _, lexeme in lexemes).strip(' \t')
    if not text:
        raise MessageError(f'{where}: an empty address; {_WRITE}, or leave it out')
    if ('special', '<') not in lexemes:
        return Mailbox('', check_address(text, where))
    opening = lexemes.index(('special', '<'))
    if not text.endswith('>'):
        raise _wrong(text, where, 'nothing may follow the address between < and >')
    name = _phrase(lexemes[:opening], text, where, encoded)
    bare = ''.join(lexeme for _, lexeme in lexemes[opening + 1 :]).rstrip(' \t')[:-1]
    return Mailbox(name, check_address(bare.strip(' \t'), where))


def _phrase(lexemes: list[_Lexeme], text: str, where: str, encoded: bool) -> str:
    """A display name, as a reader sees it: blanks are one blank, but within quotes."""
    parts: list[str] = []
    atoms = ''
    for kind, lexeme in [*lexemes, ('quoted', '""')]:
        if kind == 'quoted':
            parts.append(decoded(atoms) if encoded else atoms)
            parts.append(re.sub(r'\\(.)', r'\1', lexeme[1:-1]))
            atoms = ''
        elif kind == 'atom':
            atoms += lexeme
        elif kind == 'blank':
            atoms += ' ' if (atoms or parts) and not atoms.endswith(' ') else ''
        else:
            raise _wrong(text, where, f'a name that holds {lexeme[0]!r} needs double quotes')
    parts[-2] = parts[-2].removesuffix(' ')
    return check_text(''.join(parts), where)


def _local(local: str, text: str, where: str) -> str:
    if len(local) > 1 and local[0] == local[-1] == '"':
        content = re.sub(r'\\(.)', r'\1', local[1:-1])
        if re.search(r'(?<!\\)(?:\\\\)*"', local[1:-1]) or '\t' in content:
            raise _wrong(text, where, 'a quoted local part holds a bare quote or a tab')
        local = content if _atoms(content) else f'"{_escaped(content)}"'
    elif not _atoms(local):
        raise _wrong(text, where, 'what stands before the @ is not a local part (RFC 5322, 3.4.1)')
    if local.startswith('-'):
        raise _wrong(text, where, 'it begins with a hyphen, which a program takes for an option')
    if local.startswith('=?') and local.endswith('?='):
        raise _wrong(text, where, 'its local part is an encoded word, which RFC 2047 forbids')
    if len(local.encode('utf-8')) > 64:
        raise _wrong(text, where, 'its local part is longer than 64 octets (RFC 5321, 4.5.3.1)')
    return local


def _atoms(local: str) -> bool:
    ascii_part = ''.join(c if c.isascii() else 'x' if c.isprintable() else ' ' for c in local)
    return bool(_DOT_ATOM.fullmatch(ascii_part))


def _domain(domain: str, text: str, where: str) -> str:
    if domain.startswith('[') and domain.endswith(']'):
        import ipaddress

        try:
            if domain[1:6].lower() == 'ipv6:':
                return f'[IPv6:{ipaddress.IPv6Address(domain[6:-1]).compressed}]'
            return f'[{ipaddress.IPv4Address(domain[1:-1])}]'
        except ValueError:
            why = 'a literal is written [192.0.2.1] or [IPv6:2001:db8::1]'
            raise _wrong(text, where, why) from None
    if not domain.isascii():
        import unicodedata

        domain = unicodedata.normalize('NFC', domain).lower()
        try:
            ascii_domain = domain.encode('idna').decode('ascii')
            back = ascii_domain.encode('ascii').decode('idna')
        except UnicodeError:
            back = ''
        if back != domain:
            raise _wrong(
                text, where, 'its domain has no certain ASCII form; give the domain as xn--...'
            )
        domain = ascii_domain
    if len(domain) > 253 or not _DOMAIN.fullmatch(domain):
        raise _wrong(text, where, 'what stands after the @ is not a domain (RFC 5321, 4.1.2)')
    return domain


def _written(entry: Mailbox | Group) -> list[str]:
    """What may stand on lines of its own, in order, separated by a blank."""
    if isinstance(entry, Mailbox):
        if not entry.name:
            return [entry.address]
        return [*_quoted(entry.name), f'<{entry.address}>']
    words = _quoted(entry.name)
    if len(words[-1]) < WIDTH - 1:
        words[-1] += ':'
    else:
        words.append(':')
    for index, member in enumerate(entry.members):
        written = _written(member)
        written[-1] += ',' if index < len(entry.members) - 1 else ''
        words.extend(written)
    words[-1] += ';'
    return words


def _quoted(name: str) -> list[str]:
    if _PHRASE.fullmatch(name) and readable(name):
        return name.split(' ')
    # Two blanks could be folded so that a line has nothing else.
    if readable(name) and '  ' not in name and max(map(len, name.split(' '))) < 900:
        return f'"{_escaped(name)}"'.split(' ')
    return encoded_words(name, WIDTH - 20)


def _escaped(text: str) -> str:
    return re.sub(r'(["\\])', r'\\\1', text)


def _wrong(text: str, where: str, why: str) -> MessageError:
    return MessageError(f'{where}: {shown(text)} is not a mail address: {why}; {_WRITE}')
