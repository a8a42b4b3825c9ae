"""A local program that takes mail on its standard input, as sendmail does.

Its exit status is the answer for all recipients of a call (sysexits.h):

===========================  =========  =======================================================
status                       outcome    why
===========================  =========  =======================================================
0                            delivered  the program is responsible now
65 DATAERR                   failed     the mail or an address, which stay as they are; msmtp's
                                        word for a relay's 5xx
67 NOUSER, 68 NOHOST         failed     an address, which stays as it is
64 USAGE, 77 NOPERM,         deferred   the set-up, which can be mended, for every mail alike; 77
78 CONFIG                               is msmtp's word for a password that a relay refuses
69 UNAVAILABLE               deferred   it says so itself
75 TEMPFAIL                  ambiguous  not yet sent, and kept by the program or not: OpenSMTPD's
                                        keeps it where its daemon is stopped, Postfix's does not
76 PROTOCOL                  deferred   a relay that hung up, or greeted with 421, to msmtp
70 SOFTWARE                  deferred   OpenSMTPD's word for whatever a server refuses, 4xx or 5xx
66, 71 to 74                 deferred   a file or the system
any other                    deferred   nobody knows
a signal, or no end in time  ambiguous  if it has read all of the mail, else deferred
===========================  =========  =======================================================

Each recipient has a call of its own: programs have one status for all recipients of a call, and
some send to nobody where one of them is refused.

The program reads the mail from a file, which is whole before it starts: should we die, it does not
take half a mail for a mail. From its start on it may send: it is sealed then. How far it has read
is known when it has ended.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import IO

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailer, IMailSession
from .path_syntax import is_valid_path
from .session import BeforeFinalDot, ClosableSession, describe_error

__all__ = ['SendmailMailer', 'SendmailSession']

_FAILED = frozenset({65, 67, 68})

_TEMPORARY = 75

_READ_BYTES = 16_384

_SHOWN = 500
"""Bytes of the program's output, its last, that are kept."""

_LAST_READS = 16

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), ' ')


