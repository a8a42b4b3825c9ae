"""Mail addresses: parsed once, strictly, into the form that SMTP carries."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from email.headerregistry import Address
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ..domains import ascii_domain
from ..exceptions import MessageError
from .encoded_words import decode_words
from .headers import check_text, excerpt

__all__ = [
    'ATOM',
    'Addresses',
    'Group',
    'Mailbox',
    'check_address',
    'check_senders',
    'comparison_key',
    'escape_quotes',
    'mailboxes',
    'parse_address',
    'parse_addresses',
    'parse_list',
]

Addresses: TypeAlias = str | Address | Iterable[str | Address | tuple[str | None, str]]
"""What ``to``, ``cc``, ``bcc``, ``reply_to`` and ``recipients`` take: one address, or a list."""

ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'
_WORD = r'[^ \t"()<>:;,@\[\]\\]+'

_DOT_ATOM = re.compile(rf'{ATOM}(?:\.{ATOM})*')
_DOMAIN = re.compile(rf'{_LABEL}(?:\.{_LABEL})*')
_BARE_ADDRESS = re.compile(rf'(?!-)({ATOM}(?:\.{ATOM})*)@{_LABEL}(?:\.{_LABEL})*')
_NAME_AND_ADDRESS = re.compile(rf'(?:({_WORD}(?: {_WORD})*)|"([^"\\]*)") <([^ <>"]+)>')
_LEXEME = re.compile(
    r'(?P<blank>[ \t]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<literal>\[[^\[\]\\]*\])'
    rf'|(?P<special>[<>:;,@])|(?P<atom>{_WORD})'
)

_REMEDY = 'write name@example.org, or "Name" <name@example.org>'
_Lexeme = tuple[str, str]

CACHED_LENGTH = 320
"""Characters of the longest address list that is kept in memory together with its meaning."""


class Mailbox(NamedTuple):
    """A display name (or '') and a bare address, its domain in ASCII."""

    name: str
    address: str


class Group(NamedTuple):
    """A name for several mailboxes, or for none: ``undisclosed-recipients:;``."""

    name: str
    members: tuple[Mailbox, ...] = ()


def parse_addresses(value: object, where: str) -> tuple[Mailbox | Group, ...]:
    """Return the addresses of a string, an ``email.headerregistry.Address``, or a list of these.

    A string holds one address, whatever a form has given, or a group of none; its name may be
    encoded (RFC 2047). A list may also hold pairs of a name and an address. ``where`` names the
    argument in the text of a MessageError.
    """
    if value == ():
        return ()
    if isinstance(value, str | Address):
        return _parse_item(value, where)
    if type(value) is not tuple and (
        not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | dict)
    ):
        raise MessageError(
            f'{where}: {excerpt(value)} holds no addresses; give a str, an '
            'email.headerregistry.Address, or a list of these'
        )
    return tuple(entry for item in value for entry in _parse_item(item, where))


def _parse_item(item: object, where: str) -> tuple[Mailbox | Group, ...]:
    """Return the entry of one string, Address or pair: at most one recipient."""
    if isinstance(item, str):
        entries = parse_list(item, where)
        if len(entries) > 1 or (isinstance(entries[0], Group) and entries[0].members):
            raise MessageError(
                f'{where}: {excerpt(item)} is not one address; for several, give a list with a '
                'string for each'
            )
        return entries
    if isinstance(item, Address):
        return (_mailbox_of(item.display_name, item.addr_spec, where),)
    if isinstance(item, tuple) and len(item) == 2:
        name, address = item
        return (_mailbox_of('' if name is None else name, address, where),)
    raise MessageError(
        f'{where}: {excerpt(item)} is not an address; give a str, an '
        "email.headerregistry.Address, or a pair ('Ann', 'ann@example.org')"
    )


def parse_address(value: object, where: str) -> str:
    """Return the bare address of a string or an ``Address`` that holds exactly one."""
    found = parse_list(value, where) if isinstance(value, str) else parse_addresses(value, where)
    if len(found) != 1 or not isinstance(found[0], Mailbox):
        raise MessageError(f'{where}: {excerpt(value)} is not exactly one address; {_REMEDY}')
    return found[0].address


def check_senders(default_sender: str | None = None, envelope_sender: str | None = None) -> None:
    """Raise MessageError for values of the settings of these names that are not one address."""
    for name, value in (
        ('mail.default_sender', default_sender),
        ('mail.envelope_sender', envelope_sender),
    ):
        if value and '://' in value:
            # It may have a password in it, which the text of an error would show.
            raise MessageError(f'{name}: it is a URL; {_REMEDY}')
    if default_sender:
        parse_address(default_sender, 'mail.default_sender')
    if envelope_sender and envelope_sender.strip() == '<>':
        raise MessageError(
            "mail.envelope_sender: it cannot be the null sender; give the option sender='' of send"
        )
    if envelope_sender:
        parse_address(envelope_sender, 'mail.envelope_sender')


def parse_list(text: str, where: str, *, encoded: bool = True) -> tuple[Mailbox | Group, ...]:
    """Return the mailboxes and groups of an address list.

    ``encoded``: decode encoded words in names.
    """
    if type(text) is not str or len(text) > CACHED_LENGTH:
        return _parse(text, where, encoded)
    return _cached_parse(text, where, encoded)


def _parse(text: str, where: str, encoded: bool) -> tuple[Mailbox | Group, ...]:
    text = check_text(text, where)
    if _BARE_ADDRESS.fullmatch(text):
        return (Mailbox('', check_address(text, where)),)
    # _parse_entries gives the same, but this saves 42 % of a message's cost (75.5 to 43.9 us).
    named = _NAME_AND_ADDRESS.fullmatch(text)
    if named and _BARE_ADDRESS.fullmatch(named[3]) and not (named[1] and '=?' in named[1]):
        return (Mailbox(named[1] or named[2], check_address(named[3], where)),)
    return tuple(_parse_entries(text, where, encoded))


# Most applications send from a few addresses, over and over: this cache and that of address_line
# save 16 % of a message's cost (43.9 to 36.9 us).
_cached_parse = lru_cache(maxsize=256)(_parse)


def _parse_entries(text: str, where: str, encoded: bool) -> Iterator[Mailbox | Group]:
    """Yield the entries of a list (RFC 5322, 3.4), read lexeme by lexeme up to a comma, a colon, a
    semicolon or the end."""
    current: list[_Lexeme] = []
    group: str | None = None
    members: list[Mailbox] = []
    closed = False  # A group has just ended: only a comma, or the end, may follow.
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
    """Return the address as SMTP carries it (RFC 5321, 4.1.2), with as few quotes as possible.

    A local part may hold UTF-8; it needs a relay with SMTPUTF8 (RFC 6531). A domain that is not
    ASCII becomes A-labels (IDNA 2008). Raises MessageError.
    """
    if len(text) <= 254 and (bare := _BARE_ADDRESS.fullmatch(text)) and len(bare[1]) <= 64:
        if bare[1].startswith('=?') and bare[1].endswith('?='):
            raise _wrong(text, where, _ENCODED_LOCAL_PART)
        return text
    check_text(text, where)
    local, at, domain = text.rpartition('@')
    if not at:
        raise _without_at(text, where)
    local = _check_local_part(local, text, where)
    address = f'{local}@{_check_domain(domain, text, where)}'
    if len(address.encode('utf-8')) > 254:
        raise _wrong(text, where, 'it is longer than 254 bytes (RFC 5321, 4.5.3.1)')
    return address


def escape_quotes(text: str) -> str:
    """Return the inside of a quoted string (RFC 5322, 3.2.4)."""
    return re.sub(r'(["\\])', r'\\\1', text)


def mailboxes(entries: Iterable[Mailbox | Group]) -> list[Mailbox]:
    """Return the mailboxes, those of groups included."""
    found: list[Mailbox] = []
    for entry in entries:
        if isinstance(entry, Group):
            found.extend(entry.members)
        else:
            found.append(entry)
    return found


def comparison_key(address: str) -> str:
    """Return a key that is equal for two spellings of one address: the domain's case does not
    matter, the local part's does (RFC 5321, 2.4)."""
    local, _, domain = address.rpartition('@')
    return f'{local}@{domain.lower()}'


