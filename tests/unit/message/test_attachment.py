"""Attachments: their names and types, what is refused, and that every byte arrives."""

from __future__ import annotations

import email
import email.policy
import os
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid import testing

from pyramid_sendmail.exceptions import MessageError
from pyramid_sendmail.message import Attachment, EnvelopeFactory
from tests.support.messages import PNG, assert_refused, freeze, plain, read


def attached_mail(data: bytes | str) -> Attachment:
    return Attachment('a.eml', data, content_type='message/rfc822')


BAD_ATTACHMENTS: list[tuple[Attachment, str]] = [
    (Attachment('a.txt'), "attachment 'a.txt': give data or path"),
    (Attachment('a.txt', b'x', path='y'), "attachment 'a.txt': give data or path, and not both"),
    (Attachment(None, b'x'), 'attachments: .*neither a filename nor a path; give a name'),
    (Attachment('', b'x'), "attachments, filename: '' is not a file name"),
    (Attachment('a/..', b'x'), r"attachments, filename: 'a/\.\.' is not a file name"),
    (Attachment('a\r\nb', b'x'), 'attachments, filename: .*line break'),
    (Attachment('a\tb', b'x'), 'attachments, filename: .*not a file name'),
    (Attachment('a\ud800', b'x'), 'attachments, filename: .*lone surrogate'),
    (Attachment(5, b'x'), 'attachments, filename: 5 is not a string'),  # type: ignore[arg-type]
    (Attachment('a', 5), "attachment 'a': data is a int; give bytes or a str"),  # type: ignore[arg-type]
    (Attachment('a', path=5), 'attachments, path: 5 is not a path'),  # type: ignore[arg-type]
    (Attachment('a', 'application/pdf', b's3cret'), 'path: a bytes .*Attachment.filename, data, c'),  # type: ignore[arg-type]
    (Attachment('a', path='no.such:a.txt'), "'no.such:a.txt' cannot be read: there is no package"),
    (Attachment('a', path='tests.support:no.txt'), 'the package tests.support has no such file'),
    (Attachment('a', path='sys:logo.png'), "'sys:logo.png' cannot be read: the module sys has no"),
    (Attachment('a', path='tests:support'), 'the asset tests:support is a folder'),
    (Attachment('a', path='static/no.png'), r"No such file.* in /.*, the current .*'myapp:static/"),
    (Attachment('a', 'x\ud800'), "attachment 'a': its data cannot be encoded in 'utf-8'"),
    (Attachment('a', 'é', content_type='text/plain; charset=ascii'), "encoded in 'ascii'; give b"),
    (Attachment('a', 'é', content_type='text/plain; charset=nix'), "encoded in 'nix'"),
    (Attachment('a', path='/no/such/file'), "'a': '/no/such/file' cannot be read: .*No such file"),
    (Attachment('a', path='/no\0such'), "'a': '/no.x00such' cannot be read: .*null byte"),
    (Attachment(None, path='/tmp'), "attachment 'tmp': '/tmp' is not a regular file"),
    (Attachment('a', b'x', content_type='x'), "'a': 'x' is not a content_type; write 'appl"),
    (Attachment('a', b'x', content_type='text/plain\r\nBcc: b@x'), "'a': .* is not a content_type"),
    (Attachment('a', b'x', content_type='text/plain; charset="a\r\nb"'), 'Content-Type, charset'),
    (Attachment('a', b'x', content_type=5), "'a': 5 is not a content_type"),  # type: ignore[arg-type]
    (Attachment('a', b'x', content_type='multipart/mixed'), "'a': multipart/mixed cannot .*rfc822"),
    (Attachment('a', b'x', content_type='message/partial'), "'a': message/partial cannot be att"),
    (Attachment('a', b'x', content_id=''), "'a': the content_id '' .*write content_id='logo'"),
    (Attachment('a', b'x', content_id='a b'), "'a': the content_id 'a b'"),
    (Attachment('a', b'x', content_id='a\r\nb'), "'a': the content_id"),
    (Attachment('a', b'x', content_id='<a'), "'a': the content_id '<a'"),
    (Attachment('a', b'x', content_id=5), "'a': the content_id 5"),  # type: ignore[arg-type]
    (attached_mail(b'X: \xff\n\n'), "attachment 'a.eml': X: .*application/octet-stream"),
    (attached_mail(b'Content-Type: multipart/mixed\n\n\xff'), "'a.eml': .*7 bits"),
    (attached_mail('To: jörg@x\n\n'), "'a.eml': an address .* not ASCII; attach it as appl"),
]


