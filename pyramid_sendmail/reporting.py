"""Telling subscribers: each event in a request and a transaction of its own, in our own thread.

There the thread-local transaction manager and scoped sessions are free, and whatever a subscriber
does can touch neither the mail nor the request that sent it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

from pyramid.interfaces import IRequestFactory
from pyramid.registry import Registry
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext
from zope.interface import implementedBy, implementer

from .envelope import Envelope, Fate
from .events import KINDS, MailEvent, event_of
from .interfaces import IMailClaim, IMailReporter
from .retry import EVENT_RETRY, RetryPolicy
from .threads import OwnThreads

__all__ = ['MailReporter', 'trouble_depth']

log = logging.getLogger(__name__)

_depth: ContextVar[int | None] = ContextVar('pyramid_sendmail_depth', default=None)


def trouble_depth() -> int:
    """How many reports of trouble led to the code that is running now: the depth of its mail."""
    return _depth.get() or 0


@implementer(IMailReporter)
class MailReporter:
    """See IMailReporter. One thread, started by the first event, again after a fork.

    ``backlog``: how many claims may wait for the thread; beyond it they are released, and come
    back with the next look at the queue.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        policy: RetryPolicy = EVENT_RETRY,
        clock: Callable[[], float] = time.time,
        backlog: int = 1000,
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._clock = clock
        self._backlog = backlog
        self._threads = OwnThreads(self._reset, self.join)
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[tuple[Any, Sequence[Fate]]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def wants(self, kind: str) -> bool:
        """Whether a subscriber is registered for that kind of event, with whatever predicate."""
        provided = cast(Any, implementedBy)(KINDS[kind])
        return bool(self._registry.adapters.subscriptions([provided], None))

    def submit(self, claim: IMailClaim, fates: Sequence[Fate]) -> None:
        with self._changed:
            taken = len(self._waiting) < self._backlog
            if taken:
                self._waiting.append((claim, tuple(fates)))
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
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                claim, fates = self._waiting.popleft()
                self._busy = True
            try:
                self._report(claim, fates)
            except Exception:
                log.exception('%s: an event could not be settled', claim.envelope.message_id)
                claim.release()

    def _report(self, claim: Any, fates: Sequence[Fate]) -> None:
        told: list[Fate] = []
        failed: list[Fate] = []
        for fate in fates:
            taken = self.notify(fate, claim.envelope)
            if fate.kind != 'deferred':
                given_up = not taken and self._given_up(fate, claim.envelope)
                (told if taken or given_up else failed).append(fate)
        if told:
            claim.reported(told)
        if failed:
            delays = [self._policy.delay(fate.tries + 1, 0.0) or 0.0 for fate in failed]
            claim.postpone(failed, self._clock() + min(delays))

    def _given_up(self, fate: Fate, envelope: Envelope) -> bool:
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

    def notify(self, fate: Fate, envelope: Envelope) -> bool:
        """Report one fate now, in this thread, which must be one of our own; False if a subscriber
        raised, or its transaction could not commit."""
        if not self.wants(fate.kind):
            return True
        told = False
        depth = _depth.set(envelope.depth + (fate.kind != 'sent'))
        try:
            with self._request() as request:
                self._tell(event_of(fate, envelope, request))
                told = True
        except BaseException:
            # A subscriber that calls sys.exit() is no reason to tell nobody else.
            log.exception(
                '%s: the %s event %s: %s',
                envelope.message_id,
                fate.kind,
                fate.id,
                'a finished callback raised, after the commit'
                if told
                else 'a subscriber raised, its transaction was aborted',
            )
        finally:
            _depth.reset(depth)
        return told

    def _tell(self, event: MailEvent) -> None:
        request = event.request
        manager = request.tm
        request.environ['tm.active'] = True
        request.environ['tm.manager'] = manager
        transaction = manager.begin()
        try:
            transaction.note(f'pyramid_sendmail {type(event).__name__} {event.message_id}')
            self._registry.notify(event)
            _deactivate(request)
            manager.commit()
        except BaseException:
            _deactivate(request)
            manager.abort()
            raise

    @contextmanager
    def _request(self) -> Iterator[Request]:
        factory = self._registry.queryUtility(IRequestFactory, default=Request)
        request = factory.blank('/')
        request.registry = self._registry
        with RequestContext(request):
            apply_request_extensions(request)
            try:
                yield request
            finally:
                request._process_finished_callbacks()


def _deactivate(request: Request) -> None:
    """What pyramid_tm does before it commits or aborts: from here on nothing joins any more."""
    request.environ.pop('tm.active', None)
    request.environ.pop('tm.manager', None)
