"""The application of an .ini file is loaded, and no more: ``loading INI``."""

from __future__ import annotations

import sys

from pyramid.paster import get_app, setup_logging

if __name__ == '__main__':
    setup_logging(sys.argv[1])
    get_app(sys.argv[1])
