"""Call functions for access tokens in helper threads, so that a loop of many connections never
waits for one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from ...threads import BackgroundThread
from .authentication import Bearer, Proof, describe_no_token, obtain_proof

__all__ = ['MAX_HUNG_CALLS', 'Deliver', 'TokenFetcher']

MAX_HUNG_CALLS = 8
"""Calls of one function that have been given up and have not returned, from which number on it is
not called again: each holds a thread."""

Deliver = Callable[[Proof | str], object]
"""Takes the token, or in words why there is none."""


class TokenFetcher:
    """Fetches the access tokens of one loop, and keeps none. Thread-safe.

    A function runs in one thread at a time, and requests that come meanwhile share the call: the
    token is valid when it returns. A call that takes too long is given up, and the next request
    makes another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By id: two mailers may have equal functions, and a function need not be hashable.
        self._waiting: dict[int, list[Deliver]] = {}
        """Who waits for the running call of each function."""
        self._hung: Counter[int] = Counter()

    def fetch(self, bearer: Bearer, deliver: Deliver) -> None:
        """Have ``deliver`` called once with a token, or with the reason why there is none. Never
        waits.

        ``deliver`` is called in a helper thread; before this returns if none can be started.
        """
        with self._lock:
            waiting = self._waiting.get(id(bearer))
            if waiting is not None:
                waiting.append(deliver)
                return
            problem = self._start(bearer, [deliver])
        if problem:
            deliver(problem)

    def give_up(self, bearer: Bearer) -> None:
        """Have the next request call the function again: the running call has taken too long. It
        still delivers what it returns."""
        with self._lock:
            if self._waiting.pop(id(bearer), None) is not None:
                self._hung[id(bearer)] += 1

    def _start(self, bearer: Bearer, waiting: list[Deliver]) -> str:
        """Start the thread of a call; return why it could not be started."""
        if self._hung[id(bearer)] >= MAX_HUNG_CALLS:
            return f'there is no token: {MAX_HUNG_CALLS} calls of the function have not returned'
        thread = BackgroundThread(
            target=self._call, args=(bearer, waiting), name='pyramid_sendmail token', daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            return describe_no_token(error)
        self._waiting[id(bearer)] = waiting
        return ''

    def _call(self, bearer: Bearer, waiting: list[Deliver]) -> None:
        fetched: Proof | str
        try:
            fetched = obtain_proof(bearer)
        except BaseException as error:  # noqa: BLE001 - SystemExit, say
            fetched = describe_no_token(error)
        with self._lock:
            if self._waiting.get(id(bearer)) is waiting:
                del self._waiting[id(bearer)]
            else:
                self._hung[id(bearer)] -= 1
        for deliver in waiting:
            deliver(fetched)
