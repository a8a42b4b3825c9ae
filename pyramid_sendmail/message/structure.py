"""The MIME structure of our own messages: which parts there are, and which holds which."""

from __future__ import annotations

from ..exceptions import MessageError
from .attachment import read_files
from .mime import Part, multipart, text_part
from .references import references_of
from .text import plain_text

__all__ = ['content_tree']


def content_tree(text: object, html: object, attachments: object, max_size: int) -> Part:
    """Return the content of a message: mixed over alternative over related, with no more levels
    than it needs.

    An attachment whose content id the html refers to goes inline, into the related part.
    ``max_size`` limits, in bytes, the files that are read. Raises MessageError.
    """
    if text is None and html is None:
        raise MessageError('text: the message has no content; give text, html or both')
    if html is None and attachments == ():
        return _body(text, 'plain', 'text')
    files = read_files(attachments, max_size)
    pictures, links = references_of(html)
    given = {file.content_id for file in files}
    for content_id in pictures:
        if content_id not in given:
            raise MessageError(
                f'html: it refers to cid:{content_id}, which no attachment has as its content_id; '
                f'add Attachment(..., content_id={content_id!r})'
            )
    wanted = pictures | links
    inline = [file for file in files if file.content_id in wanted]
    bodies = [] if text is None else [_body(text, 'plain', 'text')]
    if html is not None:
        body = _body(html, 'html', 'html')
        if inline:
            parts = [body, *(file.part('inline') for file in inline)]
            body = multipart('related', parts, ('type', 'text/html'))
        bodies.append(body)
    tree = bodies[0] if len(bodies) == 1 else multipart('alternative', bodies)
    if len(files) == len(inline):
        return tree
    others = [file.part('attachment') for file in files if file.content_id not in wanted]
    return multipart('mixed', [tree, *others])


def _body(text: object, subtype: str, where: str) -> Part:
    plain = plain_text(text, where, f'a {type(text).__name__}')
    try:
        data = plain.encode('utf-8')
    except UnicodeEncodeError as error:
        raise MessageError(
            f'{where}: character {error.start} is a lone surrogate; decode its source with '
            "errors='replace'"
        ) from error
    if data and not data.endswith((b'\n', b'\r')):
        data += b'\n'
    return text_part(subtype, data)
