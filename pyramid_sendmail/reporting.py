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
from typing import Any

from pyramid.interfaces import IRequestFactory
from pyramid.registry import Registry
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext
from zope.interface import implementedBy, implementer

from .envelope import Envelope, Fate
from .events import KINDS, event_of
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

    ``put_off(due)`` is called for each event that has to be reported again, whoever wants to know.
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
        self.put_off: Callable[[float], None] = lambda due: None
        self._threads = OwnThreads()
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[tuple[Any, Sequence[Fate]]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def wants(self, kind: str) -> bool:
        """Whether a subscriber is registered for that kind of event, with whatever predicate."""
        provided = implementedBy(KINDS[kind])
        return bool(self._registry.adapters.subscriptions([provided], None))

    def submit(self, claim: IMailClaim, fates: Sequence[Fate]) -> None:
        if self._threads.forked():
            self._reset()
        with self._changed:
            if len(self._waiting) >= self._backlog:
                claim.release()
                return
            self._waiting.append((claim, tuple(fates)))
            self._changed.notify_all()
        self._threads.start('pyramid_sendmail events', self._run, self.join)

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
            if self.notify(fate, claim.envelope) or fate.kind == 'deferred':
                told.append(fate)
            elif self._given_up(fate, claim.envelope):
                told.append(fate)
            else:
                failed.append(fate)
        told = [fate for fate in told if fate.kind != 'deferred']
        if told:
            claim.reported(told)
        if failed:
            delays = [self._policy.delay(fate.tries + 1, 0.0) or 0.0 for fate in failed]
            due = self._clock() + min(delays)
            claim.postpone(failed, due)
            self.put_off(due)

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
        """Report one fate now, in this thread; False if a subscriber raised."""
        if not self.wants(fate.kind):
            return True
        depth = _depth.set(envelope.depth + (fate.kind != 'sent'))
        try:
            with self._request() as request:
                event = event_of(fate, envelope, request)
                manager = request.tm
                request.environ['tm.active'] = True
                request.environ['tm.manager'] = manager
                transaction = manager.begin()
                try:
                    transaction.note(f'{type(event).__name__} {envelope.message_id}')
                    self._registry.notify(event)
                    self._end(request)
                    manager.commit()
                except BaseException:
                    self._end(request)
                    manager.abort()
                    raise
        except Exception:
            log.exception(
                '%s: a subscriber of the %s event %s raised; its transaction was aborted',
                envelope.message_id,
                fate.kind,
                fate.id,
            )
            return False
        finally:
            _depth.reset(depth)
        return True

    def _end(self, request: Request) -> None:
        """What pyramid_tm does before it commits: from here on nothing joins any more."""
        request.environ.pop('tm.active', None)
        request.environ.pop('tm.manager', None)

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
                if request.finished_callbacks:
                    request._process_finished_callbacks()
