"""Telling subscribers: each event, or a batch of them, in a request and a transaction of its own,
in a thread of ours.

There the thread-local transaction manager and scoped sessions are free, and whatever a subscriber
does can touch neither the mail nor the request that sent it.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, cast

from pyramid.registry import Registry
from pyramid.request import Request
from zope.interface import implementedBy, implementer

from ..envelope import Envelope, PendingEvent
from ..interfaces import IMailClaim, IMailEventDispatcher
from ..retry import EVENT_RETRY, RetryPolicy
from ..threads import BackgroundThreads, CooperativeLock
from .loop_guard import depth as _depth
from .request import EventRequests
from .types import KINDS, event_of

__all__ = ['EventDispatcher']

log = logging.getLogger(__name__)

TOGETHER, ENOUGH = 0.01, 64
"""Seconds that an event waits for others, at most, and how many are enough. Without it the events
thread would find one event at a time, and interrupt the senders for each."""

SPAN, REST = 0.01, 0.002
"""Seconds for which events are told while nobody sends, and those that are for sending, then."""

Report = tuple[PendingEvent, Envelope]
"""What is to be told, and the mail that it is about."""


@implementer(IMailEventDispatcher)
class EventDispatcher:
    """See IMailEventDispatcher. One thread, started by the first event, again after a fork.

    ``batch``: how many events that wait share a request and a transaction, at most. ``backlog``:
    how many claims may wait for the thread; beyond it they are released, and come back with a
    later look at the queue. Each keeps a file open: a quarter of those that this process may have
    open, a thousand at most.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        batch: int = 1,
        policy: RetryPolicy = EVENT_RETRY,
        clock: Callable[[], float] = time.time,
        backlog: int | None = None,
    ) -> None:
        self._registry = registry
        self._batch = batch
        self._enough = max(batch, ENOUGH)
        self._policy = policy
        self._clock = clock
        self._backlog = _room() if backlog is None else backlog
        self.failures = 0
        """How often subscribers have failed to take an event."""
        self.cooperative_lock = CooperativeLock()
        """Of the subscribers, and of whoever sends beside them."""
        self._requests = EventRequests(registry)
        self._threads = BackgroundThreads(self._reset, self.join)
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[tuple[Any, Sequence[PendingEvent]]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def wants(self, kind: str) -> bool:
        """Whether a subscriber is registered for that kind of event, with whatever predicate."""
        provided = cast(Any, implementedBy)(KINDS[kind])
        return bool(self._registry.adapters.subscriptions([provided], None))

    def dispatch(self, claim: IMailClaim, events: Sequence[PendingEvent]) -> None:
        with self._changed:
            taken = len(self._waiting) < self._backlog
            if taken:
                self._waiting.append((claim, tuple(events)))
                if len(self._waiting) in (1, self._enough):
                    self._changed.notify_all()
        if taken:
            self._threads.start('pyramid_sendmail events', self._run)
        else:
            claim.release()

    def join(self, timeout: float) -> bool:
        """Wait until nothing is left to report; False if ``timeout`` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _run(self) -> None:
        while True:
            self._await_events()
            with self.cooperative_lock.borrowed() as in_turn:
                end = time.perf_counter() + SPAN
                while taken := self._take():
                    self._tell(taken)
                    if time.perf_counter() >= end:
                        break
            if in_turn:
                # Who waits for the turn has to wake up to have it.
                time.sleep(REST)

    def _await_events(self) -> None:
        """Wait for a claim with events to report, and a moment for others."""
        with self._changed:
            alone = not self._waiting
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._waiting))
            # Those that have come meanwhile have waited already.
            if alone or len(self._waiting) < self._batch:
                self._changed.wait_for(lambda: len(self._waiting) >= self._enough, TOGETHER)

    def _take(self) -> list[tuple[Any, Sequence[PendingEvent]]]:
        """As many claims as make a batch; nothing where none waits."""
        taken: list[tuple[Any, Sequence[PendingEvent]]] = []
        with self._changed:
            room = self._batch
            while self._waiting and (not taken or len(self._waiting[0][1]) <= room):
                self._busy = True
                taken.append(self._waiting.popleft())
                room -= len(taken[-1][1])
        return taken

    def _tell(self, taken: Sequence[tuple[Any, Sequence[PendingEvent]]]) -> None:
        told = self._told(taken)
        for claim, events in taken:
            try:
                self._settle(claim, events, told)
            except Exception:
                log.exception('%s: an event could not be settled', claim.envelope.message_id)
                claim.release()

    def _settle(self, claim: Any, events: Sequence[PendingEvent], taken: Set[str]) -> None:
        told: list[PendingEvent] = []
        failed: list[PendingEvent] = []
        for fate in events:
            if fate.kind != 'deferred':
                given_up = fate.id not in taken and self._given_up(fate, claim.envelope)
                (told if fate.id in taken or given_up else failed).append(fate)
        if told:
            claim.acknowledge(told)
        if failed:
            self.failures += len(failed)
            delays = [self._policy.delay(fate.tries + 1, 0.0) or 0.0 for fate in failed]
            claim.retry_events(failed, self._clock() + min(delays))

    def _given_up(self, fate: PendingEvent, envelope: Envelope) -> bool:
        age = sum(self._policy.delay(n, 0.0) or 0.0 for n in range(1, fate.tries + 2))
        if age < self._policy.give_up_after:
            return False
        log.critical(
            '%s: the %s event %s for %s was given up: its subscribers failed %d times',
            envelope.message_id,
            fate.kind,
            fate.id,
            ', '.join(fate.recipients),
            fate.tries + 1,
        )
        return True

    def _told(self, claims: Iterable[tuple[Any, Sequence[PendingEvent]]]) -> set[str]:
        """Report all, and return the ids of those that subscribers have taken. Where not all of a
        batch could be told together, each is told by itself: one costs the others nothing."""
        told: set[str] = set()
        for batch in self._batches(claims):
            if len(batch) > 1 and self._report(batch):
                told.update(fate.id for fate, _ in batch)
            else:
                told.update(fate.id for fate, envelope in batch if self.notify(fate, envelope))
        return told

    def _batches(
        self, claims: Iterable[tuple[Any, Sequence[PendingEvent]]]
    ) -> Iterator[list[Report]]:
        """What is told together. An event that subscribers have not taken before is told by
        itself, and so is one that is told at most once: it cannot be told again."""
        batch: list[Report] = []
        for claim, events in claims:
            for fate in events:
                report = fate, claim.envelope
                if fate.kind == 'deferred' or fate.tries or not self.wants(fate.kind):
                    yield [report]
                    continue
                batch.append(report)
                if len(batch) == self._batch:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def notify(self, fate: PendingEvent, envelope: Envelope) -> bool:
        """Report one fate now, in this thread, which must be one of our own; False if a subscriber
        raised, or its transaction could not commit."""
        return not self.wants(fate.kind) or self._report([(fate, envelope)])

    def _report(self, reports: Sequence[Report]) -> bool:
        """Report fates in one request and one transaction: all of them, or none."""
        told = False
        # What hooks of the commit send is about all of them.
        before = _depth.set(max(_depth_of(*report) for report in reports))
        try:
            with self._requests.pushed() as request:
                self._notify(reports, request)
                told = True
        except BaseException:
            # A subscriber that calls sys.exit() is no reason to tell nobody else.
            fate, envelope = reports[0]
            log.exception(
                '%s: the %s event %s%s: %s',
                envelope.message_id,
                fate.kind,
                fate.id,
                f' and {len(reports) - 1} more' if len(reports) > 1 else '',
                _trouble(reports, told=told),
            )
        finally:
            _depth.reset(before)
        return told

    def _notify(self, reports: Sequence[Report], request: Request) -> None:
        manager = request.tm
        request.environ['tm.active'] = True
        request.environ['tm.manager'] = manager
        transaction = manager.begin()
        try:
            transaction.note(_note(reports))
            for fate, envelope in reports:
                depth = _depth.set(_depth_of(fate, envelope))
                self._registry.notify(event_of(fate, envelope, request))
                _depth.reset(depth)
                if len(reports) > 1 and manager.get() is not transaction:
                    raise RuntimeError('a subscriber has ended the transaction of several events')
            _deactivate(request)
            manager.commit()
        except BaseException:
            _deactivate(request)
            manager.abort()
            raise


def _depth_of(fate: PendingEvent, envelope: Envelope) -> int:
    return envelope.depth + (fate.kind != 'sent')


def _note(reports: Sequence[Report]) -> str:
    """What the transaction's description says."""
    fate, envelope = reports[0]
    if len(reports) > 1:
        return f'pyramid_sendmail {len(reports)} events, {envelope.message_id} and others'
    return f'pyramid_sendmail {KINDS[fate.kind].__name__} {envelope.message_id}'


def _trouble(reports: Sequence[Report], *, told: bool) -> str:
    """What the log says where something was raised."""
    if told:
        return 'a finished callback raised, after the commit'
    if len(reports) > 1:
        return 'a subscriber raised, the transaction was aborted; each is told by itself'
    return 'a subscriber raised, its transaction was aborted'


def _deactivate(request: Request) -> None:
    """What pyramid_tm does before it commits or aborts: from here on nothing joins any more."""
    request.environ.pop('tm.active', None)
    request.environ.pop('tm.manager', None)


def _room() -> int:
    """How many claims may wait, where nobody says it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000 if limit == resource.RLIM_INFINITY else max(min(limit // 4, 1_000), 1)
