"""Fixtures for the tests of configuration."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_mail_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing about mail."""
    monkeypatch.delenv('MAIL_URL', raising=False)
    monkeypatch.delenv('MAIL_PASSWORD', raising=False)
