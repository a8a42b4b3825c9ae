"""Attachments: files that go with a message, verified and read."""

from __future__ import annotations

import mimetypes
import os
import re
import unicodedata
from typing import NamedTuple

from ..exceptions import MessageError
from .asset import is_asset_spec, open_file
from .encoded_words import needs_no_encoding
from .headers import check_text, excerpt
from .message import Attachment
from .mime import Part, encoded_part, file_part
from .parameters import with_parameters
from .text import plain_text
from .verify import is_sendable, split_lines

__all__ = ['File', 'read_files', 'size_text']


class File(NamedTuple):
    """An attachment, verified and read."""

    filename: str
    content_type: str
    parameters: tuple[tuple[str, str], ...]
    """Of the content type."""
    data: bytes
    content_id: str | None

    def part(self, disposition: str) -> Part:
        """Return the file as a MIME part; ``disposition``: 'attachment' or 'inline'."""
        name = ('name', _ascii_name(self.filename))
        content_type = with_parameters('Content-Type', self.content_type, [*self.parameters, name])
        content_disposition = with_parameters(
            'Content-Disposition', disposition, [('filename', self.filename)]
        )
        more = [] if self.content_id is None else [('Content-ID', f'<{self.content_id}>')]
        more.append(('Content-Disposition', content_disposition))
        if self.content_type == 'message/rfc822':
            message = _attached_message(self.data, self.filename)
            return encoded_part(content_type, '7bit', message, *more)
        return file_part(content_type, self.data, *more)


def read_files(attachments: object, max_size: int) -> list[File]:
    """Return the files of a message's attachments, read and verified.

    ``max_size`` limits each file that is read, in bytes. Raises MessageError, whose text names
    the file.
    """
    if not isinstance(attachments, tuple):
        raise MessageError(
            f'attachments: {type(attachments).__name__} is not a list; give a list of Attachment'
        )
    files = [_file(attachment, max_size) for attachment in attachments]
    seen: set[str] = set()
    for file in files:
        if file.content_id in seen:
            raise MessageError(
                f'attachments: the content_id {excerpt(file.content_id)} is given twice; each '
                'needs its own'
            )
        if file.content_id is not None:
            seen.add(file.content_id)
    return files


def _file(attachment: object, max_size: int) -> File:
    if not isinstance(attachment, Attachment):
        raise MessageError(
            f'attachments: {type(attachment).__name__} is not an Attachment; give '
            'Attachment(filename, data)'
        )
    filename = _filename(attachment)
    where = f'attachment {excerpt(filename)}'
    content_type, parameters = _content_type(attachment.content_type, filename, where)
    data = attachment.data
    path = attachment.path
    if (data is None) == (path is None):
        raise MessageError(f'{where}: give data or path, and not both')
    if path is not None:
        data = _read_file(path, max_size, where)
    elif isinstance(data, str):
        data = plain_text(data, where, 'its data')
        charset = dict(parameters).get('charset')
        if charset is None and content_type.startswith('text/'):
            parameters = (*parameters, ('charset', 'utf-8'))
        try:
            data = data.encode(charset or 'utf-8')
        except (LookupError, ValueError) as error:
            raise MessageError(
                f'{where}: its data cannot be encoded in {excerpt(charset or "utf-8")}; give bytes'
            ) from error
    elif not isinstance(data, bytes):
        raise MessageError(f'{where}: data is a {type(data).__name__}; give bytes or a str')
    content_id = attachment.content_id
    if content_id is not None:
        if not isinstance(content_id, str) or not _CONTENT_ID.fullmatch(content_id):
            raise MessageError(
                f'{where}: the content_id {excerpt(content_id)} is not printable ASCII without '
                'blanks; write content_id=\'logo\' and <img src="cid:logo">'
            )
        content_id = str.__str__(content_id).removeprefix('<').removesuffix('>')
    return File(filename, content_type, parameters, data, content_id)


def _filename(attachment: Attachment) -> str:
    """Return the name that a reader sees, without folders."""
    name, path = attachment.filename, attachment.path
    given: object = path
    if given is not None and not isinstance(given, str | os.PathLike):
        # Bytes are the data where the order is that of pyramid_mailer: they are not shown.
        shown = 'a bytes' if isinstance(given, bytes) else excerpt(given)
        raise MessageError(
            f'attachments, path: {shown} is not a path; give a str or a Path, and a type as in '
            'Attachment(filename, data, content_type=...)'
        )
    if name is None:
        if path is None:
            raise MessageError('attachments: one has neither a filename nor a path; give a name')
        name = os.fspath(path)
        if is_asset_spec(name):
            name = name.partition(':')[2]
    text = check_text(name, 'attachments, filename')
    last = re.split(r'[/\\]', text)[-1]
    if len(last) > _NAME_LENGTH:
        raise MessageError(
            f'attachments, filename: {excerpt(last)} has {len(last)} characters, more than '
            f'{_NAME_LENGTH}; shorten it'
        )
    if last.strip() in ('', '.', '..') or '\t' in last:
        raise MessageError(
            f'attachments, filename: {excerpt(name)} is not a file name; give another'
        )
    return last


