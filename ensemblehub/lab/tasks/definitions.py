"""What a function needs of the code around it, by syntax trees, as EvalPlus cleans answers.  Runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from ensemblehub.lab.tasks.statements import DEFINITIONS, FUNCTIONS, Statement, bound, inside

_DYNAMIC = {"eval", "exec", "globals", "locals", "vars", "__import__"}
_SETTINGS = {"setrecursionlimit", "set_int_max_str_digits", "setlocale", "seed"}


# -- the definition of a function --------------------------------------------------------------------------


def rank(statements: Sequence[Statement], name: str) -> int:
    """How well a name is defined: 4 by a function, class or lambda, 3 by a value, 2 by an import,
    1 by a stub, 0.
    """
    return max((_rank(statement, name) for statement in statements if name in statement.binds), default=0)


def _rank(statement: Statement, name: str) -> int:
    found = [0]
    for node in () if _guards_main(statement.node) else inside(statement.node):
        if isinstance(node, DEFINITIONS) and node.name == name:
            found.append(4 if _complete(node) else 1)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
            found.append(4 if isinstance(node.value, ast.Lambda) else 3)
        elif isinstance(node, ast.Import | ast.ImportFrom) and name in set(bound(node)):
            found.append(2)
    return max(found)


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _complete(node: ast.AST) -> bool:
    """Whether a definition is more than a signature: it does something,
    and no `...` stands for a part of it.
    """
    if not isinstance(node, FUNCTIONS):
        return True
    if any(isinstance(child, ast.Expr) and _is_constant(child.value, ...) for child in ast.walk(node)):
        return False
    return not all(
        isinstance(child, ast.Pass)
        or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
        or (
            isinstance(child, ast.Raise) and child.exc is not None and "NotImplemented" in ast.dump(child.exc)
        )
        for child in node.body
    )


def _is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def returns(statements: Sequence[Statement], name: str) -> bool:
    """Whether the function of that name gives a result."""
    functions = [
        statement.node
        for statement in statements
        if isinstance(statement.node, FUNCTIONS) and statement.node.name == name
    ]
    inner = [node for function in functions for child in function.body for node in inside(child)]
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom | ast.Raise)
        or (isinstance(node, ast.Return) and node.value is not None)
        for node in inner
    )


def body_column(statements: Sequence[Statement], name: str) -> int:
    """How far the body of a function is indented; 4 where there is none."""
    found = [
        statement.node.body[0].col_offset
        for statement in statements
        if isinstance(statement.node, FUNCTIONS) and statement.node.name == name
    ]
    return found[-1] if found else 4


# -- what it needs -----------------------------------------------------------------------------------------


def assemble(blocks: Sequence[Sequence[Statement]], name: str) -> str:
    """A program that defines `name`: its last, best definition, and of all blocks what it needs.

    Args:
        blocks: in the order of the answer; the first is the prompt, which gives only what no other has.
    """
    chosen = _Choice(blocks, name)
    chosen.need({name})
    while more := chosen.effects():
        for number, statement in more:
            chosen.take(number, statement)
    return "\n\n".join(statement.text for statement in chosen.ordered()) + "\n"


class _Choice:
    """The statements chosen so far, and of which block each is."""

    def __init__(self, blocks: Sequence[Sequence[Statement]], name: str) -> None:
        self.blocks, self.name = blocks, name
        self.home = max(range(1, len(blocks)), key=lambda number: (rank(blocks[number], name), number))
        self.order = [self.home, *range(self.home - 1, 0, -1), *range(self.home + 1, len(blocks)), 0]
        self.binding = [_index(block) for block in blocks]
        self.taken: dict[Statement, int] = {}
        self.names: set[str] = set()

    def need(self, names: Iterable[str]) -> None:
        """Take what gives these names a meaning, and what that needs in turn."""
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in self.names:
                continue
            self.names.add(name)
            number = self.home if name == self.name else max(self.order, key=lambda at: self._worth(at, name))
            for statement in self._found(number, name):
                self.taken[statement] = number
                waiting += statement.uses
                if statement.uses & _DYNAMIC:  # any name may be meant
                    waiting += [also for each in self.blocks[number] if _defines(each) for also in each.binds]

    def take(self, number: int, statement: Statement) -> None:
        """Take a statement and what it needs."""
        self.taken[statement] = number
        self.need(statement.uses)

    def _worth(self, number: int, name: str) -> int:
        """2 where a block gives a name a meaning, 1 where by a stub alone, else 0."""
        found = self.binding[number].get(name, ())
        return max((1 if rank([statement], name) == 1 else 2 for statement in found), default=0)

    def _found(self, number: int, name: str) -> list[Statement]:
        stubs = self._worth(number, name) == 1
        return [
            statement
            for statement in self.binding[number].get(name, ())
            if stubs or rank([statement], name) != 1
        ]

    def effects(self) -> list[tuple[int, Statement]]:
        """Statements that give no chosen name a meaning but change what it means, as by filling a table."""
        imports = {name for statement in self.taken if _imports(statement) for name in statement.binds}
        variables = {
            name for statement in self.taken if not _defines(statement) for name in statement.binds
        } & self.names
        return [
            (number, statement)
            for number in sorted({self.home, *self.taken.values()} - {0})
            for statement in self.blocks[number]
            if statement not in self.taken
            and not _is_usage(statement)
            and self._matters(statement, number, imports, variables)
        ]

    def _matters(self, statement: Statement, number: int, imports: set[str], variables: set[str]) -> bool:
        if "*" in statement.binds or _is_future(statement) or _is_setting(statement.node):
            return True
        changed = set(_changed(statement.node)) & self.names
        runs = isinstance(statement.node, ast.Expr | ast.For | ast.While | ast.With | ast.Try | ast.If)
        if (runs and changed - imports) or (_calls(statement.node) and variables):
            reach = self._reach(statement, number)
            return self.name not in reach and bool(changed - imports or reach & variables)
        return not runs and bool(changed)

    def _reach(self, statement: Statement, number: int) -> set[str]:
        """What a statement uses, also by what it calls in its block."""
        found, waiting = set[str](), list(statement.uses)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [use for binder in self.binding[number].get(name, ()) for use in binder.uses]
        return found

    def ordered(self) -> list[Statement]:
        """The chosen ones: other blocks' imports first, then block by block,
        what the home block needs before it.
        """
        imports = list[Statement]()
        before = list[Statement]()
        own = list[Statement]()
        after = list[Statement]()
        given = {
            name
            for statement, number in self.taken.items()
            if number == self.home
            for name in statement.binds
        }
        for number, block in enumerate(self.blocks):
            for statement in filter(self.taken.__contains__, block):
                if _imports(statement) and (number != self.home or _is_future(statement)):
                    imports.append(statement)
                elif number == self.home:
                    own.append(statement)
                else:
                    (after if number > self.home and statement.needs_first & given else before).append(
                        statement
                    )
        imports.sort(key=lambda statement: not _is_future(statement))
        return [*imports, *before, *own, *after]


def _index(block: Sequence[Statement]) -> dict[str, list[Statement]]:
    """By name, the statements of a block that give it a meaning."""
    out: dict[str, list[Statement]] = {}
    for statement in block:
        for name in () if _is_usage(statement) else statement.binds:
            out.setdefault(name, []).append(statement)
    return out


def _imports(statement: Statement) -> bool:
    return isinstance(statement.node, ast.Import | ast.ImportFrom)


def _defines(statement: Statement) -> bool:
    return isinstance(statement.node, (*DEFINITIONS, ast.Import, ast.ImportFrom))


def _is_future(statement: Statement) -> bool:
    return isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"


def _is_usage(statement: Statement) -> bool:
    """Whether it only shows or checks what the rest does."""
    return isinstance(statement.node, ast.Assert) or _guards_main(statement.node)


def _guards_main(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and any(
        isinstance(child, ast.Name) and child.id == "__name__" for child in ast.walk(node.test)
    )


def _calls(node: ast.stmt) -> bool:
    """Whether it is the call of a function by its name, as `fill_table()`."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    )


def _is_setting(node: ast.stmt) -> bool:
    """Whether it is the call of one of the interpreter's settings, as `sys.setrecursionlimit(…)`."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and _last(node.value.func) in _SETTINGS
    )


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _changed(node: ast.stmt) -> Iterator[str]:
    """The names whose values a statement changes without giving them another: `x[0] = 1`, `x.y = 1`,
    `x.append(1)`.
    """
    for child in inside(node):
        if isinstance(child, ast.Attribute | ast.Subscript) and not isinstance(child.ctx, ast.Load):
            yield from _root(child)
        elif (
            isinstance(child, ast.Expr)
            and isinstance(child.value, ast.Call)
            and isinstance(child.value.func, ast.Attribute)
        ):
            yield from _root(child.value.func)
        elif isinstance(child, DEFINITIONS):  # `@f.register`
            yield from (
                name
                for each in child.decorator_list
                if not isinstance(each, ast.Name)
                for name in _root(each)
            )


def _root(node: ast.AST) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id
