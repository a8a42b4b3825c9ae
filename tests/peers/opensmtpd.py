"""OpenSMTPD, which takes mail into its queue and never tries to deliver it."""

from __future__ import annotations

from tests.peers.relay import ANN, PASSWORD, SIZE, Certificate, Held, Ports, Relay
from tests.peers.roots import HOST, Root

__all__ = ['OpenSMTPD']

_SMTPD, _QUEUE = 47_301, 47_302

_CONFIGURATION = """
pki own cert "/etc/smtpd/chain.pem"
pki own key "/etc/smtpd/key.pem"
table passwords file:/etc/smtpd/passwords
table unknown {{ "nobody@example.org" }}
table later {{ "later@example.org" }}
smtp max-message-size "{size}"
filter later phase rcpt-to match rcpt-to <later> reject "451 4.2.0 greylisted, come again"
table all {{ "127.0.0.0/8" }}
filter closed phase connect match src <all> disconnect "554 5.7.1 we know you too well"
listen on {host} port {ports.plain} tls pki own auth-optional <passwords> filter later \\
    hostname opensmtpd.example.org
listen on {host} port {ports.implicit} smtps pki own auth-optional <passwords> filter later \\
    hostname opensmtpd.example.org
listen on {host} port {ports.closed} filter closed hostname opensmtpd.example.org
listen on socket filter later
action hold relay host smtp://{host}:1
match from any for rcpt-to <unknown> reject
match from any for domain {{ "example.org", "xn--bcher-kva.example" }} action hold
"""


class OpenSMTPD(Relay):
    """All of its processes, its two senders pausing."""

    name = 'opensmtpd'
    # One more is refused with "452 4.5.3 Too many recipients: Too many messages sent", to MAIL.
    mails_a_session = 100
    failed_login = '535 '

    def __init__(self, certificate: Certificate) -> None:
        users = {'opensmtpd': _SMTPD, 'opensmtpq': _QUEUE, 'nobody': 65_534}
        root = Root('opensmtpd', users=users)
        ports = Ports.free()
        super().__init__(root, ports, [('/usr/sbin/smtpd', '-d', '-P', 'mta', '-P', 'mda')])
        root.write('etc/smtpd.conf', _CONFIGURATION.format(host=HOST, ports=ports, size=SIZE))
        root.write('etc/smtpd/passwords', f'{ANN} {self._hash(root)}')
        # It looks whether it is, and gives up where it is not.
        root.own('usr/sbin/smtpctl', group=_QUEUE, mode=0o2755)
        root.write('etc/mailname', 'opensmtpd.example.org')
        certificate.write(root.path / 'etc/smtpd/key.pem', chain=False)
        certificate.write(root.path / 'etc/smtpd/chain.pem', key=False)
        root.folder('var/spool/smtpd', mode=0o711)
        root.folder('var/lib/opensmtpd/empty')

    def start(self) -> None:
        super().start()
        broken = 'its version 6.8 cannot use its key with OpenSSL 3 (OpenSMTPD issue 1171)'
        self.lacks = {
            'PIPELINING': 'it does not offer it',
            'CHUNKING': 'it does not offer it',
            'SMTPUTF8': 'it does not offer it',
            'AUTH LOGIN alone': 'it always offers PLAIN as well',
            'limit of connections': 'it has none for a client',
        }
        if 'OpenSMTPD 6.8' in self.log:
            self.lacks |= {'TLS': broken, 'AUTH': broken}

    @staticmethod
    def _hash(root: Root) -> str:
        return root.run('/usr/libexec/opensmtpd/encrypt', PASSWORD).decode().strip()

    def held(self) -> list[Held]:
        mails: dict[str, Held] = {}
        for line in self.root.run('/usr/sbin/smtpctl', 'show', 'queue').decode().splitlines():
            # A line is a recipient: its id begins with that of the mail.
            recipient_id, _, _, _, sender, recipient, *_ = line.split('|')
            id = recipient_id[:8]
            others = mails[id].recipients if id in mails else frozenset()
            mails[id] = Held(id, '' if sender == '@' else sender, others | {recipient})
        return list(mails.values())

    def content(self, mail: Held) -> bytes:
        # What "smtpctl show message" shows, by a program that is not in this root directory.
        folder = self.root.path / 'var/spool/smtpd/queue' / mail.id[:2] / mail.id
        return (folder / 'message').read_bytes().replace(b'\n', b'\r\n')

    def sendmail(self) -> tuple[str, ...]:
        return tuple(self.root.command('/usr/sbin/sendmail'))
