"""``.. interface:: IMailer``: the contract of an interface in ``pyramid_sendmail.interfaces``.

Shows docstrings, attributes, and methods with their full signatures. autodoc cannot do this: an
interface of zope.interface is no class, and keeps neither annotations nor keyword-only arguments.
So the signatures come from the source text.
"""

import ast
import inspect
from collections.abc import Iterator
from textwrap import indent
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from pyramid_sendmail import interfaces


class InterfaceDirective(SphinxDirective):
    """The directive; its argument is the name of the interface."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what the Python domain makes of the description."""
        self.env.note_dependency(interfaces.__file__)
        if self.arguments[0] not in interfaces.__all__:
            raise self.error(f'pyramid_sendmail.interfaces has no {self.arguments[0]}')
        return self.parse_text_to_nodes('\n'.join(_described(self.arguments[0])))


def _described(name: str) -> Iterator[str]:
    tree = ast.parse(inspect.getsource(interfaces))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    bases = ', '.join(ast.unparse(base) for base in found.bases)
    yield f'.. py:class:: {name}({bases})'
    yield f'   :module: {interfaces.__name__}'
    yield ''
    yield _body(ast.get_docstring(found))
    for node in found.body:
        if isinstance(node, ast.FunctionDef):
            returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
            yield f'   .. py:method:: {node.name}({ast.unparse(node.args)}){returns}'
            yield ''
            yield indent(_body(ast.get_docstring(node)), '   ')
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            attribute = getattr(interfaces, name)[ast.unparse(target)]
            yield f'   .. py:attribute:: {attribute.getName()}'
            yield ''
            yield indent(_body(attribute.getDoc()), '   ')


def _body(text: str | None) -> str:
    return indent(f'{text or ""}\n', '   ')


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive('interface', InterfaceDirective)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
