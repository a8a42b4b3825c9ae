"""From the greeting to the first mail: EHLO, STARTTLS and AUTH (RFC 5321, 3.1; 3207; 4954).

``Opening.steps`` is a generator: it writes commands, and yields what it waits for. So the order of
the steps can be read from top to bottom, although nothing here waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from ....envelope import Reply
from ....exceptions import MailerUnavailable
from ..address import Address
from ..authentication import Identity, Proof, choose_mechanisms, obtain_proof
from ..options import Timeouts, TLSOptions
from .extensions import starttls_remedy
from .replies import reply_text

__all__ = ['Handshake', 'Opening', 'Wait']

_NO_EHLO = frozenset({500, 501, 502, 504})

_BAD_ARGUMENT = 501

_UNKNOWN_MECHANISM = frozenset({500, 502, 504})

# Some relays spelt it so before the RFC: AUTH=LOGIN.
_OLD_AUTH = re.compile('^AUTH=', re.IGNORECASE)

_MAX_OFFER_CHARACTERS = 200


class Wait(NamedTuple):
    """Wait ``timeout`` seconds for a reply. ``phase``, ``remedy``: for the error if none comes."""

    phase: str
    timeout: float
    remedy: str = ''


class Handshake(NamedTuple):
    """Do a TLS handshake within ``timeout`` seconds."""

    phase: str
    timeout: float


Lines = tuple[int, list[str]]
"""The code of a reply, and the text of each line."""

Steps = Generator[Wait | Handshake, Lines]


@dataclass(slots=True, kw_only=True)
class Opening:
    """What to say to a relay before the first mail.

    ``write``: takes each command. ``steps`` returns the keywords of EHLO, with their parameters,
    and raises MailerUnavailable, naming the phase and what to do.
    """

    name: str
    address: Address
    hostname: str
    tls: TLSOptions
    identity: Identity | None
    timeouts: Timeouts
    lmtp: bool
    no_tls_remedy: str
    write: Callable[[bytes], None]
    secure: bool = False
    """Whether the connection is encrypted: to be set after a Handshake."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What to mask in the relay's later replies."""

    def steps(self) -> Generator[Wait | Handshake, Lines, dict[str, str]]:
        """Yield what to wait for, and return the relay's extensions."""
        if self.tls.mode == 'implicit':
            yield Handshake('the TLS handshake', self.timeouts.greeting)
        remedy = self._no_greeting_remedy()
        greeting = _reply((yield Wait('the greeting', self.timeouts.greeting, remedy)))
        if greeting.code != 220:
            self._refused('the greeting', greeting)
        extensions = yield from self._hello()
        if self._wants_starttls(extensions):
            reply = yield from self._ask('STARTTLS')
            if reply.code // 100 != 2:
                self._refused('STARTTLS', reply)
            yield Handshake('STARTTLS', self.timeouts.command)
            # What came before TLS may be an attacker's (RFC 3207, 4.2).
            extensions = yield from self._hello()
        if self.identity is not None:
            yield from self._authenticate(self.identity, extensions)
        return extensions

    def unavailable(self, phase: str, detail: str, remedy: str = '') -> MailerUnavailable:
        """Return the error for a phase that failed."""
        text = f'{self.name}: {phase}: {detail}'
        return MailerUnavailable(f'{text}; {remedy}' if remedy else text)

    def _no_greeting_remedy(self) -> str:
        if self.address.port == 465 and self.tls.mode != 'implicit':
            return 'port 465 speaks TLS from the first byte: write smtps: in mail.url'
        return ''

    def _hello(self) -> Generator[Wait | Handshake, Lines, dict[str, str]]:
        """Send EHLO or LHLO, HELO to a relay older than EHLO, and return the extensions."""
        verb = 'LHLO' if self.lmtp else 'EHLO'
        self.write(f'{verb} {self.hostname}\r\n'.encode('ascii'))
        code, lines = yield Wait(verb, self.timeouts.command)
        if code in _NO_EHLO and not self.lmtp:
            reply = yield from self._ask('HELO', self.hostname)
            if reply.code // 100 != 2:
                self._refused('HELO', reply, self._hello_remedy(reply.code, ''))
            return {}
        if code // 100 != 2:
            remedy = self._hello_remedy(code, 'see mail.hostname')
            self._refused(verb, Reply(code, reply_text(lines)), remedy)
        extensions: dict[str, str] = {}
        for line in lines[1:]:
            keyword, _, parameters = _OLD_AUTH.sub('AUTH ', line).partition(' ')
            keyword = keyword.upper()
            extensions[keyword] = f'{extensions.get(keyword, "")} {parameters}'.strip()
        return extensions

    def _hello_remedy(self, code: int, other: str) -> str:
        """Return what to do about a refused greeting; ``other``: for a code of another kind."""
        if code not in _NO_EHLO:
            return other
        if code == _BAD_ARGUMENT:
            return f'it does not accept our name {self.hostname}: see mail.hostname'
        scheme = 'smtp' if self.lmtp else 'lmtp'
        return f'it may speak another protocol: {scheme}: in mail.url'

    def _wants_starttls(self, extensions: dict[str, str]) -> bool:
        offered = 'STARTTLS' in extensions
        mode = self.tls.mode
        if mode == 'starttls' or (mode == 'auto' and self.identity):
            if not offered:
                self._fail('STARTTLS', 'the relay does not offer it', self.no_tls_remedy)
            return True
        return mode == 'auto' and offered and not self.address.is_loopback

    def _authenticate(self, identity: Identity, extensions: dict[str, str]) -> Steps:
        """Authenticate. A refused password is not tried again: that could lock the account."""
        if not self.secure and self.tls.mode != 'none':
            raise AssertionError('a password over plain text')
        offered = extensions.get('AUTH')
        if offered is None:
            self._fail(
                'AUTH',
                'the relay does not offer it',
                f'leave out {identity.options}, or use its submission port (587, 465)',
            )
        mechanisms = choose_mechanisms(offered, identity.mechanisms)
        if not mechanisms:
            supported = ' or '.join(identity.mechanisms)
            offer = offered[:_MAX_OFFER_CHARACTERS] or 'no mechanism'
            self._fail('AUTH', f'the relay offers {offer}, and not {supported}')
        proof = obtain_proof(identity)
        if isinstance(proof, str):
            self._fail('AUTH', proof, f'see {identity.options}')
        reply = Reply(0, '')
        for mechanism in mechanisms:
            reply = yield from self._exchange(proof, mechanism)
            if reply.code not in _UNKNOWN_MECHANISM:
                break
        if reply.code // 100 != 2:
            remedy = f'see {identity.options}' if reply.code // 100 == 5 else ''
            remedy = starttls_remedy(reply, secure=self.secure) or remedy
            self._refused(f'AUTH {mechanism}', reply, remedy)
        self.secrets = proof.secrets

    def _exchange(self, proof: Proof, mechanism: str) -> Generator[Wait | Handshake, Lines, Reply]:
        """Run one AUTH exchange and return the relay's last reply, secrets masked.

        Nothing raises in this frame, whose variables hold secrets: error trackers store those.
        """
        exchange = proof.exchange(mechanism)
        line = next(exchange)
        while True:
            self.write(line.encode('ascii') + b'\r\n')
            reply = _reply((yield Wait('AUTH', self.timeouts.command)))
            try:
                line = exchange.send(reply)
            except StopIteration as end:
                last: Reply = end.value
                return Reply(last.code, proof.hide(last.text))

    def _ask(self, verb: str, argument: str = '') -> Generator[Wait | Handshake, Lines, Reply]:
        self.write(f'{verb} {argument}'.strip().encode('ascii') + b'\r\n')
        return _reply((yield Wait(verb, self.timeouts.command)))

    def _refused(self, phase: str, reply: Reply, remedy: str = '') -> NoReturn:
        self._fail(phase, f'the relay answered {reply}', remedy)

    def _fail(self, phase: str, detail: str, remedy: str = '') -> NoReturn:
        raise self.unavailable(phase, detail, remedy)


def _reply(lines: Lines) -> Reply:
    return Reply(lines[0], reply_text(lines[1]))
