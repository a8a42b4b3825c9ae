"""Settings that are none of ours, and what was meant by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pyramid.exceptions import ConfigurationError

from .given import text_of
from .nearest import nearest

__all__ = ['unknown_settings']

_NOT_OURS = {
    'mail.keyfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.certfile': 'write mail.url = smtps://HOST?client_cert=FILE&client_key=FILE',
    'mail.debug': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.debug_smtp': 'use logging: the loggers below pyramid_sendmail, at DEBUG',
    'mail.sendmail_app': 'write mail.url = sendmail:/path/to/program',
    'mail.sendmail_template': 'write mail.url = sendmail:, which gives -i, -f and the recipients',
}
"""Settings of pyramid_mailer, and what to do instead."""

_KEEP_MAIL_HERE = (
    'mail would go to its real recipients; write mail.url = file:///FOLDER to keep mail in a '
    'folder instead'
)

_NOT_YET = {
    'mail.redirect_to': _KEEP_MAIL_HERE,
    'mail.allow': _KEEP_MAIL_HERE,
}
"""Settings of later releases: refused, because ignoring them would send mail to its real
recipients."""

_SYNONYMS = {
    'default_sender': ('from', 'from_address', 'default_from', 'sender', 'mail_from', 'from_email'),
    'envelope_sender': ('return_path', 'bounce', 'bounces', 'bounce_address', 'errors_to'),
    'queue_path': (
        *('queue', 'path', 'maildir', 'mail_dir', 'queue_dir', 'queue_folder', 'spool'),
        *('spool_dir', 'directory', 'folder'),
    ),
    'host': ('server', 'relay', 'smtp', 'smtp_host', 'smtp_server', 'mailhost', 'smarthost'),
    'port': ('smtp_port',),
    'url': ('uri', 'dsn', 'smtp_url', 'relay_url', 'transport', 'backend'),
    'username': ('user', 'login', 'smtp_user', 'smtp_username', 'user_name'),
    'password': ('pass', 'passwd', 'pwd', 'secret', 'smtp_password'),
    'tls': ('use_tls', 'starttls', 'use_starttls'),
    'ssl': ('use_ssl', 'smtps'),
    'hostname': ('helo', 'ehlo', 'local_hostname', 'helo_name', 'fqdn'),
    'workers': ('threads', 'connections', 'concurrency', 'max_connections'),
    'batch': ('batch_size', 'max_messages'),
    'rate': ('rate_limit', 'throttle', 'limit'),
    'retry': ('retries', 'delays', 'retry_delays', 'backoff', 'retry_delay'),
    'give_up_after': ('max_age', 'lifetime', 'ttl', 'expire', 'expires', 'max_lifetime'),
    'max_size': ('size', 'max_message_size', 'size_limit', 'message_size_limit'),
    'direct_timeout': ('timeout',),
}
"""What the settings are called elsewhere, by their names here."""

_MEANT = {other: name for name, others in _SYNONYMS.items() for other in others}

_CLOSE = 0.75
"""How similar a name must be to be proposed: at 0.6 mail.hidden would mean mail.delivery."""


def unknown_settings(
    settings: Mapping[str, object], known: Collection[str]
) -> list[ConfigurationError]:
    """Return an error for each ``mail.`` key that is neither known nor in mail.ignore."""
    try:
        words = text_of('mail.ignore', settings.get('mail.ignore')).replace(',', ' ').split()
    except ConfigurationError:
        # The table says so; without it nothing is known about the others.
        return []
    ignored = {f'mail.{word.removeprefix("mail.")}' for word in words}
    problems: list[ConfigurationError] = []
    for key in (*sorted(ignored), *settings):
        try:
            if key == 'pyramid_mailer.prefix':
                _check_prefix(settings)
            elif key in ignored:
                _check_ignored(key, known)
            elif isinstance(key, str) and key.startswith('mail.') and key not in known:
                _refuse(key, known)
        except ConfigurationError as error:
            if str(error) not in map(str, problems):
                problems.append(error)
    return problems


def _check_ignored(key: str, known: Collection[str]) -> None:
    if key in known or key in _NOT_YET:
        raise ConfigurationError(
            f'mail.ignore: {key} is a setting of pyramid_sendmail and is always checked; '
            f'rename the one of your application'
        )


def _check_prefix(settings: Mapping[str, object]) -> None:
    """Refuse the setting by which pyramid_mailer reads settings of other names."""
    prefix = text_of('pyramid_mailer.prefix', settings['pyramid_mailer.prefix'])
    if prefix in ('', 'mail.'):
        return
    names = sorted(str(key) for key in settings if str(key).startswith(prefix))
    renamed = f'rename {", ".join(names)} to mail.*, and ' if names else ''
    raise ConfigurationError(
        f'pyramid_mailer.prefix = {prefix[:80]}: pyramid_sendmail reads mail.* alone: {renamed}'
        f'remove this setting'
    )


def _refuse(key: str, known: Collection[str]) -> None:
    if key in _NOT_YET:
        raise ConfigurationError(f'{key} is not supported yet: {_NOT_YET[key]}')
    if key in _NOT_OURS:
        raise ConfigurationError(f'{key} is a setting of pyramid_mailer: {_NOT_OURS[key]}')
    name = key.removeprefix('mail.')
    near = _meaning(name, known)
    question = f' Did you mean mail.{near}?' if near else ''
    raise ConfigurationError(
        f'unknown setting {key}.{question} If your application owns it, add mail.ignore = {name}'
    )


def _meaning(name: str, known: Collection[str]) -> str:
    """Return the known name that an unknown one most probably means, or '' if there is none.

    A synonym comes first: letters alone would take ``mail.queue`` for ``mail.queue_sync``.
    """
    plain = name.lower().replace('-', '_')
    names = [each.removeprefix('mail.') for each in known]
    if plain in names:
        return plain
    if plain in _MEANT:
        return _MEANT[plain]
    if near := nearest(plain, names, cutoff=_CLOSE):
        return near
    return _MEANT.get(nearest(plain, _MEANT, cutoff=0.85), '')
