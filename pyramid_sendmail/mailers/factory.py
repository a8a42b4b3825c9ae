"""The text of ``mail.url``: which mailers, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from pyramid.exceptions import ConfigurationError

from ..settings.credentials import SCHEMES, begins, separate, takes_credentials
from ..standin import stand_in
from .schemes import BUILDERS, Defaults
from .url import EXAMPLE, MailURL, refuse, split

__all__ = ['mailer_from_url']

_ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth', 'ninth')


def mailer_from_url(
    url: str,
    *,
    hostname: str,
    username: str | None = None,
    password: str | None = None,
    later: bool = False,
) -> Any:
    """Return the mailer that the text of ``mail.url`` describes; of several URLs with blanks
    between them, one that tries theirs in this order.

    =================================== ===================================================
    ``smtp://[USER:PASSWORD@]HOST``     port 25; ``smtps:`` 465; ``smtp+insecure:`` 25
    ``lmtp://HOST``                     port 24; ``lmtp+unix:/absolute/socket``
    ``sendmail:[/absolute/program]``    a program, ``/usr/sbin/sendmail`` if none is named
    ``file:///absolute/folder``         a Maildir
    ``null:``                           nothing
    =================================== ===================================================

    Options stand in the query; the builders know them. What a URL cannot hold as it is, is
    percent-encoded: ``@`` as ``%40``.

    ``hostname``: our own name. ``username``, ``password``: from their own settings, for each URL
    that takes them and has none. ``later``: return what stands in for a mailer, where everything
    has been verified before it is made. Raises ConfigurationError naming mail.url, which of
    several URLs, and what to write, never the password.
    """
    if ',' in url and begins(r',\s*', url):
        refuse('has a comma before a URL', 'a blank or a line break there, or , as %2C')
    urls = separate(url)
    defaults = Defaults(hostname, username or None, password or None)
    parts = []
    for number, each in enumerate(urls):
        with _naming(number, len(urls)):
            parts.append(_split(each, number))
    _check_beside(parts, defaults)
    mailers: list[Any] = []
    for number, part in enumerate(parts):
        with _naming(number, len(urls)):
            make = BUILDERS[part.scheme](part, defaults)
            mailers.append(stand_in(make) if later and _is_certain(part, defaults) else make())
    if len(mailers) == 1:
        return mailers[0]
    from .failover import FailoverMailer

    return FailoverMailer(mailers)


def _is_certain(part: MailURL, defaults: Defaults) -> bool:
    """Whether making the mailer can neither fail nor has anything to say: LMTP refuses a port,
    ``smtp+insecure:`` warns, options name files, and credentials must not hold a NUL."""
    words = (*part.credentials(), defaults.username or '', defaults.password or '')
    return (
        part.scheme not in ('lmtp', 'smtp+insecure')
        and part.options.keys() <= {'tls'}
        and not any('\0' in word for word in words)
    )


@contextmanager
def _naming(number: int, total: int) -> Iterator[None]:
    """Say in errors which URL it is; also in those of a mailer."""
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


def _split(url: str, number: int) -> MailURL:
    parts = split(url)
    if parts.scheme not in BUILDERS:
        _refuse_scheme(parts, number)
    return parts


def _refuse_scheme(parts: MailURL, number: int) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(parts.scheme, SCHEMES, n=1, cutoff=0.5)
    hint = f'{near[0]}: perhaps, or ' if near else ''
    if number:
        # What looks like a scheme may be the end of a password with a blank in it.
        refuse('begins with an unknown scheme', f'{hint}{EXAMPLE}, and a blank as %20')
    if parts.scheme and not parts.path.split('?')[0].isdigit():
        refuse(f'begins with {parts.scheme}:, which is unknown', f'{hint}{EXAMPLE}')
    refuse('does not say how mail leaves', f'smtp: before the host, as in {EXAMPLE}')


def _check_beside(parts: Sequence[MailURL], defaults: Defaults) -> None:
    """Somebody must take the credentials of the other settings."""
    if not (defaults.username or defaults.password):
        return
    takers = [each for each in parts if takes_credentials(f'{each.scheme}:')]
    if not takers:
        problem = f'is {parts[0].scheme}:, which takes no credentials'
        if len(parts) > 1:
            problem = 'has no URL that takes credentials'
        refuse(problem, 'it without mail.username and mail.password')
    takers = [each for each in takers if not each.has_credentials]
    if not takers:
        refuse('has credentials, and so have mail.username or mail.password', 'them in one place')
    if defaults.password and all(each.has_token for each in takers):
        refuse('has a token, and there is a password beside it', 'one of them alone')
