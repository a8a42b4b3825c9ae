"""The MIME structure of our messages, as other programs read it."""

from __future__ import annotations

from typing import Any

import mailparser  # type: ignore[import-untyped]
import pytest

from pyramid_sendmail.message import Attachment, Message
from tests.support.messages import PNG, freeze, plain, read, shape


def full() -> Message:
    return plain(
        text='Grüße an alle',
        html='<p>Grüße <img src="cid:logo"></p>',
        attachments=[
            Attachment('logo.png', PNG, content_id='logo'),
            Attachment('Übersicht.csv', 'a;b\nc;d\r\n'),
        ],
    )


def test_full_structure() -> None:
    """The standard library reads mixed over alternative over related, with all content."""
    message = read(freeze(full()))

    assert shape(message) == {
        'multipart/mixed': [
            {
                'multipart/alternative': [
                    'text/plain',
                    {'multipart/related': ['text/html', 'image/png']},
                ]
            },
            'text/csv',
        ]
    }
    text = message.get_body(('plain',))
    html = message.get_body(('html',))
    assert text is not None
    assert html is not None
    assert text.get_content() == 'Grüße an alle\r\n'
    assert html.get_content() == '<p>Grüße <img src="cid:logo"></p>\r\n'
    (csv,) = message.iter_attachments()
    assert csv.get_filename() == 'Übersicht.csv'
    assert csv.get_payload(decode=True) == b'a;b\nc;d\r\n'
    assert csv.get_content_charset() == 'utf-8'
    picture = next(part for part in message.walk() if part.get_content_type() == 'image/png')
    assert picture.get_content() == PNG
    assert picture['Content-ID'] == '<logo>'
    assert picture.get_content_disposition() == 'inline'


def test_full_structure_read_by_another() -> None:
    """mail-parser reads the same message."""
    mail = mailparser.parse_from_bytes(freeze(full()).raw)

    assert mail.subject == 'Hi'
    assert mail.from_ == [('Shop', 'shop@example.org')]
    assert mail.to == [('', 'ann@example.org')]
    assert mail.text_plain == ['Grüße an alle\r\n']
    assert mail.text_html == ['<p>Grüße <img src="cid:logo"></p>\r\n']
    assert {file['filename']: file['mail_content_type'] for file in mail.attachments} == {
        'logo.png': 'image/png',
        'Übersicht.csv': 'text/csv',
    }
    assert not mail.defects


@pytest.mark.parametrize(
    ('given_', 'expected'),
    [
        ({}, 'text/plain'),
        ({'text': None, 'html': 'x'}, 'text/html'),
        ({'html': 'x'}, {'multipart/alternative': ['text/plain', 'text/html']}),
        (
            {'attachments': [Attachment('a.pdf', b'x')]},
            {'multipart/mixed': ['text/plain', 'application/pdf']},
        ),
        (
            {
                'text': None,
                'html': '<i style="background: URL( cid:a%40b )">',
                'attachments': [Attachment('a.gif', b'x', content_id='<a@b>')],
            },
            {'multipart/related': ['text/html', 'image/gif']},
        ),
        (
            {'html': 'x', 'attachments': [Attachment('a.gif', b'x', content_id='unused')]},
            {
                'multipart/mixed': [
                    {'multipart/alternative': ['text/plain', 'text/html']},
                    'image/gif',
                ]
            },
        ),
        (
            {'attachments': [Attachment('a.gif', b'x', content_id='unused')]},
            {'multipart/mixed': ['text/plain', 'image/gif']},
        ),
    ],
)
def test_structures(given_: dict[str, Any], expected: Any) -> None:
    """A message has no needless part; a picture that html does not refer to is an attachment."""
    message = read(freeze(plain(**given_)))

    assert shape(message) == expected
    for part in message.walk():
        if part.get_content_maintype() == 'image':
            inline = shape(message).keys() == {'multipart/related'}
            assert part.get_content_disposition() == ('inline' if inline else 'attachment')


@pytest.mark.parametrize(
    'html',
    [
        '<a href="https://example.org/?q=cid:123">x</a>',
        "<a href='https://example.org/a?x=1&amp;ref=cid:9'>x</a>",
        '<a href="cid:missing">a link from another mail</a>',
        '<p>write a=cid:logo into the template</p>',
        '<p data-note="use src=cid:logo">x</p>',
        '<p>&lt;img src="cid:logo"&gt;</p>',
        '<p>style: url(cid:logo)</p>',
        '<textarea><img src="cid:logo"></textarea>',
        '<title><img src="cid:logo"></title><script>x = "<img src=cid:logo>"</script>',
        '<!-- <img src="cid:logo"> -->',
        '<!-- <img src="cid:logo">',
        '1 < 2 <3 src=cid:logo',
        '<img src="cid:">',
        '<img alt="cid:logo" title=cid:logo>',
        '<style>/* url(cid:logo) */ p { color: red } /* url(cid:logo)</style>',
        '<p style="/**/ color: red /* url(cid:logo) */">x</p>',
    ],
)
def test_what_refers_to_no_picture(html: str) -> None:
    """What a visitor can write into a page that is escaped makes send raise nothing."""
    assert shape(read(freeze(plain(text=None, html=html)))) == 'text/html'


@pytest.mark.parametrize(
    'html',
    [
        '<img src="cid:a">',
        "<IMG\n SRC = 'CID:a'>",
        '<img src=cid:a>',
        '<img/src=cid:a>',
        '<img alt=">" src="cid:a">',
        '<img src="&#99;id:a" title="cid:x">',
        '<body background="cid:a">',
        '<video poster="cid:a"></video>',
        '<object data=cid:a></object>',
        '<svg><image xlink:href="cid:a"/></svg>',
        '<img srcset="x.png 1x, cid:a 2x">',
        '<style>p { background: url( "cid:a" ) }</style>',
        '<p style="background-image:URL(cid:a)">x</p>',
        '<style>/* x */ p { background: url(cid:a) /* y</style>',
        '<!--[if gte mso 9]><v:fill src="cid:a" /><![endif]-->',
        '<a href="cid:a">the plan</a>',
        '<textarea>x</textarea><img src="cid:a">',
        '<!-- x --><img src="cid:a">',
    ],
)
def test_what_refers_to_a_picture(html: str) -> None:
    """References stand in tags and in style, however these are written."""
    file = Attachment('a.gif', b'x', content_id='a')

    message = read(freeze(plain(text=None, html=html, attachments=[file])))

    assert shape(message) == {'multipart/related': ['text/html', 'image/gif']}


def test_words_are_no_references() -> None:
    """Prose that mentions cid: refers to no picture."""
    freeze(plain(html='<p>Write cid:logo, or (cid:x)</p>'))


def test_empty_text() -> None:
    """'' is a valid text, and stays empty."""
    assert freeze(plain(text='')).raw.endswith(b'7bit\r\n\r\n')
