"""A local program that takes mail on its standard input, as sendmail does.

Its exit status is the answer for all recipients of a call (sysexits.h):

=================================  ===========  =============================================
status                             outcome      why
=================================  ===========  =============================================
0                                  delivered    the program is responsible now
65 DATAERR, 67 NOUSER, 68 NOHOST   failed       the mail or the address, which stay as they are
66, 69 to 75, 78                   deferred     a file, a service, the system, the set-up: they
                                                may be mended, and the mail is not to blame
64 USAGE, 77 NOPERM, 76 PROTOCOL   failed       the program will not take this call, or this user
any other, a signal                deferred     nobody knows
=================================  ===========  =============================================

The end of its input is what the final dot is to a relay: a program that is killed before it has
not had the mail; one that does not end behind it is ambiguous.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable
from ..interfaces import IMailer, IMailSession
from .path import is_path
from .session import Sealing
from .wire import BLOCK, describe

__all__ = ['SendmailMailer', 'SendmailSession']

_FAILED = frozenset({64, 65, 67, 68, 76, 77})

_RECIPIENTS = 100
"""Recipients a call: more might not fit into an argument vector."""

_SHOWN = 500
"""Octets of what the program says that are told."""

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), ' ')


@implementer(IMailer)
class SendmailMailer:
    """Runs ``path -i -f SENDER -- RECIPIENT...`` for each mail, without a shell.

    ``-i``: a line with a dot alone is text. Lines end with LF, as programs have it here; the
    program makes CRLF of them when it sends. ``timeout``: seconds that the program may take to
    read the mail, and again to end. Raises ValueError for a path that is not absolute.
    """

    def __init__(self, path: str = '/usr/sbin/sendmail', *, timeout: float = 600.0) -> None:
        if not os.path.isabs(path):
            raise ValueError(f'sendmail:{path} is not absolute')
        self._path = path
        self._timeout = timeout
        self.name = f'sendmail:{path}'

    def __repr__(self) -> str:
        return f'<SendmailMailer {self.name}>'

    def connect(self) -> SendmailSession:
        """See IMailer."""
        if not os.path.isfile(self._path):
            raise MailerUnavailable(
                f'{self.name}: there is no such program; write sendmail:/path/to/it in mail.url'
            )
        if not os.access(self._path, os.X_OK):
            raise MailerUnavailable(
                f'{self.name}: this user may not run it; write a program that it may in mail.url'
            )
        return SendmailSession(self._path, name=self.name, timeout=self._timeout)


@implementer(IMailSession)
class SendmailSession:
    """See SendmailMailer."""

    def __init__(self, path: str, *, name: str, timeout: float) -> None:
        self.name = name
        self._path = path
        self._timeout = timeout
        self._closed = False

    def send(
        self, envelopes: Iterable[Envelope], *, sealing: Sealing | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._closed:
                raise MailerUnavailable(f'{self.name}: the session is closed', stale=True)
            verdicts = _unfit(envelope)
            todo = [each for each in envelope.recipients if each not in verdicts]
            text = envelope.raw.replace(b'\r\n', b'\n')
            try:
                for start in range(0, len(todo), _RECIPIENTS):
                    recipients = tuple(todo[start : start + _RECIPIENTS])
                    verdict = self._run(envelope, recipients, text, sealing, first=start == 0)
                    verdicts.update(dict.fromkeys(recipients, verdict))
            except BaseException:
                self._closed = True
                raise
            yield {each: verdicts[each] for each in envelope.recipients}

    def close(self) -> None:
        """See IMailSession."""
        self._closed = True

    abandon = close

    def _run(
        self,
        envelope: Envelope,
        recipients: tuple[str, ...],
        text: bytes,
        sealing: Sealing | None,
        *,
        first: bool,
    ) -> Verdict:
        arguments = ['-i', '-f', envelope.sender or '<>', '--', *recipients]
        try:
            process = subprocess.Popen(
                [os.fsencode(self._path), *(argument.encode() for argument in arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'LC_ALL': 'C'},
                # A signal for us (Ctrl-C) is none for the mail on its way.
                start_new_session=True,
            )
        except OSError as error:
            reason = f'{self.name}: {describe(error, 0)}'
            if first:
                raise MailerUnavailable(reason) from error
            return Verdict('deferred', None, reason)
        try:
            return self._feed(process, envelope, recipients, text, sealing)
        finally:
            _end(process)

    def _feed(
        self,
        process: subprocess.Popen[bytes],
        envelope: Envelope,
        recipients: tuple[str, ...],
        text: bytes,
        sealing: Sealing | None,
    ) -> Verdict:
        pipes = _Pipes(process)
        complete = False
        try:
            pipes.write(text, self._timeout)
            if sealing is not None:
                sealing(envelope, recipients)
            complete = True
        except TimeoutError:
            reason = f'{self.name}: it did not take the mail within {self._timeout:g} s'
            return Verdict('deferred', None, reason)
        except BrokenPipeError:
            pass  # it may have a reason for not reading on: its status tells
        try:
            status = pipes.finish(self._timeout)
        except TimeoutError:
            reason = f'{self.name}: it did not end within {self._timeout:g} s'
            return Verdict('ambiguous' if complete else 'deferred', None, reason)
        return self._verdict(status, pipes.heard, complete=complete)

    def _verdict(self, status: int, heard: str, *, complete: bool) -> Verdict:
        if status == 0 and complete:
            return Verdict('delivered', Reply(250, f'taken by {self._path}'))
        if status < 0:
            how = f'it was ended by signal {-status} ({_signal_name(-status)})'
        elif status == 0:
            how = 'it ended before it had read the mail'
        else:
            how = f'it ended with status {status}'
        reason = f'{self.name}: {how}' + (f': {heard}' if heard else '')
        return Verdict('failed' if status in _FAILED else 'deferred', None, reason)


def _unfit(envelope: Envelope) -> dict[str, Verdict]:
    """Verdicts for what no program should get to see; ``--`` protects from recipients only in
    programs that know it."""
    sender = envelope.sender
    if sender and (not is_path(sender) or sender.startswith('-')):
        verdict = Verdict('failed', None, f'the sender {sender!r} cannot be given to a program')
        return dict.fromkeys(envelope.recipients, verdict)
    return {
        recipient: Verdict('failed', None, f'{recipient!r} cannot be given to a program')
        for recipient in envelope.recipients
        if not is_path(recipient) or recipient.startswith('-')
    }


class _Pipes:
    """What goes into a program and comes out of it, so that neither waits for the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        self._heard = b''
        self._listening = True
        self._poll = select.poll()
        for pipe, event in ((self._input, select.POLLOUT), (self._output, select.POLLIN)):
            os.set_blocking(pipe.fileno(), False)
            self._poll.register(pipe, event)

    @property
    def heard(self) -> str:
        """The end of what it said, on one line."""
        text = self._heard.decode('utf-8', 'replace').translate(_CONTROLS)
        return ' '.join(text.split())

    def write(self, text: bytes, timeout: float) -> None:
        """Give it the text. Raises TimeoutError, or BrokenPipeError where it stops reading."""
        deadline = time.monotonic() + timeout
        rest = memoryview(text)
        while rest:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            if self._output.fileno() in ready:
                self._listen()
            if self._input.fileno() in ready:
                rest = rest[os.write(self._input.fileno(), rest[:BLOCK]) :]

    def finish(self, timeout: float) -> int:
        """Say that this was all, and return its status. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        self._poll.unregister(self._input)
        self._input.close()
        while (status := self._process.poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._listening:
                # A child of its own may keep the pipe when it has ended.
                if self._poll.poll(min(left, 0.1) * 1000):
                    self._listen()
            else:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(left)
        # What it has said at its end, but not what a child of its own goes on saying.
        for _ in range(16):
            if self._listening and self._poll.poll(0):
                self._listen()
        return status

    def _listen(self) -> None:
        said = os.read(self._output.fileno(), BLOCK)
        self._heard = (self._heard + said)[-_SHOWN:]
        if not said:
            self._listening = False
            self._poll.unregister(self._output)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it: neither a process nor a descriptor."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return 'unknown'
