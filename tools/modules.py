"""Print every module of the package with the first line of its docstring: ``make map``."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'pyramid_sendmail'


def modules() -> list[tuple[str, str]]:
    """Return each module's path below the repository, and what it is."""
    found = []
    for path in sorted(PACKAGE.rglob('*.py'), key=lambda path: (path.parent, path.name)):
        text = ast.get_docstring(ast.parse(path.read_text())) or ''
        found.append((str(path.relative_to(ROOT)), ' '.join(text.partition('\n\n')[0].split())))
    return found


def main() -> None:
    """Print the map."""
    found = modules()
    width = max(len(path) for path, _ in found)
    for path, text in found:
        print(f'{path:{width}}  {text}')


if __name__ == '__main__':
    main()