@pytest.mark.parametrize(('attachment', 'named'), BAD_ATTACHMENTS)
def test_bad_attachment(attachment: Attachment, named: str) -> None:
    """A message with an attachment that cannot be sent is refused; the text names the file."""
    with pytest.raises(MessageError) as caught:
        freeze(plain(attachments=[attachment]))

    assert_refused(caught.value, named)


def test_asset() -> None:
    """A path may be an asset of a package; the package is no part of the name."""
    for spec, name in (
        ('tests.support:__init__.py', '__init__.py'),
        ('demo:static/logo.png', 'logo.png'),
    ):
        (part,) = read(freeze(plain(attachments=[Attachment(None, path=spec)]))).iter_attachments()
        assert part.get_filename() == name
        package, _, path = spec.partition(':')
        data = files(package).joinpath(path).read_bytes()
        assert part.get_payload(decode=True) == data


def test_an_asset_that_is_overridden(tmp_path: Path) -> None:
    """An application may put another file in the place of an asset."""
    (tmp_path / 'logo.png').write_bytes(b'other')
    with testing.testConfig() as config:
        config.override_asset('demo:static/', f'{tmp_path}/')
        config.commit()
        attachment = Attachment(None, path='demo:static/logo.png')
        (part,) = read(freeze(plain(attachments=[attachment]))).iter_attachments()
    assert part.get_payload(decode=True) == b'other'


def test_a_file_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name looks like an asset is read all the same; a large asset is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo:x').write_bytes(b'here')
    (part,) = read(freeze(plain(attachments=[Attachment('x', path='demo:x')]))).iter_attachments()
    assert part.get_payload(decode=True) == b'here'
    small = EnvelopeFactory(default_sender='a@x', max_size=1000)
    with pytest.raises(MessageError, match=r'larger than mail\.max_size'):
        small.envelope(plain(attachments=[Attachment(None, path='demo:static/logo.png')]))


def test_large_file(tmp_path: Path) -> None:
    """A file larger than mail.max_size is refused."""
    path = tmp_path / 'large'
    path.write_bytes(b'x' * 2000)

    with pytest.raises(MessageError, match=r'large.*mail\.max_size = 1000'):
        EnvelopeFactory(default_sender='a@x', max_size=1000).envelope(
            plain(attachments=[Attachment(None, path=path)])
        )


def test_duplicate_content_id() -> None:
    """Two attachments with one content id are refused."""
    files = [Attachment('a.gif', b'x', content_id='a'), Attachment('b.gif', b'y', content_id='<a>')]

    with pytest.raises(MessageError, match=r"content_id 'a' is given twice; each needs its own"):
        freeze(plain(attachments=files))


@pytest.mark.parametrize(
    ('attachment', 'kind', 'name'),
    [
        (Attachment('a.pdf', b'x'), 'application/pdf', 'a.pdf'),
        (Attachment('a', b''), 'application/octet-stream', 'a'),
        (Attachment('a.tar.gz', b'x'), 'application/octet-stream', 'a.tar.gz'),
        (Attachment('a.xyz', b'x', content_type='Text/X-Y'), 'text/x-y', 'a.xyz'),
        (Attachment('.htaccess', b'x'), 'application/octet-stream', '.htaccess'),
        (Attachment('/etc/a.txt', b'x'), 'text/plain', 'a.txt'),
        (Attachment('C:\\x\\a.txt', b'x'), 'text/plain', 'a.txt'),
        (Attachment('a "b".txt', b'x'), 'text/plain', 'a "b".txt'),
        (Attachment('日本.txt', bytearray(b'x')), 'text/plain', '日本.txt'),  # type: ignore[arg-type]
        (Attachment('日本', 'x'), 'application/octet-stream', '日本'),
    ],
)
def test_attachment_names(attachment: Attachment, kind: str, name: str) -> None:
    """The type is guessed from the name, and the name has no folder."""
    (part,) = read(freeze(plain(attachments=[attachment]))).iter_attachments()

    assert (part.get_content_type(), part.get_filename()) == (kind, name)


