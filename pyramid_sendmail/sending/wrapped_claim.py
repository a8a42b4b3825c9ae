"""A claim inside another one: what both kinds pass on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..envelope import PendingEvent
from ..interfaces import IMailClaim

__all__ = ['WrappedClaim']


class WrappedClaim:
    """Passes on what the queue processor and direct delivery leave as it is. See IMailClaim."""

    __slots__ = ('_claim',)

    def __init__(self, claim: IMailClaim) -> None:
        self._claim = claim

    @property
    def attempt(self) -> int:
        return self._claim.attempt

    @property
    def since(self) -> float:
        return self._claim.since

    @property
    def ambiguous(self) -> tuple[str, ...]:
        return self._claim.ambiguous

    @property
    def pending_events(self) -> Sequence[PendingEvent]:
        return self._claim.pending_events

    def clear_ambiguous(self) -> None:
        self._claim.clear_ambiguous()

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        self._claim.acknowledge(events)
