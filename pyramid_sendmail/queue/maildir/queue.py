"""The queue on disk: a Maildir with the folders ``done`` and ``failed`` beside its own.

The folder is a mail's state, the name of its file the schedule, and every change of state one
atomic rename. A claim is a lock on the file itself, which the system releases if the process dies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf

from zope.interface import implementer

from ...envelope import Envelope
from ...exceptions import DamagedMail
from ...interfaces import IBrowsableQueue, IMonitoredQueue, INamingQueue
from ..browsing import MailDetails, MailInfo, MailState, QueueStats
from ..history import printable
from ..ticket import Ticket
from .browser import MaildirBrowser
from .claim import ClaimedFile, MaildirClaim
from .common_path import CommonClaim, CommonMail, is_due_and_untried, read_common
from .dead_letters import DeadLetters
from .filename import FOLDER_OF, NAME_LENGTH, FileName, file_name, parse, ticket_of
from .files import QueueFiles
from .format import STATE_AT, EnvelopeBlock
from .heartbeat import HeartbeatFile
from .large_text import LARGE_FILE, load
from .late_sync import LateSync
from .legacy import ADOPTED_SIZE, InUse, adopt, is_theirs
from .options import NewerFormat, Unreadable
from .probes import prove_locks, prove_writable, sweep
from .recovery import recover, set_aside
from .scan import ScanLimits, Scanner
from .staging import StagedMail
from .wakeup import WakeUp

__all__ = ['MaildirQueue']

log = logging.getLogger(__name__)

PROOF_INTERVAL = 30.0
"""Seconds for which a proof counts that outcomes can be recorded, as long as nothing fails. To
prove it takes 0.14 ms, a tenth of the time from a commit to the relay's reply."""

_DAMAGED_SIZE = 1024 * 1024
"""Bytes of a damaged or foreign file that its error event has, at most."""


