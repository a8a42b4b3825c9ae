"""Attachments: files that go with a message, verified and read."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..exceptions import MessageError
from .headers import check_text, parameters, readable, shown
from .message import Attachment
from .mime import Part, base64_leaf, leaf
from .verify import fits, lines

__all__ = ['Attachment', 'read_files', 'size_text']


class _File(NamedTuple):
    """An attachment, verified and read."""

    filename: str
    content_type: str
    given: tuple[tuple[str, str], ...]
    data: bytes
    content_id: str | None

    def part(self, disposition: str) -> Part:
        name = ('name', _ascii_name(self.filename))
        content_type = parameters('Content-Type', self.content_type, [*self.given, name])
        shown = parameters('Content-Disposition', disposition, [('filename', self.filename)])
        more = [] if self.content_id is None else [('Content-ID', f'<{self.content_id}>')]
        more.append(('Content-Disposition', shown))
        if self.content_type == 'message/rfc822':
            message = _attached_message(self.data, self.filename)
            return leaf(content_type, '7bit', message, *more)
        return base64_leaf(content_type, self.data, *more)


def read_files(attachments: object, max_size: int) -> list[_File]:
    if not isinstance(attachments, tuple):
        raise MessageError(
            f'attachments: {type(attachments).__name__} is no list; give a list of Attachment'
        )
    files = [_file(attachment, max_size) for attachment in attachments]
    seen: set[str] = set()
    for file in files:
        if file.content_id in seen:
            raise MessageError(
                f'attachments: the content_id {shown(file.content_id)} is given twice; each '
                'needs its own'
            )
        if file.content_id is not None:
            seen.add(file.content_id)
    return files


def _file(attachment: object, max_size: int) -> _File:
    if not isinstance(attachment, Attachment):
        raise MessageError(
            f'attachments: {type(attachment).__name__} is no Attachment; give '
            'Attachment(filename, data)'
        )
    filename = _filename(attachment)
    where = f'attachment {shown(filename)}'
    content_type, given = _content_type(attachment.content_type, filename, where)
    data = attachment.data
    path = attachment.path
    if (data is None) == (path is None):
        raise MessageError(f'{where}: give data or path, and not both')
    if path is not None:
        data = _read(path, max_size, where)
    elif isinstance(data, str):
        charset = dict(given).get('charset')
        if charset is None and content_type.startswith('text/'):
            given = (*given, ('charset', 'utf-8'))
        try:
            data = data.encode(charset or 'utf-8')
        except (LookupError, ValueError) as error:
            raise MessageError(
                f'{where}: its data cannot be encoded in {shown(charset or "utf-8")}; give bytes'
            ) from error
    elif not isinstance(data, bytes):
        raise MessageError(f'{where}: data is a {type(data).__name__}; give bytes or a str')
    content_id = attachment.content_id
    if content_id is not None:
        if not isinstance(content_id, str) or not _CONTENT_ID.fullmatch(content_id):
            raise MessageError(
                f'{where}: the content_id {shown(content_id)} is not printable ASCII without '
                'blanks; write content_id=\'logo\' and <img src="cid:logo">'
            )
        content_id = content_id.removeprefix('<').removesuffix('>')
    return _File(filename, content_type, given, data, content_id)


def _filename(attachment: Attachment) -> str:
    name, path = attachment.filename, attachment.path
    if path is not None and not isinstance(path, str | os.PathLike):
        raise MessageError(f'attachments, path: {shown(path)} is no path; give a str or a Path')
    if name is None:
        if path is None:
            raise MessageError('attachments: one has neither a filename nor a path; give a name')
        name = os.fspath(path)
    last = re.split(r'[/\\]', check_text(name, 'attachments, filename'))[-1]
    if last.strip() in ('', '.', '..') or '\t' in last:
        raise MessageError(f'attachments, filename: {shown(name)} is no file name; give another')
    return last


def _content_type(
    given: object, filename: str, where: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    if given is None:
        import mimetypes

        guessed, encoding = mimetypes.guess_type(f'./{filename}')
        if guessed is None or encoding or _refused(guessed):
            guessed = 'application/octet-stream'
        return guessed, ()
    match = _CONTENT_TYPE.fullmatch(given.strip('; ')) if isinstance(given, str) else None
    if match is None:
        raise MessageError(
            f"{where}: {shown(given)} is not a content_type; write 'application/pdf'"
        )
    if _refused(match[1].lower()):
        raise MessageError(
            f'{where}: {match[1]} cannot be attached; use message/rfc822 for a whole mail, or '
            'application/octet-stream'
        )
    found = _PARAMETER.findall(match[2])
    return match[1].lower(), tuple(
        (key.lower(), value.strip('"')) for key, value in found if key.lower() != 'name'
    )


def _refused(content_type: str) -> bool:
    return content_type.startswith(('multipart/', 'message/')) and content_type != 'message/rfc822'


def size_text(octets: int) -> str:
    """Octets as a setting has them: ``25M``."""
    for unit, factor in (('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)):
        if octets and not octets % factor:
            return f'{octets // factor}{unit}'
    return str(octets)


def _read(path: str | os.PathLike[str], max_size: int, where: str) -> bytes:
    """The content of a file, if it is no longer than a message may be."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise MessageError(f'{where}: {shown(path)} is no regular file; give the path of one')
    try:
        with open(path, 'rb') as file:
            data = file.read(max_size + 1)
    except (OSError, ValueError) as error:
        raise MessageError(f'{where}: {shown(path)} cannot be read: {error}') from error
    if len(data) > max_size:
        raise MessageError(
            f'{where}: {shown(path)} is larger than mail.max_size = {size_text(max_size)}; '
            'send a link to it'
        )
    return data


def _ascii_name(filename: str) -> str:
    """For readers that do not know RFC 2231."""
    if readable(filename):
        return filename[:60].rstrip()
    import unicodedata

    letters = unicodedata.normalize('NFKD', filename).encode('ascii', 'ignore').decode('ascii')
    stem, suffix = os.path.splitext(re.sub('[^A-Za-z0-9._-]+', '_', letters))
    return (stem[:40] + suffix[:20]) or 'file'


def _attached_message(data: bytes, filename: str) -> bytes:
    """A whole mail in lines of 7 bits, which is all that may be done to it (RFC 2046, 5.2.1)."""
    if data.isascii() and fits(data.decode('ascii')):
        return '\r\n'.join(lines(data.decode('ascii'))).encode('ascii')
    from email.parser import BytesParser
    from email.policy import compat32

    from .copies import copied
    from .foreign import serialised

    try:
        message = serialised(copied(BytesParser(policy=compat32).parsebytes(data)))
        message.decode('ascii')
    except (MessageError, UnicodeDecodeError) as error:
        raise MessageError(
            f'attachment {shown(filename)}: {error}; or attach it as application/octet-stream'
        ) from error
    return message


_CONTENT_ID = re.compile(r"""<[!#-&(-;=?-~]+>|[!#-&(-;=?-~]+""")


_PARAMETER = re.compile(r"""\s*;\s*([A-Za-z0-9!#$&+.^_`{|}~-]+)=("[^"\\]*"|[^\s"();,<>@]+)""")


_CONTENT_TYPE = re.compile(
    rf'([A-Za-z0-9!#$&+.^_-]+/[A-Za-z0-9!#$&+.^_-]+)((?:{_PARAMETER.pattern})*)'
)
