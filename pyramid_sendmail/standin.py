"""What stands in for a part of an application's mail until somebody uses it.

``config.include`` registers the queue, the mailer and what reports events, but a process that
never sends uses none of them, and one that queues its mail never connects to a relay. The modules
behind these parts are most of what a start would cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ['real', 'stand_in']

Part = TypeVar('Part')


def stand_in(make: Callable[[], Part]) -> Part:
    """Return what is as good as a part, which ``make`` returns when it is first used for anything.

    ``make`` must not raise for what a person has written: ``config.include`` has to find that.
    Threads that come first at the same time may each make one; all of them use the same.
    """
    return cast(Part, _StandIn(make))


def real(part: Part) -> Part:
    """The part that something stands in for; anything else as it is."""
    known: Any = part
    return cast(Part, known._part()) if type(known) is _StandIn else part


class _StandIn:
    __slots__ = ('__made', '__make', '__weakref__')

    __component_name__ = ''
    """``registerUtility`` asks for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        object.__setattr__(self, '_StandIn__make', make)
        object.__setattr__(self, '_StandIn__made', {})

    def _part(self) -> Any:
        made: dict[str, Any] = self.__made
        # No lock, which a fork could leave held for ever: setdefault() is atomic.
        return made['part'] if made else made.setdefault('part', self.__make())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy is one of the part."""
        return real(self).__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        return getattr(real(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(real(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(real(self), name)

    def __repr__(self) -> str:
        return repr(real(self))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """For isinstance()."""
        return type(real(self))