@implementer(IMailer)
class SendmailMailer:
    """Runs ``path -i -f SENDER -- RECIPIENT`` for each recipient of a mail, without a shell.

    ``-i``: a line with a dot alone is text. Lines end with LF, as programs have it here; the
    program makes CRLF of them when it sends. ``timeout``: seconds that the program may
    take. Raises ValueError for a path that is not absolute.
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
class SendmailSession(ClosableSession):
    """See SendmailMailer."""

    def __init__(self, path: str, *, name: str, timeout: float) -> None:
        super().__init__(name)
        self._path = path
        self._timeout = timeout

    def _send_one(
        self, envelope: Envelope, before_final_dot: BeforeFinalDot | None
    ) -> Iterator[Outcome]:
        verdicts = _rejected_before_sending(envelope)
        try:
            self._call(envelope, verdicts, before_final_dot)
        except QueueError as error:
            self._closed = True
            if verdicts:
                # Some recipients have their verdicts: these count, so yield before raising.
                rest = Verdict('deferred', None, str(error))
                yield {each: verdicts.get(each, rest) for each in envelope.recipients}
            raise
        except BaseException:
            self._closed = True
            raise
        yield {each: verdicts[each] for each in envelope.recipients}

    def _call(
        self,
        envelope: Envelope,
        verdicts: dict[str, Verdict],
        before_final_dot: BeforeFinalDot | None,
    ) -> None:
        """Run the program for each who has no verdict yet, and add theirs."""
        with self._written(envelope) as text:
            for recipient in envelope.recipients:
                if recipient in verdicts:
                    continue
                if self._closed:
                    # A program that hangs, or is gone, does so for the others too.
                    verdicts[recipient] = Verdict('deferred', None, f'{self.name}: see the others')
                    continue
                if before_final_dot is not None:
                    before_final_dot(envelope, (recipient,))
                text.seek(0)
                verdicts[recipient] = self._run(envelope.sender, recipient, text)

    def _written(self, envelope: Envelope) -> IO[bytes]:
        """A nameless file with the text."""
        with ExitStack() as stack:
            try:
                text = stack.enter_context(tempfile.TemporaryFile())
                text.write(envelope.raw.replace(b'\r\n', b'\n'))
                text.flush()
            except OSError as error:
                reason = f'{self.name}: its text cannot be written: {describe_error(error)}'
                raise MailerUnavailable(reason) from error
            stack.pop_all()
            return text

    def _run(self, sender: str, recipient: str, text: IO[bytes]) -> Verdict:
        arguments = ['-i', '-f', sender or '<>', '--', recipient]
        try:
            process = subprocess.Popen(
                [os.fsencode(self._path), *(argument.encode() for argument in arguments)],
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # A signal for us (Ctrl-C) is none for the mail on its way.
                start_new_session=True,
            )
        except OSError as error:
            self._closed = True
            return Verdict('deferred', None, f'{self.name}: {describe_error(error)}')
        try:
            status, said = _finish(process, self._timeout)
        finally:
            _end(process)
        # The program's file is ours, and so is its place in it.
        complete = text.tell() == os.fstat(text.fileno()).st_size
        return self._verdict(status, said, complete=complete)

    def _verdict(self, status: int | None, said: str, *, complete: bool) -> Verdict:
        if status == 0 and complete:
            return Verdict('delivered', Reply(250, f'taken by {self._path}'))
        if status is None:
            self._closed = True
            how = f'it did not end within {self._timeout:g} s'
        elif status < 0:
            how = f'it was ended by signal {-status} ({_signal_name(-status)})'
        elif status == 0:
            how = 'it ended before it had read the mail'
        else:
            how = f'it ended with status {status}'
        reason = f'{self.name}: {how}' + (f': {said}' if said else '')
        if complete and (status in (None, _TEMPORARY) or status < 0):
            return Verdict('ambiguous', None, reason)
        return Verdict('failed' if status in _FAILED else 'deferred', None, reason)


def _rejected_before_sending(envelope: Envelope) -> dict[str, Verdict]:
    """Verdicts for what no program should get to see; ``--`` protects from recipients only in
    programs that know it."""
    sender = envelope.sender
    if sender and (not is_valid_path(sender) or sender.startswith('-')):
        verdict = Verdict('failed', None, f'the sender {sender!r} cannot be given to a program')
        return dict.fromkeys(envelope.recipients, verdict)
    return {
        recipient: Verdict('failed', None, f'{recipient!r} cannot be given to a program')
        for recipient in envelope.recipients
        if not is_valid_path(recipient) or recipient.startswith('-')
    }


def _environment() -> dict[str, str]:
    """Ours, without our secrets."""
    secret = ('MAIL_URL', 'MAIL_PASSWORD')
    rest = {name: value for name, value in os.environ.items() if name not in secret}
    return {**rest, 'LC_ALL': 'C.UTF-8'}


def _finish(process: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, str]:
    """Wait until it ends; return its status, None if it does not, and the end of what it said."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    poll = select.poll()
    poll.register(output, select.POLLIN)
    deadline = time.monotonic() + timeout
    said, listening = b'', True
    ended = 0
    # What it has said at its end is heard, but not what a child of its own goes on saying.
    while ended < _LAST_READS and (listening or not ended):
        left = deadline - time.monotonic()
        if process.poll() is not None:
            ended += 1
        elif left <= 0:
            break
        elif not listening:
            with suppress(subprocess.TimeoutExpired):
                process.wait(left)
            continue
        # A child of its own may keep the pipe open when it has ended.
        if poll.poll(0 if ended else min(left, 0.1) * 1000):
            heard = os.read(output, _READ_BYTES)
            said = (said + heard)[-_SHOWN:]
            listening = bool(heard)
        elif ended:
            break
    text = said.decode('utf-8', 'replace').translate(_CONTROLS)
    return process.returncode, ' '.join(text.split())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it: neither a process nor a descriptor."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except PermissionError:
            # It has become another user, as a setuid Exim does: it ends when it likes, and is no
            # zombie then.
            threading.Thread(target=process.wait, daemon=True).start()
    if process.stdout is not None:
        process.stdout.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return 'unknown'