def _mailbox_of(name: object, address: object, where: str) -> Mailbox:
    """Return the mailbox of a name and a bare address, neither of which can add another."""
    bare = check_text(address, where).strip(' \t')
    return Mailbox(check_text(name, where).strip(' '), check_address(bare, where))


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
        raise MessageError(f'{where}: an empty address; {_REMEDY}, or leave it out')
    if ('special', '<') not in lexemes:
        return Mailbox('', check_address(text, where))
    opening = lexemes.index(('special', '<'))
    if not text.endswith('>'):
        raise _wrong(text, where, 'nothing may follow the address between < and >')
    name = _phrase(lexemes[:opening], text, where, encoded)
    bare = ''.join(lexeme for _, lexeme in lexemes[opening + 1 :]).rstrip(' \t')[:-1]
    return Mailbox(name, check_address(bare.strip(' \t'), where))


def _phrase(lexemes: list[_Lexeme], text: str, where: str, encoded: bool) -> str:
    """Return a display name as a reader sees it: outside quotes, blanks count as one blank."""
    parts: list[str] = []
    atoms = ''
    for kind, lexeme in [*lexemes, ('quoted', '""')]:
        if kind == 'quoted':
            parts.append(decode_words(atoms) if encoded else atoms)
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


def _check_local_part(local: str, text: str, where: str) -> str:
    if len(local) > 1 and local[0] == local[-1] == '"':
        content = re.sub(r'\\(.)', r'\1', local[1:-1])
        if re.search(r'(?<!\\)(?:\\\\)*"', local[1:-1]) or '\t' in content:
            raise _wrong(text, where, 'a quoted local part holds a bare quote or a tab')
        local = f'"{escape_quotes(content)}"' if _dot_atom_fault(content) else content
    elif fault := _dot_atom_fault(local):
        why = f'the part before the @ is not valid (RFC 5322, 3.4.1): {fault}'
        raise _wrong(text, where, why)
    if local.startswith('-'):
        raise _wrong(text, where, 'it begins with a hyphen, which a program takes for an option')
    if local.startswith('=?') and local.endswith('?='):
        raise _wrong(text, where, _ENCODED_LOCAL_PART)
    if len(local.encode('utf-8')) > 64:
        raise _wrong(text, where, 'its local part is longer than 64 bytes (RFC 5321, 4.5.3.1)')
    return local


