"""Small faults in Python code: another comparison, a number off by one, a condition turned round, a call left out."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Fault:
    """path: relative to the root. planted: the whole text of the file with the fault in it."""

    path: Path
    line: int
    what: str
    planted: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def faults_of(path: Path, root: Path) -> Iterator[Fault]:
    """Every fault that can be planted in a file, in the order of its lines."""
    tree = ast.parse((root / path).read_text())
    for number, node in enumerate(_nodes(tree)):
        for what, change in _changes(node):
            other = copy.deepcopy(tree)
            change(_nodes(other)[number])
            yield Fault(path, node.lineno, what, ast.unparse(ast.fix_missing_locations(other)) + "\n")


Node = ast.expr | ast.stmt


def _nodes(tree: ast.Module) -> list[Node]:
    """What may be changed: nothing in annotations, decorators, messages and docstrings."""
    spared = set()
    for node in ast.walk(tree):
        annotations = [getattr(node, name, None) for name in ("annotation", "returns")]
        messages = [node.exc] if isinstance(node, ast.Raise) else [node.msg] if isinstance(node, ast.Assert) else []
        aside = [*annotations, *messages, *getattr(node, "decorator_list", [])]
        aside += [node.value] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else []
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            aside.append(node)
        spared |= {id(inner) for one in aside if one is not None for inner in ast.walk(one)}
    return [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt) and id(node) not in spared]


def _changes(node: Node) -> Iterator[tuple[str, Callable[[Node], None]]]:
    said = ast.unparse(node).splitlines()[0][:70]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]
        yield f"{said}: {other.__name__}", lambda one: one.ops.__setitem__(0, other())  # type: ignore[union-attr]
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        operator = ARITHMETIC[type(node.op)]
        yield f"{said}: {operator.__name__}", lambda one: setattr(one, "op", operator())
    elif isinstance(node, ast.BoolOp):
        logic = ast.And if isinstance(node.op, ast.Or) else ast.Or
        yield f"{said}: {logic.__name__}", lambda one: setattr(one, "op", logic())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{said} -> {value}", lambda one: setattr(one, "value", value)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield f"{said}: turned round", _turn_round
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"{said}: left out", lambda one: setattr(one, "value", ast.Constant(None))
    elif isinstance(node, ast.AugAssign):
        yield f"{said}: left out", lambda one: setattr(one, "value", ast.Constant(0))
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield f"{said}: None", lambda one: setattr(one, "value", ast.Constant(None))


def _turn_round(node: Node) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[union-attr]