@pytest.mark.parametrize(
    ('name', 'short'),
    [
        ('invoice.pdf', 'invoice.pdf'),
        ('invoice.pdf' + ' ' * 60 + '.exe', 'invoice_pdf.exe'),
        ('a  b.pdf', 'a_b.pdf'),
        ('quarterly report of the year ' * 4 + '.pdf', None),
        ('Übersicht.csv', 'Ubersicht.csv'),
        ('日本.txt', 'file.txt'),
        ('日本', 'file'),
        ('archive.tar.gz.日本', 'archive_tar_gz'),
        ('a.exe\u202efdp.日本', 'a_exefdp'),
        ('é.' + 'x' * 50, 'e'),
        ('x' * 59 + '.pdf', 'x' * 40 + '.pdf'),
        ('x' * 100, 'x' * 40),
        ('.htaccess' + 'x' * 60, 'htaccess' + 'x' * 31),
    ],
)
def test_one_attachment_has_one_extension(name: str, short: str | None) -> None:
    """``name=`` never has another extension than ``filename=``: none, where it cannot be kept."""
    (part,) = read(freeze(plain(attachments=[Attachment(name, b'x')]))).iter_attachments()

    found = part['Content-Type'].params['name']
    assert part.get_filename() == name
    assert os.path.splitext(found)[1] in ('', os.path.splitext(name)[1])
    if short is not None:
        assert found == short


@pytest.mark.parametrize('name', ['mail.eml', 'page.mht', 'page.mhtml', 'news.nws'])
@pytest.mark.parametrize(
    'data',
    [
        b'\xff\xfe\x00no mail at all',
        b'From: J\xfcrgen <j@example.org>\r\nSubject: x\r\n\r\nhello\r\n',
        'From: jürgen@example.org\n\nhello\n'.encode(),
        b'Subject: x\n\nline ends of LF\n',
        b'Content-Type: multipart/mixed; a="' + b';' * 200_000 + b'\n\n\xff',
    ],
)
def test_a_guessed_mail_is_a_file(name: str, data: bytes) -> None:
    """A name does not say that mail.eml is a mail: it is not parsed, and arrives byte for byte."""
    (part,) = read(freeze(plain(attachments=[Attachment(name, data)]))).iter_attachments()

    assert part.get_content_type() == 'application/octet-stream'
    assert part.get_payload(decode=True) == data


def test_attachment_from_path(tmp_path: Path) -> None:
    """A file is read by send, and named after its path."""
    path = tmp_path / 'Grüße.bin'
    attachment = Attachment(None, path=os.fspath(path))
    path.write_bytes(PNG)

    (part,) = read(freeze(plain(attachments=[attachment]))).iter_attachments()

    assert part.get_filename() == 'Grüße.bin'
    assert part.get_content() == PNG


def test_attachment_charset() -> None:
    """A str is written in the character set that its content_type names."""
    attachment = Attachment('a.txt', 'é', content_type='text/plain; charset="latin-1"; x=y')

    (part,) = read(freeze(plain(attachments=[attachment]))).iter_attachments()

    assert part.get_payload(decode=True) == b'\xe9'
    assert part.get_content() == 'é'
    assert part['Content-Type'].params['x'] == 'y'


def test_text_attachment_is_exact() -> None:
    """A text file arrives byte for byte, with its own line ends."""
    data = b'a\rb\nc\r\nd\0 \n.\n' + b'x' * 2000

    (part,) = read(freeze(plain(attachments=[Attachment('a.txt', data)]))).iter_attachments()

    assert part.get_payload(decode=True) == data


@given(st.binary(max_size=500))
def test_any_data(data: bytes) -> None:
    """Any attachment arrives byte for byte."""
    (part,) = read(freeze(plain(attachments=[Attachment('a.bin', data)]))).iter_attachments()

    assert part.get_content() == data


@pytest.mark.parametrize(
    'mail',
    [
        b'Subject: x\nTo: a@x\n\nHello\n',
        'Subject: Grüße\n\nGrüße\n'.encode(),
        b'Subject: x\n\n' + b'x' * 2000,
        b'Subject: x\nContent-Type: text/plain; charset=latin-1\n\n\xe9\n',
    ],
)
def test_attached_mail(mail: bytes) -> None:
    """A mail is attached as a mail, in lines of 7 bits (RFC 2046, 5.2.1)."""
    (part,) = read(freeze(plain(attachments=[attached_mail(mail)]))).iter_attachments()
    expected = email.message_from_bytes(mail, policy=email.policy.default)
    inner = part.get_content()

    assert part.get_content_type() == 'message/rfc822'
    assert part['Content-Transfer-Encoding'] == '7bit'
    assert inner['Subject'] == expected['Subject']
    if expected.get_content_charset() == 'iso-8859-1':
        assert inner.get_content() == 'é\n'
    else:
        assert inner.get_payload(decode=True).strip() == expected.get_payload(decode=True).strip()  # type: ignore[union-attr]
