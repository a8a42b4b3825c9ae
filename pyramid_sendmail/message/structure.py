"""What a message says, in the structure that mail programs expect."""

from __future__ import annotations

import html as markup
import re
from urllib.parse import unquote

from ..exceptions import MessageError
from .attachment import read_files
from .mime import Part, container, text_leaf

__all__ = ['content_tree']


def content_tree(text: object, html: object, attachments: object, max_size: int) -> Part:
    """The MIME structure that mail programs expect: mixed over alternative over related."""
    if text is None and html is None:
        raise MessageError('text: the message has no content; give text, html or both')
    if html is None and attachments == ():
        return _text_part(text, 'plain', 'text')
    files = read_files(attachments, max_size)
    wanted = _references(html)
    for content_id in wanted:
        if content_id not in {file.content_id for file in files}:
            raise MessageError(
                f'html: it refers to cid:{content_id}, which no attachment is; add '
                f'Attachment(..., content_id={content_id!r})'
            )
    inline = [file for file in files if file.content_id in wanted]
    bodies = [] if text is None else [_text_part(text, 'plain', 'text')]
    if html is not None:
        part = _text_part(html, 'html', 'html')
        if inline:
            parts = [part, *(file.part('inline') for file in inline)]
            part = container('related', parts, ('type', 'text/html'))
        bodies.append(part)
    tree = bodies[0] if len(bodies) == 1 else container('alternative', bodies)
    if len(files) == len(inline):
        return tree
    others = [file.part('attachment') for file in files if file.content_id not in wanted]
    return container('mixed', [tree, *others])


def _references(html: object) -> dict[str, None]:
    if not isinstance(html, str) or b'cid:' not in html.encode('utf-8', 'replace').lower():
        return {}
    return dict.fromkeys(unquote(markup.unescape(found)) for found in _CID.findall(html))


def _text_part(text: object, subtype: str, where: str) -> Part:
    if not isinstance(text, str):
        raise MessageError(f'{where}: a {type(text).__name__} is not a string; give a str')
    try:
        data = text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise MessageError(
            f'{where}: character {error.start} is a lone surrogate; decode what it came from with '
            "errors='replace'"
        ) from error
    if data and not data.endswith((b'\n', b'\r')):
        data += b'\n'
    return text_leaf(subtype, data)


_CID = re.compile(r"""(?:=|\burl\()\s*(?:["']\s*)?cid:([^"'\s)>]+)""", re.IGNORECASE)