def _dot_atom_fault(local: str) -> str:
    """Return why a local part needs quotes, or '' if it needs none (RFC 6531, 3.3)."""
    ascii_part = ''.join(c if c.isascii() else 'x' if c.isprintable() else ' ' for c in local)
    if _DOT_ATOM.fullmatch(ascii_part):
        return ''
    if not local:
        return 'it is empty'
    if local.startswith('.'):
        return 'a dot at its beginning'
    if local.endswith('.'):
        return 'a dot at its end'
    if '..' in local:
        return 'two dots in a row'
    bad = next(
        local[i] for i, c in enumerate(ascii_part) if not _DOT_ATOM.fullmatch(c) and c != '.'
    )
    return f'it holds {bad!r}'


def _check_domain(domain: str, text: str, where: str) -> str:
    if domain.startswith('[') and domain.endswith(']'):
        try:
            if domain[1:6].lower() == 'ipv6:' and '%' not in domain:  # no zone (RFC 5321, 4.1.3)
                return f'[IPv6:{ipaddress.IPv6Address(domain[6:-1]).compressed}]'
            return f'[{ipaddress.IPv4Address(domain[1:-1])}]'
        except ValueError:
            why = 'a literal is written [192.0.2.1] or [IPv6:2001:db8::1]'
            raise _wrong(text, where, why) from None
    try:
        domain = ascii_domain(domain)
    except UnicodeError:
        why = 'its domain has no certain ASCII form (IDNA 2008); give the domain as xn--...'
        raise _wrong(text, where, why) from None
    if len(domain) > 253 or not _DOMAIN.fullmatch(domain):
        raise _wrong(text, where, 'the part after the @ is not a domain (RFC 5321, 4.1.2)')
    return domain


def _wrong(text: str, where: str, why: str) -> MessageError:
    return MessageError(f'{where}: {excerpt(text)} is not a mail address: {why}; {_REMEDY}')


def _without_at(text: str, where: str) -> MessageError:
    if text.startswith('=?') and text.endswith('?='):
        return _wrong(text, where, 'it is an encoded word; encode the name alone')
    return MessageError(
        f'{where}: {excerpt(text)} has no @; write name@example.org. For a name and an address use '
        "Address('Ann', addr_spec='ann@example.org') or [('Ann', 'ann@example.org')]; in a string, "
        'a name with a comma needs double quotes'
    )


_ENCODED_LOCAL_PART = 'its local part is an encoded word, which RFC 2047 forbids'
