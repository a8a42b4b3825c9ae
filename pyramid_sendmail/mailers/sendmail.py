"""A local program that takes mail on its standard input, as sendmail does.

Its exit status is the answer for all recipients of a call (sysexits.h):

===========================  =========  =======================================================
status                       outcome    why
===========================  =========  =======================================================
0                            delivered  the program is responsible now
65 DATAERR                   failed     the mail or an address, which stay as they are; msmtp's
                                        word for a relay's 5xx
67 NOUSER, 68 NOHOST         failed     an address, which stays as it is
64 USAGE, 77 NOPERM,         deferred   the configuration, for every mail alike; msmtp uses 77 for
78 CONFIG                               a password that a relay refuses
69 UNAVAILABLE               deferred   temporary by definition
75 TEMPFAIL                  ambiguous  not sent yet; the program may have kept the mail (OpenSMTPD
                                        does while its daemon is stopped, Postfix does not)
76 PROTOCOL                  deferred   msmtp: the relay hung up, or greeted with 421
70 SOFTWARE                  deferred   OpenSMTPD: any refusal of a server, 4xx or 5xx
66, 71 to 74                 deferred   a file or the system
any other                    deferred   unknown
a signal, or no end in time  ambiguous  if the program has read all of the mail, else deferred
===========================  =========  =======================================================

The program is run once for each recipient: it has one status for all recipients of a call, and some
programs send to none of them if one is refused.

The program reads the mail from a file that is complete before it starts, so that it never reads
half a mail if this process stops. From its start on it may send, so ``before_final_dot`` is called
before. How far it has read is known when it has ended.
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

_MAX_OUTPUT_BYTES = 500
"""Bytes of the program's output, its last, that are kept."""

_MAX_LAST_READS = 16

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), ' ')


@implementer(IMailer)
class SendmailMailer:
    """Runs ``path -i -f SENDER -- RECIPIENT`` for each recipient of a mail, without a shell.

    ``-i``: a line with a dot alone is text. Lines end with LF, as local programs expect; the
    program turns them into CRLF when it sends. ``timeout``: seconds that the program may run.
    Raises ValueError for a path that is not absolute.
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
        """Run the program for each recipient without a verdict, and add the verdicts."""
        with self._written(envelope) as text:
            for recipient in envelope.recipients:
                if recipient in verdicts:
                    continue
                if self._closed:
                    # A program that hangs or is missing does so for the other recipients too.
                    verdicts[recipient] = Verdict('deferred', None, f'{self.name}: see the others')
                    continue
                if before_final_dot is not None:
                    before_final_dot(envelope, (recipient,))
                text.seek(0)
                verdicts[recipient] = self._run(envelope.sender, recipient, text)

    def _written(self, envelope: Envelope) -> IO[bytes]:
        """Return an unnamed file with the text."""
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
                # A signal for this process (Ctrl-C) must not end the program.
                start_new_session=True,
            )
        except OSError as error:
            self._closed = True
            return Verdict('deferred', None, f'{self.name}: {describe_error(error)}')
        try:
            status, output = _finish(process, self._timeout)
        finally:
            _end(process)
        # The program shares the file's position.
        complete = text.tell() == os.fstat(text.fileno()).st_size
        return self._verdict(status, output, complete=complete)

    def _verdict(self, status: int | None, output: str, *, complete: bool) -> Verdict:
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
        reason = f'{self.name}: {how}' + (f': {output}' if output else '')
        if complete and (status in (None, _TEMPORARY) or status < 0):
            return Verdict('ambiguous', None, reason)
        return Verdict('failed' if status in _FAILED else 'deferred', None, reason)


def _rejected_before_sending(envelope: Envelope) -> dict[str, Verdict]:
    """Return verdicts for addresses that no program should see: not every program knows ``--``."""
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
    """Return this process's environment without the settings that hold secrets."""
    secret = ('MAIL_URL', 'MAIL_PASSWORD')
    rest = {name: value for name, value in os.environ.items() if name not in secret}
    return {**rest, 'LC_ALL': 'C.UTF-8'}


def _finish(process: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, str]:
    """Wait for the end; return the status, None after the time-out, and the end of the output."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    deadline = time.monotonic() + timeout
    output, is_open = b'', True
    ended = 0
    # Read what the program wrote at its end, but not what a child of it goes on writing.
    while ended < _MAX_LAST_READS and (is_open or not ended):
        left = deadline - time.monotonic()
        if process.poll() is not None:
            ended += 1
        elif left <= 0:
            break
        elif not is_open:
            with suppress(subprocess.TimeoutExpired):
                process.wait(left)
            continue
        # A child of the program may keep the pipe open after the program has ended.
        if poll.poll(0 if ended else min(left, 0.1) * 1000):
            data = os.read(pipe, _READ_BYTES)
            output = (output + data)[-_MAX_OUTPUT_BYTES:]
            is_open = bool(data)
        elif ended:
            break
    text = output.decode('utf-8', 'replace').translate(_CONTROLS)
    return process.returncode, ' '.join(text.split())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program if it runs, and close its output."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except PermissionError:
            # It runs as another user, as a setuid Exim does: reap it whenever it ends.
            threading.Thread(target=process.wait, daemon=True).start()
    if process.stdout is not None:
        process.stdout.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return 'unknown'
