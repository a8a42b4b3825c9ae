"""What every test may use: the scripted SMTP server, its certificates, the cutting proxy; real
databases."""

from __future__ import annotations

pytest_plugins = ['tests.smtp_fixtures', 'tests.databases']
