"""What stands in for a part that nobody has used yet."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref
from pathlib import Path

from zope.interface.verify import verifyObject

from pyramid_sendmail.interfaces import IMailQueue
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.standin import real, stand_in


class Part:
    """Is told from others by its number."""

    made = 0

    def __init__(self) -> None:
        Part.made += 1
        self.number = Part.made

    def __repr__(self) -> str:
        return f'<Part {self.number}>'


def test_a_part_is_made_when_it_is_used_and_once() -> None:
    """Not before, whatever holds it; from then on it is the same."""
    Part.made = 0
    part = stand_in(Part)
    assert [part] == [part]
    assert Part.made == 0
    assert part.number == 1
    assert part.number == 1
    assert real(part) is real(part)
    assert Part.made == 1


def test_it_is_as_good_as_the_part() -> None:
    """For isinstance, repr, zope.interface, and for tests that replace an attribute."""
    part = stand_in(Part)
    assert isinstance(part, Part)
    assert repr(part) == repr(real(part))
    part.number = 7
    assert real(part).number == 7
    del part.number
    assert not hasattr(part, 'number')
    queue = stand_in(MemoryQueue)
    assert IMailQueue.providedBy(queue)
    assert verifyObject(IMailQueue, queue)


def test_a_copy_is_one_of_the_part() -> None:
    """By whatever way; and it can be referred to weakly."""
    part = stand_in(Part)
    for copied in (copy.copy(part), copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert type(copied) is Part
        assert copied.number == part.number
    assert weakref.ref(part)() is part


def test_what_is_no_stand_in_is_itself() -> None:
    """``real`` takes any part."""
    queue = MemoryQueue()
    assert real(queue) is queue
    assert real(None) is None


def test_threads_that_come_first_together_use_the_same() -> None:
    """Each may have made one."""
    together = threading.Barrier(2)

    class Slow(Part):
        def __init__(self) -> None:
            super().__init__()
            together.wait(10)

    part = stand_in(Slow)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(part.number)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1] == part.number
    assert Part.made >= 2


def test_what_make_raises_is_raised_again() -> None:
    """Nothing is remembered of it: the next use tries once more."""
    folders: list[Path] = []

    def make() -> Path:
        return folders[0]

    part = stand_in(make)
    for _ in range(2):
        try:
            part.exists()
        except IndexError:
            continue
        raise AssertionError('it was raised')
    folders.append(Path('/'))
    assert part.exists()
