"""Dovecot's LMTP server, which puts mail into mailboxes on disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers.roots import HOST, Root, free_ports

__all__ = ['Dovecot']

_DOVECOT, _DOVENULL, _MAIL = 47_401, 47_402, 47_403

_CONFIGURATION = """
protocols = lmtp
listen = {host}
log_path = /var/log/dovecot.log
ssl = no
hostname = dovecot.example.org
postmaster_address = postmaster@example.org
mail_fsync = never
mail_location = maildir:~/Maildir
mail_plugins = $mail_plugins quota
lmtp_save_to_detail_mailbox = no
plugin {{
    quota = maildir:User quota
}}
userdb {{
    driver = passwd-file
    args = /etc/dovecot/users
}}
passdb {{
    driver = passwd-file
    args = /etc/dovecot/users
}}
service lmtp {{
    inet_listener lmtp {{
        address = {host}
        port = {port}
    }}
    unix_listener lmtp {{
        mode = 0666
    }}
}}
"""


class Dovecot:
    """Has mailboxes for ``ann``, ``bob`` and ``full``, whose is full already."""

    users = ('ann', 'bob', 'full')

    def __init__(self) -> None:
        users = {'dovecot': _DOVECOT, 'dovenull': _DOVENULL, 'vmail': _MAIL, 'nobody': 65_534}
        self.root = root = Root('dovecot', users=users)
        (self.port,) = free_ports(1)
        root.write('etc/dovecot/dovecot.conf', _CONFIGURATION.format(host=HOST, port=self.port))
        quota = {'full': ' userdb_quota_rule=*:bytes=1'}
        root.write(
            'etc/dovecot/users',
            *(
                f'{user}@example.org::{_MAIL}:{_MAIL}::/var/mail/{user}::{quota.get(user, "")}'
                for user in self.users
            ),
        )
        for user in self.users:
            root.folder(f'var/mail/{user}', owner=_MAIL, group=_MAIL, mode=0o700)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.root.path / 'run/dovecot/lmtp'

    @property
    def log(self) -> str:
        return self.root.log

    def start(self) -> None:
        """Start it; it has greeted when this returns."""
        self._server = self.root.start('/usr/sbin/dovecot', '-F')
        self.root.greets(self._server, self.port)

    def remove(self) -> None:
        """Stop it and remove its root directory."""
        try:
            if self._server is not None:
                self.root.stop(self._server)
        finally:
            self.root.remove()

    def mailbox(self, user: str) -> list[bytes]:
        """Return the mail in a mailbox, its own headers in front, with CRLF line ends."""
        folder = self.root.path / f'var/mail/{user}/Maildir/new'
        return [file.read_bytes().replace(b'\n', b'\r\n') for file in sorted(folder.glob('*'))]
