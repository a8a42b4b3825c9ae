"""The event dispatcher: it runs subscribers in a thread of its own.

Each event, or a batch of events, has a request and a transaction of its own. In that thread the
thread-local transaction manager and scoped sessions are free, and a subscriber can touch neither
the mail nor the request that sent it.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn, cast

from pyramid.registry import Registry
from pyramid.request import Request
from zope.interface import implementedBy, implementer

from ..envelope import Envelope, PendingEvent
from ..interfaces import IMailClaim, IMailEventDispatcher
from ..retry import EVENT_RETRY, RetryPolicy
from ..threads import BackgroundThread, BackgroundThreads
from .failures import FailureLog, StallWatch
from .loop_guard import ENVIRON_KEY, current_depth, deepest, depth_after, event_id
from .request import EventRequests
from .types import KINDS, event_of

__all__ = ['EVENT_RETRY_DELAY', 'EventDispatcher']

log = logging.getLogger(__name__)

THREAD = 'pyramid_sendmail events'

GATHER_TIME = 0.01
"""Seconds for which events wait until they make a batch, at most. Without it the thread would find
few at a time: a drain of 2,000 mails, with batches of 50 and a commit each, has 0.55 times the
pace. An event that has a transaction of its own would gain nothing by it, and does not wait."""

IDLE_TIME = 60.0
"""Seconds without events after which the thread ends; the next event starts another one."""

MAX_BACKLOG = 1_000
"""Claims that may wait for the thread, at most."""

EVENT_RETRY_DELAY = 1.0
"""Seconds until an event that the full backlog rejected is tried again, by the sender that claimed
it."""


class Work(NamedTuple):
    """A claim and those of its events that are to be dispatched."""

    claim: IMailClaim
    events: Sequence[PendingEvent]


class Delivery(NamedTuple):
    """An event to deliver, and the envelope of its mail."""

    event: PendingEvent
    envelope: Envelope


@implementer(IMailEventDispatcher)
class EventDispatcher:
    """See IMailEventDispatcher. The first event starts the thread, and the first after a fork or
    after IDLE_TIME without events.

    ``batch``: how many events share a request and a transaction, at most. ``policy``: when an
    event whose subscriber failed is delivered again. ``clock``: epoch seconds. ``backlog``: how
    many claims may wait for the thread; beyond it they are released, and come back with a later
    scan of the queue. Each keeps a file open, so the default is a quarter of the files that this
    process may have open, and at most MAX_BACKLOG. ``base_url``: see EventRequests.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        batch: int = 1,
        policy: RetryPolicy = EVENT_RETRY,
        clock: Callable[[], float] = time.time,
        backlog: int | None = None,
        base_url: str = '',
    ) -> None:
        self._registry = registry
        self._batch = batch
        self._policy = policy
        self._clock = clock
        self._backlog = _default_backlog() if backlog is None else backlog
        self.failures = 0
        self._requests = EventRequests(registry, base_url)
        self._failures = FailureLog()
        self._watch = StallWatch(EventDispatcher._run_subscribers.__code__)
        self._threads = BackgroundThreads(self._reset, self.flush)
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def wants(self, kind: str) -> bool:
        provided = cast(Any, implementedBy)(KINDS[kind])
        return bool(self._registry.adapters.subscriptions([provided], None))

    def dispatch(self, claim: IMailClaim, events: Sequence[PendingEvent]) -> None:
        with self._changed:
            accepted = len(self._waiting) < self._backlog
            if accepted:
                self._waiting.append(Work(claim, tuple(events)))
                if len(self._waiting) in (1, self._batch):
                    self._changed.notify_all()
        if accepted:
            self._threads.start(THREAD, self._run)
        else:
            claim.release()

    def flush(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _run(self) -> None:
        stop = threading.Event()
        watch = partial(self._watch.run, threading.get_ident(), stop)
        BackgroundThread(target=watch, name=f'{THREAD} watch', daemon=True).start()
        try:
            while self._wait_for_events():
                self._handle(self._take())
        finally:
            stop.set()

    def _wait_for_events(self) -> bool:
        """Wait for a claim with events, and for at most GATHER_TIME for a batch. Return False after
        IDLE_TIME without one."""
        if not self._waiting:
            self._failures.flush()
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: bool(self._waiting), IDLE_TIME):
                # Within the lock: the next event must not count on this thread.
                self._threads.forget(THREAD)
                return False
            self._changed.wait_for(lambda: len(self._waiting) >= self._batch, GATHER_TIME)
        return True

    def _take(self) -> list[Work]:
        """Return as many claims as make a batch, and at least one."""
        taken: list[Work] = []
        with self._changed:
            room = self._batch
            while self._waiting and (not taken or len(self._waiting[0].events) <= room):
                self._busy = True
                taken.append(self._waiting.popleft())
                room -= len(taken[-1].events)
        return taken

    def _handle(self, work: Sequence[Work]) -> None:
        """Deliver the events of these claims, then acknowledge each claim's, or have them tried
        again."""
        handled = self._deliver(work)
        for claim, events in work:
            try:
                self._acknowledge(claim, events, handled)
            except Exception:
                log.exception(
                    '%s: the result of an event could not be written to the queue; it is '
                    'delivered again',
                    claim.envelope.message_id,
                )
                claim.release()

    def _acknowledge(
        self, claim: IMailClaim, events: Sequence[PendingEvent], handled: Set[str]
    ) -> None:
        done: list[PendingEvent] = []
        failed: list[PendingEvent] = []
        for event in events:
            if event.kind != 'deferred':
                finished = event.id in handled or self._is_given_up(event, claim.envelope)
                (done if finished else failed).append(event)
        if done:
            claim.acknowledge(done)
        if failed:
            self.failures += len(failed)
            claim.retry_events(failed, self._clock() + min(map(self._delay, failed)))

    def _delay(self, event: PendingEvent) -> float:
        """Return the seconds after which an event whose subscriber failed is tried again."""
        return self._policy.delay(event.tries + 1, 0.0) or 0.0

    def _is_last_try(self, event: PendingEvent) -> bool:
        age = sum(self._policy.delay(n, 0.0) or 0.0 for n in range(1, event.tries + 2))
        return age >= self._policy.give_up_after

    def _is_given_up(self, event: PendingEvent, envelope: Envelope) -> bool:
        if not self._is_last_try(event):
            return False
        log.critical(
            '%s: the %s event %s for %s was given up: its subscribers failed %d times',
            envelope.message_id,
            event.kind,
            event.id,
            ', '.join(event.recipients),
            event.tries + 1,
        )
        return True

    def _deliver(self, work: Iterable[Work]) -> set[str]:
        """Run the subscribers, and return the ids of the events that were handled.

        If a batch fails, each of its events is delivered alone: one failure costs no other event.
        """
        handled: set[str] = set()
        for batch in self._batches(work):
            if len(batch) > 1 and self._deliver_batch(batch):
                handled.update(event.id for event, _ in batch)
            else:
                handled.update(
                    event.id for event, envelope in batch if self.deliver(event, envelope)
                )
        return handled

    def _batches(self, work: Iterable[Work]) -> Iterator[list[Delivery]]:
        """Yield the events that share a transaction.

        An event whose subscriber has failed before is alone, and so is a deferred event, which is
        delivered at most once: it could not be delivered again.
        """
        batch: list[Delivery] = []
        for claim, events in work:
            for event in events:
                delivery = Delivery(event, claim.envelope)
                if event.kind == 'deferred' or event.tries or not self.wants(event.kind):
                    yield [delivery]
                    continue
                batch.append(delivery)
                if len(batch) == self._batch:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def deliver(self, event: PendingEvent, envelope: Envelope) -> bool:
        """Run the subscribers of one event now, in this thread, which must be one of our own.

        Returns False if a subscriber raised, or if its transaction could not commit.
        """
        return not self.wants(event.kind) or self._deliver_batch([Delivery(event, envelope)])

    def _deliver_batch(self, batch: Sequence[Delivery]) -> bool:
        """Deliver events in one request and one transaction: all of them, or none."""
        committed = False
        # Mail sent by a commit hook counts as caused by every event of the batch.
        depth = deepest(_depth_of(*delivery) for delivery in batch)
        before = current_depth.set(depth)
        try:
            with self._requests.event_request() as request:
                request.environ[ENVIRON_KEY] = depth
                self._run_subscribers(batch, request)
                committed = True
        except BaseException as error:  # noqa: BLE001 - sys.exit() must not end the thread
            what = self._failure(batch, committed=committed)
            self._failures.add(f'{batch[0].envelope.message_id}: {what}', error)
        finally:
            current_depth.reset(before)
        return committed

    def _run_subscribers(self, batch: Sequence[Delivery], request: Request) -> None:
        manager, pid = request.tm, os.getpid()
        request.environ['tm.active'] = True
        request.environ['tm.manager'] = manager
        transaction = manager.begin()
        try:
            transaction.note(_note(batch))
            for event, envelope in batch:
                depth = current_depth.set(_depth_of(event, envelope))
                self._watch.begin(f'{envelope.message_id}: {event.kind} event {event.id}')
                public = event._replace(id=event_id(event.id, envelope.depth))
                self._registry.notify(event_of(public, envelope, request))
                current_depth.reset(depth)
                if os.getpid() != pid:
                    raise RuntimeError('a subscriber has returned in a process that it forked')
                if len(batch) > 1 and manager.get() is not transaction:
                    raise RuntimeError('a subscriber has ended the transaction of several events')
            _deactivate(request)
            manager.commit()
        except BaseException as error:
            if os.getpid() != pid:
                _end_forked_child(error)
            _deactivate(request)
            manager.abort()
            raise
        finally:
            self._watch.end()

    def _failure(self, batch: Sequence[Delivery], *, committed: bool) -> str:
        """Return what the log says of a batch that failed: what happened, and what happens next."""
        event = batch[0].event
        others = f' and {len(batch) - 1} more' if len(batch) > 1 else ''
        if committed:
            what, then = 'a finished callback raised, after the commit', 'it is not called again'
        elif others:
            what = 'event handler or commit failed for a batch'
            then = 'all database changes of the batch were undone; each event is tried alone now'
        else:
            what, then = 'event handler or commit failed', 'its database changes were undone'
            if event.kind == 'deferred':
                then += '; a deferred event is not tried again'
            elif not self._is_last_try(event):
                then += f'; next try in {self._delay(event):g} s'
        return f'{what} ({event.kind} event {event.id}{others}); {then}'


def _end_forked_child(error: BaseException) -> NoReturn:
    """End a process that a subscriber has forked, as the end of its main thread would: the
    transaction and the events are those of the parent."""
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        log.error('a process that a subscriber has forked ends', exc_info=error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def _depth_of(event: PendingEvent, envelope: Envelope) -> int:
    return depth_after(event.kind, envelope.depth)


def _note(batch: Sequence[Delivery]) -> str:
    """Return the description of a batch's transaction."""
    event, envelope = batch[0]
    if len(batch) > 1:
        return f'pyramid_sendmail {len(batch)} events, {envelope.message_id} and others'
    return f'pyramid_sendmail {KINDS[event.kind].__name__} {envelope.message_id}'


def _deactivate(request: Request) -> None:
    """Do what pyramid_tm does before it commits or aborts: nothing joins from here on."""
    request.environ.pop('tm.active', None)
    request.environ.pop('tm.manager', None)


def _default_backlog() -> int:
    """Return a quarter of the files that this process may have open, at most MAX_BACKLOG."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_BACKLOG
    return max(min(limit // 4, MAX_BACKLOG), 1)
