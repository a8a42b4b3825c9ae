"""The mailer that the text of ``mail.url`` describes, of one URL or of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from pyramid.exceptions import ConfigurationError

from ..interfaces import IMailer
from ..settings.credentials import (
    SCHEMES,
    accepts_credentials,
    has_comma_between_urls,
    split_urls,
)
from ..settings.nearest import nearest
from .failover import FailoverMailer
from .schemes import BUILDERS, Defaults
from .url import EXAMPLE_URL, MailURL, parse_url, refuse

__all__ = ['mailer_from_url']

_ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth', 'ninth')


def mailer_from_url(
    url: str,
    *,
    hostname: str,
    username: str | None = None,
    password: str | None = None,
) -> IMailer:
    """Return the mailer that the text of ``mail.url`` describes.

    For several URLs, separated by blanks, it is a FailoverMailer that tries them in this order.

    =================================== ===================================================
    ``smtp://[USER:PASSWORD@]HOST``     port 25; ``smtps:`` 465; ``smtp+insecure:`` 25
    ``lmtp://HOST``                     port 24; ``lmtp+unix:/absolute/socket``
    ``sendmail:[/absolute/program]``    a program, by default ``/usr/sbin/sendmail``
    ``file:///absolute/folder``         a Maildir
    ``null:``                           nothing
    =================================== ===================================================

    The query holds options: see ``schemes``. Characters with a meaning in a URL are
    percent-encoded: ``@`` as ``%40``.

    ``hostname``: our own name. ``username``, ``password``: for each URL that accepts credentials
    and has none. Raises ConfigurationError naming mail.url, which of several URLs, and what to
    write, never the password.
    """
    if has_comma_between_urls(url):
        refuse('has a comma before a URL', 'a blank or a line break there, or , as %2C')
    texts = split_urls(url)
    defaults = Defaults(hostname, username or None, password or None)
    urls = []
    for number, text in enumerate(texts):
        with _errors_name_url(number, len(texts)):
            urls.append(_known(parse_url(text), number))
    _check_defaults(urls, defaults)
    mailers = []
    for number, parts in enumerate(urls):
        with _errors_name_url(number, len(urls)):
            mailers.append(BUILDERS[parts.scheme](parts, defaults))
    return mailers[0] if len(mailers) == 1 else FailoverMailer(mailers)


@contextmanager
def _errors_name_url(number: int, total: int) -> Iterator[None]:
    """Name mail.url and, of several URLs, the one that an error is about.

    The ValueError of a mailer becomes a ConfigurationError.
    """
    try:
        yield
    except (ConfigurationError, ValueError) as error:
        text = str(error)
        if not text.startswith('mail.url '):
            text = f'mail.url: {text}'
        elif total == 1:
            raise
        if total > 1:
            which = f'number {number + 1}'
            if number < len(_ORDINALS):
                which = f'the {_ORDINALS[number]}'
            text = f'mail.url ({which}){text.removeprefix("mail.url")}'
        raise ConfigurationError(text) from error


def _known(url: MailURL, number: int) -> MailURL:
    if url.scheme not in BUILDERS:
        _refuse_scheme(url, number)
    return url


def _refuse_scheme(url: MailURL, number: int) -> NoReturn:
    near = nearest(url.scheme, SCHEMES, cutoff=0.5)
    hint = f'{near}: perhaps, or ' if near else ''
    if number:
        # What looks like a scheme may be the end of a password with a blank in it.
        refuse('begins with an unknown scheme', f'{hint}{EXAMPLE_URL}, and a blank as %20')
    if url.scheme and not url.path.isdigit():
        refuse(f'begins with {url.scheme}:, which is unknown', f'{hint}{EXAMPLE_URL}')
    refuse('does not say how mail leaves', f'smtp: before the host, as in {EXAMPLE_URL}')


def _check_defaults(urls: Sequence[MailURL], defaults: Defaults) -> None:
    """Refuse credentials that no URL would use."""
    if not (defaults.username or defaults.password):
        return
    accepting = [url for url in urls if accepts_credentials(f'{url.scheme}:')]
    if not accepting:
        problem = f'is {urls[0].scheme}:, which takes no credentials'
        if len(urls) > 1:
            problem = 'has no URL that takes credentials'
        refuse(problem, 'it without mail.username and mail.password')
    without = [url for url in accepting if not url.has_credentials]
    if not without:
        refuse('has credentials, and so have mail.username or mail.password', 'them in one place')
    if defaults.password and all(url.has_token for url in without):
        refuse('has a token, and mail.password is set too', 'one of them')
