"""Worlds, each around a scripted relay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import Place
from tests.support.smtp.server import ScriptedSMTPServer
from tests.support.world import World


@pytest.fixture
def make_world(tmp_path: Path, smtp_server: ScriptedSMTPServer) -> Iterator[Callable[..., World]]:
    """Return a function that makes a World, with the arguments of its class."""
    numbers, worlds = count(1), list[World]()

    def make(server: ScriptedSMTPServer = smtp_server, **options: Any) -> World:
        world = World(tmp_path / f'world-{next(numbers)}', server, **options)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Return a world with a polite relay, by PIPELINING."""
    return make_world()


@pytest.fixture(params=['pipelined', 'lock-step'])
def either(make_world: Callable[..., World], request: pytest.FixtureRequest) -> World:
    """Return a world with a polite relay that takes commands in groups, or one by one."""
    world = make_world()
    if request.param == 'lock-step':
        world.server.extensions = ('SIZE 10240000',)
    return world


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[[ScriptedSMTPServer], Place]]:
    """Return a function that makes a Place for children, all of which end with the test."""
    places: list[Place] = []

    def make(server: ScriptedSMTPServer) -> Place:
        places.append(Place(tmp_path, server))
        return places[-1]

    yield make
    for place in places:
        for child in place.children:
            child.process.kill()
            child.process.wait()
        place.queue.close()
        assert place.server.violations == []


@pytest.fixture
def place(
    make_place: Callable[[ScriptedSMTPServer], Place], smtp_server: ScriptedSMTPServer
) -> Place:
    """Return a place for children, with a polite relay."""
    return make_place(smtp_server)
