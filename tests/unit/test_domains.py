"""Domain names in ASCII."""

from __future__ import annotations

import subprocess
import sys

import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.domains import ascii_domain
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer


@given(st.text('aZ9-.éßςÜΣ日क\u094d\u0937\u200d\u200c·\u00ad\u3002', max_size=20))
def test_as_idna_2008(domain: str) -> None:
    """Where IDNA 2008 has a form for what is no capital letter, it is this one; a form that is
    found reads as what was given, so that no other owner's domain is meant."""
    labels = [label for label in domain.split('.') if not label.isascii()]
    try:
        found = ascii_domain(domain)
    except UnicodeError:
        for label in labels:
            if label == label.lower():
                with pytest.raises(UnicodeError):
                    idna.encode(domain, strict=True)
                break
        return
    if not labels:
        assert found == domain
        return
    assert found.isascii()
    for label, ascii_label in zip(domain.split('.'), found.split('.'), strict=True):
        if ascii_label.startswith('xn--'):
            expected = ''.join(character.lower() for character in label)
            assert ascii_label[4:].encode().decode('punycode') == expected


@pytest.mark.parametrize('domain', ['example.org', 'Example.ORG', 'a..b', '', 'xn--nonsense-'])
def test_ascii_stays(domain: str) -> None:
    """An ASCII domain is returned as it is: whether it is one is not asked here."""
    assert ascii_domain(domain) == domain


def test_a_mailer_made_in_code() -> None:
    """Nor do the socket and ssl modules of Python, which know IDNA 2003, see another host."""
    mailer = SMTPMailer('mail.straße.example', hostname='web.example.org')

    assert mailer.host == mailer.handshake.host == 'mail.xn--strae-oqa.example'
    assert mailer.name == 'smtp://mail.xn--strae-oqa.example:25'
    with pytest.raises(ValueError, match=r'host: .* write it as xn--'):
        SMTPMailer('a\u200db.example', hostname='web.example.org')


def test_a_certificate_has_no_zone() -> None:
    """The zone of a link-local address is for the connection alone."""
    mailer = SMTPMailer('fe80::1%eth0', hostname='web.example.org')

    assert (mailer.host, mailer.handshake.host) == ('fe80::1%eth0', 'fe80::1')


_SENT = """
import sys
from pyramid_sendmail import Message
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.mailers.factory import mailer_from_url
mailer_from_url('smtp://relay.example.org', hostname='x')
for to in ('ann@example.org', 'ann@bücher.example'):
    EnvelopeFactory().envelope(Message(to=to, sender='a@example.org', text='x'))
    print('idna' in sys.modules)
"""


def test_loaded_when_needed() -> None:
    """A process loads the tables when it meets the first domain that is not ASCII."""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-X', 'utf8', '-c', _SENT],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ['False', 'True']