@implementer(INamingQueue, IBrowsableQueue, IMonitoredQueue)
class MaildirQueue:
    """See IScannableQueue.

    ``path``: an absolute path. ``sync``: False leaves out every fsync. ``late_sync``: leave the
    sync of what was published to another thread: see LateSync. ``group``: see Permissions.
    ``in_doubt``: 'hold' or 'send' mail that is in doubt. ``hold_ambiguous``: sync the mark that a
    final dot is about to be sent. ``longest``: the longest delay of the retry policy in seconds;
    a retry later than that is due now, since a wrong clock must have written its time.
    """

    def __init__(
        self,
        path: str,
        *,
        sync: bool = True,
        late_sync: bool = False,
        group: bool = False,
        in_doubt: str = 'hold',
        hold_ambiguous: bool = False,
        longest: float = 3 * 24 * 3600.0,
        limits: ScanLimits = ScanLimits(),  # noqa: B008  # frozen
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._hold_ambiguous = hold_ambiguous
        self._longest = longest
        self._clock = clock
        self._files = QueueFiles(path, sync=sync, group=group, clock=clock)
        self._late_sync = None
        if sync and late_sync:
            self._late_sync = LateSync(self._files.sync_folder, path)
        self._wake_up = WakeUp(self._files)
        self._heartbeat = HeartbeatFile(self._files, clock)
        self._dead_letters = DeadLetters(self._files)
        self._scanner = Scanner(
            self._files,
            limits=limits,
            longest=longest,
            clock=clock,
            # Not a method: a queue that refers to itself keeps its folders open for longer.
            recover=partial(recover, self._files, send_in_doubt=in_doubt == 'send', clock=clock),
        )
        self._proved_at = -inf
        """When it was proved that outcomes can be recorded, by the monotonic clock."""
        self._browser = MaildirBrowser(self._files, self._wake_up, clock)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r})'

    def put(self, envelopes: Sequence[Envelope]) -> StagedMail:
        staged = StagedMail(self._files, self._wake_up, envelopes, self._late_sync)
        staged.write()
        return staged

    def scan(
        self,
        now: float,
        *,
        limit: int = 20_000,
        fresh: bool = False,
        all_events: bool = False,
        on_first_page: Callable[[list[Ticket]], None] | None = None,
    ) -> tuple[list[Ticket], float | None]:
        folders = self._files.folders
        try:
            try:
                if fresh:
                    folders.ready()
                else:
                    folders.check()
                return self._scanner.scan(
                    now,
                    limit=limit,
                    fresh=fresh,
                    all_events=all_events,
                    on_first_page=on_first_page,
                )
            except FileNotFoundError:
                # A folder was missing. It is there now, so the next scan is due at once.
                folders.prepare()
                return [], now
        except OSError as error:
            raise self._files.error('cannot be read', error) from error

    def next_page(self, limit: int) -> list[Ticket]:
        return self._scanner.next_page(limit)

    def claim(self, ticket: Ticket, *, settled: bool = False) -> MaildirClaim | None:
        try:
            self._files.folders.look()
            try:
                descriptor = self._files.open(FOLDER_OF[ticket.state], ticket.order)
            except ValueError as error:
                self._set_aside(ticket, str(error), b'')
                return None
            if descriptor is None:
                return None
            claim: MaildirClaim | None = None
            try:
                claim = self._claim(ticket, descriptor, settled)
            finally:
                # Adopting made a new file: close the old descriptor.
                if claim is None or not claim.has(descriptor):
                    self._files.close(descriptor)
            return claim
        except OSError as error:
            raise self._files.error('cannot be claimed from', error) from error

    def _claim(self, ticket: Ticket, descriptor: int, settled: bool) -> MaildirClaim | None:
        now = self._clock()
        folder, name = FOLDER_OF[ticket.state], ticket.order
        try:
            data = self._read(ticket, descriptor)
            if folder == 'new' and not settled and is_due_and_untried(name, now):
                mail = read_common(data)
                if mail is not None:
                    return self._claim_common(name, descriptor, mail, now)
            block, text = load(self._files, descriptor, data)
        except NewerFormat as error:
            self._leave(ticket, str(error))
            return None
        except Unreadable as error:
            # The head decides: a foreign file may be of any size.
            reason, size = str(error), self._files.size(descriptor)
            if is_theirs(data) and size > ADOPTED_SIZE:
                reason = f'its {size} bytes are more than those of an old mail that is sent'
            elif is_theirs(data):
                try:
                    adopted = adopt(self._files, ticket, self._files.read(descriptor), now)
                except InUse as used:
                    if self._files.first_time(name):
                        log.warning('%s stays in %s/ for now: %s', printable(name), folder, used)
                    return None
                if adopted is not None:
                    return self.claim(adopted, settled=settled)
            self._set_aside(ticket, reason, self._files.read(descriptor, _DAMAGED_SIZE))
            return None
        schedule, renamed = parse(name), len(name) != NAME_LENGTH
        if schedule is None:
            schedule, renamed = _name_for(block), True
        attempt = schedule.attempt
        if block.entries:
            attempt = max(attempt, *(entry.attempt for entry in block.entries))
        if folder == 'new' and schedule.attempt:
            # The queue never puts a tried mail into new/: a person has moved it from failed/.
            if settled:
                return None
            block.start_over(now)
            self._files.write(descriptor, block.mutable_part(), STATE_AT)
            schedule, attempt, renamed = schedule._replace(attempt=0), 0, True
        self._correct_times(block, now)
        claim = MaildirClaim(
            self._files,
            ClaimedFile(descriptor, folder, name, block, text),
            attempt=attempt,
            now=now,
            sync_ambiguous=self._hold_ambiguous,
        )
        if settled and claim.todo:
            return None
        if renamed:
            claim.rename(folder, schedule.text)
        if not attempt and schedule.due > now and block.envelope.not_before > now:
            # Its foreign name did not say that it is for later.
            return None
        if claim.todo:
            claim.begin()
        return claim

    def _claim_common(
        self, name: str, descriptor: int, mail: CommonMail, now: float
    ) -> CommonClaim:
        claim = CommonClaim(
            self._files,
            descriptor,
            name,
            mail,
            now=now,
            sync_ambiguous=self._hold_ambiguous,
        )
        claim.begin()
        return claim

    def _read(self, ticket: Ticket, descriptor: int) -> bytes:
        began = time.perf_counter()
        data = self._files.read(descriptor, LARGE_FILE)
        self._scanner.read_ahead.file_read(ticket, time.perf_counter() - began)
        return data

    def _correct_times(self, block: EnvelopeBlock, now: float) -> None:
        """Correct times that a wrong clock has written: the age of a mail is not negative, and no
        retry is later than the retry policy allows."""
        block.since = min(block.since, now)
        if block.retry_at > now + self._longest + 1:
            block.retry_at = now

    def _leave(self, ticket: Ticket, reason: str) -> None:
        """Leave a mail of a newer release where it is; no scan of this process finds it again."""
        if self._scanner.leave(ticket.order):
            log.warning(
                '%s stays in the queue for a process of a newer release, which has written it: %s',
                printable(ticket.order),
                reason,
            )

    def _set_aside(self, ticket: Ticket, reason: str, raw: bytes) -> None:
        name = set_aside(self._files, FOLDER_OF[ticket.state], ticket.order, reason)
        if name is not None:
            raise DamagedMail(name, reason, raw)

    def check_writable(self) -> None:
        now = time.monotonic()
        if self._files.has_failed or now - self._proved_at >= PROOF_INTERVAL:
            prove_writable(self._files)
            self._proved_at, self._files.has_failed = now, False

    def prepare(self) -> None:
        try:
            self._files.folders.prepare()
        except OSError as error:
            raise self._files.error('cannot be created', error) from error
        sweep(self._files)
        prove_writable(self._files)
        prove_locks(self._files)
        try:
            self._wake_up.listen()
        except OSError as error:
            raise self._files.error('cannot be waited for', error) from error

    def sync(self) -> None:
        for folder in ('new', 'cur'):
            self._files.sync_folder(folder)

    def purge_failed(self, before: float, *, limit: int = 1_000) -> int:
        try:
            return self._dead_letters.purge(before, limit)
        except OSError as error:
            raise self._files.error('cannot remove old dead letters', error) from error

    def wait(self, timeout: float) -> bool:
        return self._wake_up.wait(timeout)

    def take_new(self) -> list[Ticket] | None:
        names = self._wake_up.take_names()
        now = self._clock()
        if names is None or not all(is_due_and_untried(name, now) for name in names):
            return None
        return [ticket_of('new', name) for name in names]

    def wake(self) -> None:
        self._wake_up.wake()

    def close(self) -> None:
        self._wake_up.close()
        self._files.folders.close()

    def renew_heartbeat(self, since: float) -> None:
        self._heartbeat.renew(since)

    def last_heartbeat(self) -> float | None:
        return self._heartbeat.last()

    def count_waiting(self, limit: int | None = None) -> tuple[int, float | None] | None:
        return self._browser.count_waiting(limit)

    def mails(self, state: MailState | None = None) -> Iterator[MailInfo]:
        return self._browser.mails(state)

    def get(self, id: str) -> MailDetails | None:
        return self._browser.get(id)

    def retry(self, mail: MailInfo) -> bool:
        return self._browser.retry(mail)

    def hold(self, mail: MailInfo, reason: str = '') -> bool:
        return self._browser.hold(mail, reason)

    def release(self, mail: MailInfo) -> bool:
        return self._browser.release(mail)

    def drop(self, mail: MailInfo) -> bool:
        return self._browser.drop(mail)

    def stats(self) -> QueueStats:
        return self._browser.stats()


def _name_for(block: EnvelopeBlock) -> FileName:
    """Return the name for a mail of ours that was found under a foreign name; the attempts are
    those of its replies."""
    attempt = max((entry.attempt for entry in block.entries), default=0)
    due = block.retry_at if attempt else block.envelope.due
    return file_name(block.envelope, due=due, attempt=attempt)
