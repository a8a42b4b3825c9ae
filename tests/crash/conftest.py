"""The machinery that shows that the queue survives. It is still being built, and takes minutes:
``CRASH=1`` in the environment has it collected."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get('CRASH') else ['test_*.py']
