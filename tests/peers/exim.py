"""Exim, which takes mail into its queue and never tries to deliver it."""

from __future__ import annotations

import re

from tests.peers.relay import ANN, PASSWORD, SIZE, Certificate, Held, Ports, Relay
from tests.peers.roots import HOST, Root

__all__ = ['Exim']

_EXIM = 47_201

_CONFIGURATION = """
primary_hostname = exim.example.org
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
pid_file_path = /run/exim.pid
local_interfaces = <; {interfaces}
tls_on_connect_ports = {ports.implicit}
tls_advertise_hosts = *
tls_certificate = /etc/exim4/key-and-chain.pem
queue_only
message_size_limit = {size}
smtputf8_advertise_hosts = *
# Two lines, for the line that shows that it greets stays open a while.
smtp_accept_max_per_host = ${{if eq{{$received_port}}{{{ports.crowded}}}{{1}}{{50}}}}
smtp_accept_max = 100
smtp_accept_max_per_connection = 300
acl_smtp_connect = check_connect
acl_smtp_rcpt = check_rcpt
host_lookup =
rfc1413_hosts =
trusted_users = root
keep_environment =
write_rejectlog = false

begin acl

check_connect:
    deny condition = ${{if eq{{$received_port}}{{{ports.closed}}}}}
        message = we know you too well
    accept

check_rcpt:
    deny recipients = nobody@example.org
        message = 5.1.1 no such user
    defer local_parts = later
        message = 4.2.0 greylisted, come again
    accept domains = example.org : xn--bcher-kva.example : b\xc3\xbccher.example
    deny message = 5.7.1 relay access denied

begin routers

all:
    driver = manualroute
    route_list = * {host}
    transport = smtp

begin transports

smtp:
    driver = smtp

begin authenticators

plain:
    driver = plaintext
    public_name = PLAIN
    server_prompts = :
    server_condition = ${{if and{{{{eq{{$auth2}}{{{name}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
    server_set_id = $auth2
    server_advertise_condition = \\
        ${{if and{{{{def:tls_in_cipher}}{{!eq{{$received_port}}{{{ports.login}}}}}}}}}

login:
    driver = plaintext
    public_name = LOGIN
    server_prompts = <| Username: | Password:
    server_condition = ${{if and{{{{eq{{$auth1}}{{{name}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
    server_set_id = $auth1
    server_advertise_condition = ${{if def:tls_in_cipher}}
"""

_LISTED = re.compile(r'^ *\S+ +\S+ (\S+) <(.*)>.*\n((?: {10}.*\n)*)', re.MULTILINE)
"""Age, size, id, sender; then a line for each recipient, with a D where it is done with."""


class Exim(Relay):
    """The light daemon."""

    name = 'exim'
    failed_login = 'authenticator failed'

    def __init__(self, certificate: Certificate) -> None:
        root = Root('exim', users={'Debian-exim': _EXIM})
        ports = Ports.free()
        super().__init__(root, ports, [('/usr/sbin/exim4', '-bdf')])
        names = ('plain', 'implicit', 'login', 'closed', 'crowded')
        root.write(
            'etc/exim4/exim4.conf',
            _CONFIGURATION.format(
                host=HOST,
                interfaces=' ; '.join(f'[{HOST}]:{getattr(ports, name)}' for name in names),
                ports=ports,
                size=SIZE,
                name=ANN,
                password=PASSWORD,
            ),
        )
        pem = root.path / 'etc/exim4/key-and-chain.pem'
        certificate.write(pem)
        pem.chmod(0o644)
        for folder in ('var/spool/exim4', 'var/log/exim4'):
            root.folder(folder, owner=_EXIM, group=_EXIM, mode=0o750)

        self.lacks = {'refusals by its program': 'it takes whatever it is given'}

    def held(self) -> list[Held]:
        listing = self.root.run('/usr/sbin/exim4', '-bp').decode()
        return [
            Held(id, sender, frozenset(recipients.split()))
            for id, sender, recipients in _LISTED.findall(listing)
        ]

    def content(self, mail: Held) -> bytes:
        text = self.root.run('/usr/sbin/exim4', '-Mvc', mail.id)
        return text.replace(b'\n', b'\r\n')

    def sendmail(self) -> tuple[str, ...]:
        return tuple(self.root.command('/usr/sbin/exim4'))
