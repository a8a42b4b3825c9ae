"""django-post_office and django-mailer, on a SQLite database as Django makes it:
``django_queue fill|send post_office|mailer FOLDER KIND COUNT PORT``.

``fill`` queues so many mails in one transaction; ``send`` is the management command that the
application's documentation has cron run, with its settings as they come (post_office: 100 mails a
batch, 5 threads).
"""

from __future__ import annotations

import sys

import django
from django.conf import settings
from django.core.management import call_command

from tests.benchmarks.work import RECIPIENT, SENDER, mail_of


def main(verb: str, application: str, folder: str, kind: str, count: str, port: str) -> None:
    """Fill it, or send what is there."""
    _configure(application, folder, int(port))
    if verb == 'fill':
        call_command('migrate', verbosity=0)
        _fill(application, kind, int(count))
    elif application == 'post_office':
        call_command('send_queued_mail', lockfile=f'{folder}/lock')
    else:
        call_command('send_mail')


def _configure(application: str, folder: str, port: int) -> None:
    smtp = 'django.core.mail.backends.smtp.EmailBackend'
    settings.configure(
        SECRET_KEY='a secret of the benchmarks',
        INSTALLED_APPS=['django.contrib.contenttypes', application],
        DATABASES={
            'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': f'{folder}/database'}
        },
        DEFAULT_AUTO_FIELD='django.db.models.AutoField',
        USE_TZ=True,
        EMAIL_BACKEND='post_office.EmailBackend' if application == 'post_office' else smtp,
        EMAIL_HOST='127.0.0.1',
        EMAIL_PORT=port,
        MEDIA_ROOT=folder,
        MAILER_EMAIL_BACKEND=smtp,
        MAILER_LOCK_PATH=f'{folder}/lock',
        POST_OFFICE={'BACKENDS': {'default': smtp}},
        TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates'}],
    )
    django.setup()


def _fill(application: str, kind: str, count: int) -> None:
    from django.db import transaction

    mail = mail_of(kind)
    with transaction.atomic():
        for _ in range(count):
            if application == 'post_office':
                from post_office import mail as post_office

                post_office.send(
                    RECIPIENT,
                    SENDER,
                    subject=mail.subject,
                    message=mail.text,
                    html_message=mail.html or '',
                )
            else:
                from mailer import send_mail

                send_mail(mail.subject, mail.text, SENDER, [RECIPIENT])


if __name__ == '__main__':
    main(*sys.argv[1:])