def _content_type(
    given: object, filename: str, where: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return a content type and its parameters, guessed from the file's name if none is given."""
    if given is None:
        guessed, encoding = mimetypes.guess_type(f'./{filename}')
        # A name does not say that it is a mail: it is not parsed, and arrives as it is.
        if guessed is None or encoding or guessed.startswith(('multipart/', 'message/')):
            guessed = 'application/octet-stream'
        return guessed, ()
    text = str.__str__(given) if isinstance(given, str) else ''
    if len(text) > _CONTENT_TYPE_LENGTH:
        raise MessageError(
            f'{where}: its content_type has {len(text)} characters, more than '
            f'{_CONTENT_TYPE_LENGTH}; leave parameters out'
        )
    match = _CONTENT_TYPE.fullmatch(text.strip('; '))
    if match is None:
        raise MessageError(
            f"{where}: {excerpt(given)} is not a content_type; write 'application/pdf'"
        )
    if _cannot_be_attached(match[1].lower()):
        raise MessageError(
            f'{where}: {match[1]} cannot be attached; use message/rfc822 for a whole mail, or '
            'application/octet-stream'
        )
    found = _PARAMETER.findall(match[2])
    return match[1].lower(), tuple(
        (key.lower(), value.strip('"')) for key, value in found if key.lower() != 'name'
    )


def _cannot_be_attached(content_type: str) -> bool:
    return content_type.startswith(('multipart/', 'message/')) and content_type != 'message/rfc822'


def size_text(size: int) -> str:
    """Return a number of bytes as a setting gives it: ``25M``."""
    for unit, factor in (('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)):
        if size and not size % factor:
            return f'{size // factor}{unit}'
    return str(size)


def _read_file(path: str | os.PathLike[str], max_size: int, where: str) -> bytes:
    """Return the content of a file of at most ``max_size`` bytes."""
    if not is_asset_spec(path) and os.path.exists(path) and not os.path.isfile(path):
        raise MessageError(f'{where}: {excerpt(path)} is not a regular file; give the path of one')
    try:
        with open_file(path) as file:
            data = file.read(max_size + 1)
    except (OSError, ValueError) as error:
        raise MessageError(f'{where}: {excerpt(path)} cannot be read: {error}') from error
    if len(data) > max_size:
        raise MessageError(
            f'{where}: {excerpt(path)} is larger than mail.max_size = {size_text(max_size)}; '
            'send a link to it'
        )
    return data


def _ascii_name(filename: str) -> str:
    """Return a short name in ASCII, for mail programs that do not know RFC 2231.

    It has the extension of the file's name, or none: a name that is cut must not make a harmless
    file of a program.
    """
    if needs_no_encoding(filename) and len(filename) <= 60 and '  ' not in filename:
        return filename
    stem, suffix = os.path.splitext(filename)
    if not re.fullmatch('[.][A-Za-z0-9_-]{1,20}', suffix):
        suffix = ''
    letters = unicodedata.normalize('NFKD', stem).encode('ascii', 'ignore').decode('ascii')
    # A dot within the stem could become the beginning of an extension.
    stem = re.sub('[^A-Za-z0-9_-]+', '_', letters)[:40].strip('_')
    return (stem or 'file') + suffix


def _attached_message(data: bytes, filename: str) -> bytes:
    """Return a whole mail in lines of 7 bits: nothing but its line ends may be changed, or the
    encoding of its parts (RFC 2046, 5.2.1)."""
    if data.isascii() and is_sendable(data.decode('ascii')):
        return '\r\n'.join(split_lines(data.decode('ascii'))).encode('ascii')
    # Hardly any application needs these, and each would start more slowly.
    from .foreign_content import ContentWriter
    from .foreign_parser import parse_message

    try:
        writer = ContentWriter(2 * len(data) + 1000, 'encoded, it is more than twice as large')
        writer.write(parse_message(data))
    except MessageError as error:
        raise MessageError(
            f'attachment {excerpt(filename)}: {error}; or attach it as application/octet-stream'
        ) from error
    message = b''.join(writer.pieces)
    if not message.isascii():
        raise MessageError(
            f'attachment {excerpt(filename)}: an address in its headers is not ASCII; attach it as '
            'application/octet-stream'
        )
    return message


_NAME_LENGTH = 1000
"""Characters of a file name. No file system has longer ones."""

_CONTENT_TYPE_LENGTH = 2000

_CONTENT_ID = re.compile(r"""<[!#-&(-;=?-~]+>|[!#-&(-;=?-~]+""")


_PARAMETER = re.compile(r"""\s*;\s*([A-Za-z0-9!#$&+.^_`{|}~-]+)=("[^"\\]*"|[^\s"();,<>@]+)""")


_CONTENT_TYPE = re.compile(
    rf'([A-Za-z0-9!#$&+.^_-]+/[A-Za-z0-9!#$&+.^_-]+)((?:{_PARAMETER.pattern})*)'
)
