"""The add-on pyramid_mailer, if an application includes it beside this one."""

from __future__ import annotations

from pyramid.exceptions import ConfigurationError
from pyramid.registry import Registry

__all__ = ['refuse_pyramid_mailer']


def refuse_pyramid_mailer(registry: Registry) -> None:
    """Raise ConfigurationError if pyramid_mailer is included: it sets ``request.mailer`` too.

    Pyramid would report a conflict between two files, and after an earlier commit one of the two
    would win without a word. An include of pyramid_mailer registers its mailer at once.
    """
    if any(
        utility.provided.__module__.partition('.')[0] == 'pyramid_mailer'
        for utility in registry.registeredUtilities()
    ):
        raise ConfigurationError(
            'pyramid_mailer is included beside pyramid_sendmail, and both set request.mailer: drop '
            "config.include('pyramid_mailer'), also from pyramid.includes in the ini file; its "
            'messages can be sent as they are'
        )
