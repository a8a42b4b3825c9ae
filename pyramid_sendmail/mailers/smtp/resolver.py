"""Resolve host names in a helper thread, so that a loop of many connections never waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ...threads import BackgroundThread, after_fork
from ..session import describe_error
from .address import Address
from .connect_race import AddressInfo

__all__ = ['IDLE_TIME', 'Deliver', 'Resolved', 'Resolver']

log = logging.getLogger(__name__)

IDLE_TIME = 60.0
"""Seconds without a name to resolve after which the helper thread ends."""

Resolved = Sequence[AddressInfo] | OSError
"""The addresses, for a ConnectRace, or why there are none."""

Deliver = Callable[[Resolved], object]


class Resolver:
    """Resolves the names of one loop, one after the other, in one daemon thread.

    The thread starts with the first name. Requests for an address that is being resolved, or waits
    for it, share one look-up. In a forked child nothing waits, and the next name starts a thread
    of the child's. ``idle``: seconds after which the thread ends.
    """

    def __init__(self, *, idle: float = IDLE_TIME) -> None:
        self._idle = idle
        self._closed = False
        self._is_fork_watched = False
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._has_thread = False
        # The first one is being resolved, if there is a thread.
        self._requests: dict[Address, list[Deliver]] = {}

    def resolve(self, address: Address, deliver: Deliver) -> None:
        """Have ``deliver`` called once with the addresses, or with an OSError. Never waits.

        ``deliver`` is called in the helper thread; before this returns if there is nothing to wait
        for: an IP address, a Unix socket, or the system cannot start a thread.
        """
        if address.resolves_at_once:
            deliver(_resolved(address))
            return
        if not self._is_fork_watched:
            # Before the lock is used: a thread that holds it does not exist in a child.
            after_fork(self._reset)
            self._is_fork_watched = True
        with self._changed:
            failure = None if self._has_thread else self._start()
            if failure is None:
                self._requests.setdefault(address, []).append(deliver)
                self._changed.notify_all()
        if failure is not None:
            deliver(failure)

    def close(self) -> None:
        """End the thread, when it has resolved the name in its hands."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _start(self) -> OSError | None:
        """Start the thread; return why it could not be started."""
        try:
            BackgroundThread(
                target=self._run, name='pyramid_sendmail resolver', daemon=True
            ).start()
        except RuntimeError as error:
            return OSError(f'the host name was not resolved: {error}')
        self._has_thread = True
        return None

    def _run(self) -> None:
        while (address := self._next()) is not None:
            resolved = _resolved(address)
            with self._changed:
                waiting = self._requests.pop(address)
            for deliver in waiting:
                _deliver(deliver, resolved, address)

    def _next(self) -> Address | None:
        """Return the next address to resolve, or None if the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._requests), self._idle)
            if self._closed:
                self._requests.clear()
            self._has_thread = bool(self._requests)
            return next(iter(self._requests), None)


def _resolved(address: Address) -> Resolved:
    try:
        return address.resolve()
    except OSError as error:
        return error
    except UnicodeError as error:
        return _as_os_error(error)
    except Exception as error:
        # An application may have replaced socket.getaddrinfo.
        log.exception('%s: resolving the host name failed; it is tried again', address.host)
        return _as_os_error(error)


def _as_os_error(error: Exception) -> OSError:
    failure = OSError(describe_error(error))
    failure.__cause__ = error
    return failure


def _deliver(deliver: Deliver, resolved: Resolved, address: Address) -> None:
    try:
        deliver(resolved)
    except Exception:
        log.exception('%s: the addresses could not be delivered, and are lost', address.host)
