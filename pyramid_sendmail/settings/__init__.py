"""The ``mail.*`` settings: one table gives the parser, the manual and ``--help``."""

from .table import TABLE, MailSettings, parse_settings

__all__ = ['TABLE', 'MailSettings', 'parse_settings']
