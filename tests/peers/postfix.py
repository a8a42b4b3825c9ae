"""Postfix, with Dovecot asking for passwords. Whatever it accepts stays in its hold queue."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

from tests.peers.relay import ANN, PASSWORD, SIZE, Certificate, Held, Ports, Relay
from tests.peers.roots import HOST, Root

__all__ = ['Postfix']

_POSTFIX, _POSTDROP, _DOVECOT, _DOVENULL = 47_101, 47_102, 47_103, 47_104

_FOLDERS = 'active bounce corrupt defer deferred flush hold incoming private saved trace'

_MAIN = f"""
compatibility_level = 3.6
maillog_file = /var/log/postfix.log
maillog_file_prefixes = /var
inet_interfaces = {HOST}
inet_protocols = ipv4
myhostname = postfix.example.org
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
relay_domains = example.org, bücher.example
relay_recipient_maps = regexp:/etc/postfix/recipients
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access texthash:/etc/postfix/access
smtpd_sender_restrictions = check_client_access static:HOLD
smtpd_client_event_limit_exceptions =
# Not a second for each refusal behind the tenth.
smtpd_error_sleep_time = 0
message_size_limit = {SIZE}
smtputf8_enable = yes
smtpd_tls_security_level = may
smtpd_tls_chain_files = /etc/postfix/key-and-chain.pem
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
"""

_MASTER = """
{host}:{ports.plain} inet n - n - - smtpd
{host}:{ports.implicit} inet n - n - - smtpd
    -o smtpd_tls_wrappermode=yes
{host}:{ports.login} inet n - n - - smtpd
    -o smtpd_sasl_mechanism_filter=login
{host}:{ports.closed} inet n - n - - smtpd
    -o smtpd_delay_reject=no
    -o smtpd_client_restrictions=reject
{host}:{ports.crowded} inet n - n - - smtpd
    -o smtpd_client_connection_count_limit=1
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
smtp unix - - n - - smtp
relay unix - - n - - smtp
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_DOVECOT_CONF = """
protocols =
log_path = /var/log/dovecot.log
auth_mechanisms = plain login
# A wrong password costs seconds otherwise.
auth_failure_delay = 0
service anvil {
    unix_listener anvil-auth-penalty {
        mode = 0
    }
}
ssl = no
passdb {
    driver = passwd-file
    args = /etc/dovecot/users
}
service auth {
    unix_listener /var/spool/postfix/private/auth {
        mode = 0660
        user = postfix
        group = postfix
    }
}
"""


class Postfix(Relay):
    """The whole of it: master and its daemons."""

    name = 'postfix'
    failed_login = 'authentication failed:'

    def __init__(self, certificate: Certificate, *, directory: Path | None = None) -> None:
        users = {
            'postfix': _POSTFIX,
            'dovecot': _DOVECOT,
            'dovenull': _DOVENULL,
            'nobody': 65_534,
        }
        groups = {'postdrop': _POSTDROP}
        root = Root('postfix', users=users, groups=groups, directory=directory)
        ports = Ports.free()
        super().__init__(
            root, ports, [('/usr/sbin/dovecot', '-F'), ('/usr/lib/postfix/sbin/master', '-d')]
        )
        root.write('etc/postfix/main.cf', _MAIN)
        root.write('etc/postfix/master.cf', _MASTER.format(host=HOST, ports=ports))
        root.write('etc/postfix/recipients', '!/^nobody@/ known')
        root.write('etc/postfix/access', 'later@example.org 450 4.2.0 greylisted, come again')
        certificate.write(root.path / 'etc/postfix/key-and-chain.pem')
        root.write('etc/dovecot/dovecot.conf', _DOVECOT_CONF)
        root.write(
            'etc/dovecot/users', f'{ANN}:{{PLAIN.b64}}{b64encode(PASSWORD.encode()).decode()}'
        )
        root.folder('var/spool/postfix')
        root.folder('var/spool/postfix/pid')
        for folder in _FOLDERS.split():
            root.folder(f'var/spool/postfix/{folder}', owner=_POSTFIX, mode=0o700)
        drop = {'owner': _POSTFIX, 'group': _POSTDROP}
        root.folder('var/spool/postfix/maildrop', **drop, mode=0o730)
        root.folder('var/spool/postfix/public', **drop, mode=0o710)
        root.folder('var/lib/postfix', owner=_POSTFIX)

        self.lacks = {
            'limit of mails': 'a session may carry as many as it likes',
            'refusals by its program': 'it takes whatever it is given',
        }

    def held(self) -> list[Held]:
        entries = [
            json.loads(line) for line in self.root.run('/usr/sbin/postqueue', '-j').splitlines()
        ]
        return [
            Held(
                entry['queue_id'],
                '' if entry['sender'] == 'MAILER-DAEMON' else entry['sender'],
                frozenset(recipient['address'] for recipient in entry['recipients']),
            )
            for entry in entries
            # What its program has put there has neither its number nor its header fields yet.
            if entry['queue_name'] != 'maildrop'
        ]

    def content(self, mail: Held) -> bytes:
        text = self.root.run('/usr/sbin/postcat', '-q', '-bh', mail.id)
        return text.replace(b'\n', b'\r\n')

    def sendmail(self) -> tuple[str, ...]:
        return tuple(self.root.command('/usr/sbin/sendmail'))
