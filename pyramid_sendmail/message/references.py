"""The pictures that html refers to by ``cid:`` (RFC 2392): in its tags and its style, not in links,
not in text."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ['References', 'references_of']


class References(NamedTuple):
    """Content ids, each once, in their order."""

    pictures: dict[str, None]
    """What a reader needs to show the html."""
    links: dict[str, None]
    """What a link leads to: shown inline if it is there."""


def references_of(html: object) -> References:
    """Return the content ids that html refers to, in time that grows with its length alone."""
    found = References({}, {})
    if not isinstance(html, str) or b'cid:' not in html.encode('utf-8', 'replace').lower():
        return found
    for is_link, text in _references(html):
        content_id = unquote(text)
        if content_id:
            (found.links if is_link else found.pictures)[content_id] = None
    return found


def _references(html: str) -> Iterator[tuple[bool, str]]:
    """Yield each content id as it is written, and whether it stands in a link."""
    position = 0
    while (start := html.find('<', position)) >= 0:
        position = start + 1
        if html.startswith('!--', position) and not html.startswith('!--[if', position):
            end = html.find('-->', start + 4)
            position = end if end >= 0 else len(html)
            continue
        tag = _TAG.match(html, position)
        if tag is None:
            continue
        name = tag[0].lower()
        position = tag.end()
        while attribute := _ATTRIBUTE.match(html, position):
            position = attribute.end()
            value = attribute[2] or ''
            if len(value) > 1 and value[0] == value[-1] and value[0] in '"\'':
                value = value[1:-1]
            yield from _in_attribute(name, attribute[1].lower(), markup.unescape(value))
        if name in _WITHOUT_TAGS:
            closing = _WITHOUT_TAGS[name].search(html, position)
            end = closing.start() if closing else len(html)
            if name == 'style':
                yield from _in_style(html[position:end])
            position = end


def _in_attribute(tag: str, name: str, value: str) -> Iterator[tuple[bool, str]]:
    value = value.strip()
    if name == 'style':
        yield from _in_style(value)
    elif name == 'srcset':
        yield from ((False, found) for found in _CANDIDATE.findall(value))
    elif name in _REFERRING and value[:4].lower() == 'cid:':
        yield name == 'href' and tag in _LINKS, value[4:]


def _in_style(css: str) -> Iterator[tuple[bool, str]]:
    position = 0
    while position < len(css):
        start = css.find('/*', position)
        end = start if start >= 0 else len(css)
        yield from ((False, found) for found in _URL.findall(css[position:end]))
        close = css.find('*/', end + 2)
        position = close + 2 if close >= 0 else len(css)


_TAG = re.compile('[A-Za-z][^\\s/>]*')

_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>=]+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>]+))?""")
"""An attribute and its value. Only the last quote of a kind can be without its end."""

_URL = re.compile(r"""\burl\(\s*["']?\s*cid:([^"'\s)]+)""", re.IGNORECASE)

_CANDIDATE = re.compile(r'(?:^|,)\s*cid:([^\s,]+)', re.IGNORECASE)

_REFERRING = frozenset({'src', 'background', 'poster', 'data', 'href', 'xlink:href', 'longdesc'})

_LINKS = frozenset({'a', 'area'})

_WITHOUT_TAGS = {
    name: re.compile(f'</{name}', re.IGNORECASE)
    for name in ('script', 'style', 'textarea', 'title', 'xmp')
}
"""Elements whose content is text (HTML, 13.2.6.4.4)."""
