"""Python snippets as the documents write them: with a bare ``await``, and with what is expected in comments.

``expression  # → value`` expects the value; ``statement  # raises Error`` expects the exception. Both may stand at any
depth. Invariant: a comment of either form that could not be attached to a statement is an error.
"""

import ast
import inspect
import re
from typing import Any

from tests.docs.markdown import Block

_EXPECTATION = re.compile(r"#\s*(→|raises)\s+(.+?)\s*$")
_CHECK = "_check_of_the_document"


async def run_snippet(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block in a namespace. Raises AssertionError, with the place, where an expectation does not hold."""

    def check(found: Any, expected: Any, line: int) -> None:
        assert found == expected, f"{block.document}:{line}: {found!r} instead of {expected!r}"

    # The module's lines are the document's, so that every error names the place in the document.
    tree = ast.parse("\n" * (block.line - 1) + block.text, str(block.document))
    expectations = _Expectations(block)
    tree = ast.fix_missing_locations(expectations.visit(tree))
    assert not expectations.left, f"{block.document}: these expectations belong to no statement: {expectations.left}"
    code = compile(tree, str(block.document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    namespace[_CHECK] = check
    result = eval(code, namespace)
    if inspect.isawaitable(result):
        await result


class _Expectations(ast.NodeTransformer):
    """Puts the checks in place of the statements that comments expect something of."""

    def __init__(self, block: Block) -> None:
        self.left: dict[int, tuple[str, str]] = {}
        for number, line in enumerate(block.text.splitlines(), block.line):
            if (found := _EXPECTATION.search(line)) is not None:
                self.left[number] = (found[1], found[2])

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        expected = self.left.pop(node.end_lineno or 0, None)
        if expected is None:
            return self.generic_visit(node)
        kind, text = expected
        if kind == "raises":
            return self._raising(node, text)
        value = ast.parse(text, mode="eval").body
        call = ast.Call(ast.Name(_CHECK, ast.Load()), [node.value, value, ast.Constant(node.lineno)], [])
        return ast.copy_location(ast.Expr(call), node)

    def _raising(self, node: ast.Expr, error: str) -> ast.AST:
        found, expected = (ast.Constant(text) for text in ("no exception", error))
        complaint = ast.Call(ast.Name(_CHECK, ast.Load()), [found, expected, ast.Constant(node.lineno)], [])
        handler = ast.ExceptHandler(ast.parse(error, mode="eval").body, None, [ast.Pass()])
        return ast.copy_location(ast.Try([node], [handler], [ast.Expr(complaint)], []), node)
