"""What a caller may choose: TLS, time-outs, and how to speak to the relay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

__all__ = [
    'DEFAULT_SESSION',
    'DEFAULT_TIMEOUTS',
    'DEFAULT_TLS',
    'SessionOptions',
    'SpelledOut',
    'TLSMode',
    'TLSOptions',
    'Timeouts',
]

TLSMode = Literal['auto', 'starttls', 'implicit', 'none']

_NOTIFY_WORDS = ('success', 'failure', 'delay')

_RET_WORDS = ('full', 'headers')


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """How a connection is encrypted. TLS always verifies the certificate chain and host name.

    ==============  ==========================================================================
    ``mode``        meaning
    ==============  ==========================================================================
    ``'implicit'``  TLS from the first byte
    ``'starttls'``  STARTTLS, or no mail
    ``'auto'``      STARTTLS, or no mail, if there are credentials; without credentials STARTTLS
                    where the relay offers it, and plain text on a loopback address
    ``'none'``      plain text; credentials only with ``insecure``
    ==============  ==========================================================================

    ``ca_file``: PEM file of the authorities to trust instead of the system's. ``client_cert``,
    ``client_key``: PEM files of our own certificate, and of its key if it is not in the same
    file. ``insecure``: credentials may be sent in plain text; a mailer logs a warning.

    Raises ValueError if ``insecure`` is given with a mode other than 'none'.
    """

    mode: TLSMode = 'auto'
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.insecure and self.mode != 'none':
            raise ValueError(f"insecure goes with tls='none', not with tls={self.mode!r}")

    @property
    def has_files(self) -> bool:
        return bool(self.ca_file or self.client_cert or self.client_key)


DEFAULT_TLS = TLSOptions()


class SpelledOut(TypedDict, total=False):
    """What a mailer that is built by hand may be given one by one, in place of ``TLSOptions`` and
    an identity: the names are those of ``TLSOptions`` and of ``make_identity``."""

    username: str | None
    password: str | None
    token: Callable[[], str] | None
    insecure: bool
    ca_file: str | None
    client_cert: str | None
    client_key: str | None


class Timeouts(NamedTuple):
    """How long to wait in each phase, in seconds (RFC 5321, 4.5.3.2).

    ``connect``: for each address of the host. ``greeting``: for the relay's first reply.
    ``block``: for each block of a message to leave, so that a slow connection may take as long as
    it needs while it moves. ``data``: for the reply to DATA. ``final``: for the reply to the final
    dot; to give up early makes duplicates (RFC 1047). ``quit``: for the reply to QUIT.
    ``command``: for every other reply.
    """

    connect: float = 30.0
    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0
    block: float = 180.0
    final: float = 600.0
    quit: float = 5.0

    def capped(self, seconds: float) -> Timeouts:
        """Return the same time-outs, none longer than ``seconds``."""
        return Timeouts(*(min(timeout, seconds) for timeout in self))


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How to speak to a relay. Raises ValueError naming the option.

    ``pipelining``: use PIPELINING where it is offered (RFC 2920). ``window``: how many mails may
    be in flight on a connection where PIPELINING and CHUNKING are offered (RFC 3030); with 1 only
    the next mail's commands leave early. ``max_recipients``: a mail to more recipients is sent in
    several mail transactions; every relay takes 100 (RFC 5321, 4.5.3.1.8).

    ``notify``: which reports the sender wants from relays that offer DSN: 'never', or any of
    'success', 'failure' and 'delay' (RFC 3461, 4.1). ``ret``: what these hold: 'full' or 'headers'
    (RFC 3461, 4.3).
    """

    pipelining: bool = True
    window: int = 1
    max_recipients: int = 100
    notify: tuple[str, ...] = ()
    ret: str = ''

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f'window={self.window}: write 1 or more')
        if self.max_recipients < 1:
            raise ValueError(f'max_recipients={self.max_recipients}: write 1 or more')
        if self.notify != ('never',) and (
            len(set(self.notify)) != len(self.notify) or not set(self.notify) <= set(_NOTIFY_WORDS)
        ):
            raise ValueError(
                f'notify={",".join(self.notify)}: write never, or some of '
                f'{", ".join(_NOTIFY_WORDS)} with commas between them'
            )
        if self.ret and self.ret not in _RET_WORDS:
            raise ValueError(f'ret={self.ret}: write {" or ".join(_RET_WORDS)}')


DEFAULT_SESSION = SessionOptions()
