"""A plugin of mypy that leaves out the bodies of Triton's kernels: Triton compiles them, they are no Python.

Named in pyproject.toml; mypy loads it by its path.
"""

from __future__ import annotations

from mypy.nodes import Block, CallExpr, Decorator, Expression, MemberExpr, MypyFile, NameExpr, PassStmt
from mypy.plugin import Plugin


class KernelsPlugin(Plugin):
    def get_additional_deps(self, file: MypyFile) -> list[tuple[int, str, int]]:
        """Asked once for each file between parsing and checking, which makes it the place to empty the kernels."""
        for statement in file.defs:
            if isinstance(statement, Decorator) and any(map(_compiles, statement.original_decorators)):
                statement.func.body = Block([PassStmt()])
        return []


def _compiles(decorator: Expression) -> bool:
    """``triton.jit``, with arguments or without."""
    name = decorator.callee if isinstance(decorator, CallExpr) else decorator
    return isinstance(name, MemberExpr) and name.name == "jit" and _is_triton(name.expr)


def _is_triton(module: Expression) -> bool:
    return isinstance(module, NameExpr) and module.name == "triton"


def plugin(version: str) -> type[Plugin]:
    return KernelsPlugin
