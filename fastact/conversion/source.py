"""Reading a function's source, and writing sites into it.

``F.relu(self.fc(x))`` becomes ``site(F.relu, self.fc, x)``: the same expressions in the same order.
Statements on one value are joined::

    y = self.fc(x)              y, done = site(self.fc, x, self)
    y = self.act(y)      ->     if done < 2:
                                    y = self.act(y)

so that whatever the site does not fuse runs from its own line, as it was written. Every other line
of the function stays as it is.
"""

from __future__ import annotations
import __future__ as future

import ast
import copy
import functools
import inspect
import linecache
import operator
import types
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from fastact.conversion.links import METHODS, Role, role_of
from fastact.conversion.site import CALL, METHOD, MISSING, SUM, Link, Operand, Plan, peek


class Left(Exception):
    """Why a function is left as it is."""


# ---- the source that a function was compiled from ----------------------------------------------

_FUTURE = functools.reduce(
    operator.or_, (getattr(future, name).compiler_flag for name in future.all_feature_names)
)
_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# What makes of a function's variables more than its own business.
_SEES_LOCALS = {"locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe"}


@functools.lru_cache(maxsize=64)
def _definitions(
    text: str, file: str, flags: int
) -> tuple[
    dict[tuple[str, int], tuple[ast.FunctionDef, str | None]], dict[tuple[str, int], types.CodeType]
]:
    """Of a file, by name and first line: the definitions, each with the class around it; and the
    codes that they are compiled to."""
    found: dict[tuple[str, int], tuple[ast.FunctionDef, str | None]] = {}
    codes: dict[tuple[str, int], types.CodeType] = {}
    tree = ast.parse(text)

    def walk(node: ast.AST, owner: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                line = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found[child.name, line] = child, owner
            walk(child, child.name if isinstance(child, ast.ClassDef) else owner)

    walk(tree, None)
    pending = [compile(tree, file, "exec", flags=flags, dont_inherit=True)]
    for code in pending:
        codes[code.co_name, code.co_firstlineno] = code
        pending += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return found, codes


def definition(function: types.FunctionType) -> tuple[ast.FunctionDef, str | None]:
    """The source that a function was compiled from, and the name of the class around it.

    Raises:
        Left: there is none, or what it was compiled from has changed since.
    """
    code = function.__code__
    if code.co_flags & _SUSPENDED:
        raise Left("it is a generator or a coroutine")
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    place = code.co_name, code.co_firstlineno
    try:
        found, codes = _definitions(text, code.co_filename, code.co_flags & _FUTURE)
    except (SyntaxError, ValueError, RecursionError):
        raise Left("its source cannot be read") from None
    node, kind = found.get(place, (None, None))
    if node is None or ("__class__" in code.co_freevars and not kind):
        raise Left("it has no source")
    if codes.get(place) != code:
        raise Left("it was made of more than its source, or that has changed")
    if getattr(node, "type_params", None):
        raise Left("it has type parameters")
    if _SEES_LOCALS & {getattr(n, "id", getattr(n, "attr", None)) for n in ast.walk(node)}:
        raise Left("it looks at its own frame")
    return node, kind


# ---- where a callee is found -------------------------------------------------------------------

# A path from a module: attributes, and ELEMENT for any child of a container.
Path = tuple[str, ...]
ELEMENT = "[]"
# What a local variable may hold: a child of the module or of its containers; any module in it.
CHILD: Path = ("*",)
DESCENDANT: Path = ("**",)


def path_of(node: ast.expr, kind: str | None) -> tuple[str, Path] | None:
    """The name at the root of ``name.attribute[index]...``, and the rest, in a class called so."""
    path: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        path.append(_mangled(node.attr, kind) if isinstance(node, ast.Attribute) else ELEMENT)
        node = node.value
    if not isinstance(node, ast.Name) or _mangled(node.id, kind) != node.id:
        return None
    return node.id, tuple(reversed(path))


def _mangled(name: str, kind: str | None) -> str:
    if kind and kind.strip("_") and name.startswith("__") and not name.endswith("__"):
        return f"_{kind.lstrip('_')}{name}"
    return name


def own_name(code: types.CodeType) -> str | None:
    """What a method calls its module."""
    return code.co_varnames[0] if code.co_argcount else None


def callees(function: types.FunctionType) -> set[Path]:
    """Where the function looks for what it calls, from its module on. Raises Left."""
    function, _ = unwrapped(function)
    node, kind = definition(function)
    own, found = own_name(function.__code__), {CHILD, DESCENDANT}
    for call in ast.walk(node):
        place = path_of(call.func, kind) if isinstance(call, ast.Call) else None
        if place and place[0] == own and place[1]:
            found.add(place[1])
    return found


_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


def role_at(module: torch.nn.Module, path: Path) -> Role:
    """What lies there may be."""
    if path == DESCENDANT:
        objects = list(module.modules())
    elif path == CHILD:
        objects, pending = [], [module]
        for one in pending:
            children = [child for child in one._modules.values() if child is not None]
            objects += children
            pending += [child for child in children if isinstance(child, _CONTAINERS)]
    else:
        objects = [module]
        for name in path:
            objects = [found for one in objects for found in _step(one, name)]
    return functools.reduce(operator.or_, map(role_of, objects), Role.NOTHING)


def _step(owner: Any, name: str) -> list[Any]:
    if name != ELEMENT:
        found = peek(owner, name)
        return [] if found is MISSING else [found]
    if isinstance(owner, torch.nn.Module):
        return [child for child in owner._modules.values() if child is not None]
    if isinstance(owner, dict):
        return list(owner.values())
    return list(owner) if isinstance(owner, (list, tuple)) else []


# ---- chains ------------------------------------------------------------------------------------


class _Chain(NamedTuple):
    """A layer's call with links around it. Operands name nodes by their number in `order`."""

    call: ast.Call
    order: list[ast.expr]  # what is evaluated, in order
    layer: int
    input: int
    links: list[Link]  # the innermost first


def _uses(node: ast.AST) -> list[tuple[str, type]]:
    """The names that one node reads, sets or deletes."""
    if isinstance(node, ast.Name):
        return [(node.id, type(node.ctx))]
    if isinstance(node, ast.arg):
        return [(node.arg, ast.Param)]
    if isinstance(node, ast.alias):
        return [((node.asname or node.name).partition(".")[0], ast.Store)]
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return [(name, ast.Store) for name in node.names]
    # Definitions, handlers of exceptions and patterns.
    names = [getattr(node, "name", None), getattr(node, "rest", None)]
    return [(name, ast.Store) for name in names if isinstance(name, str)]


def _bound(code: types.CodeType) -> set[str]:
    """The names that are no globals in a function and those inside it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    names = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    return names.union(*map(_bound, inner))


_SCOPES = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Rewriter(ast.NodeTransformer):
    """Writes sites into one function."""

    def __init__(
        self,
        function: types.FunctionType,
        node: ast.FunctionDef,
        kind: str | None,
        roles: Mapping[Path, Role],
        frozen: bool,
    ) -> None:
        code = function.__code__
        self.kind = kind
        self.function, self.code, self.roles, self.frozen = function, code, roles, frozen
        self.uses = Counter(use for n in ast.walk(node) if n is not node for use in _uses(n))
        self.bound = _bound(code)
        stored = {name for name, use in self.uses if use in (ast.Store, ast.Del)}
        arguments = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        arguments |= {name for name, use in self.uses if use is ast.Param}
        # Locals that no call can change: nested functions have no access, or nobody sets them.
        self.unshared = set(code.co_varnames) - set(code.co_cellvars)
        self.constant = arguments & set(code.co_varnames) - stored
        self.handed_over = arguments - stored
        self.stable = self.unshared | self.constant
        self.own = own_name(code) if own_name(code) in self.constant else None
        self.prefix = "_site"
        names = {name for name, _ in self.uses} | {*code.co_names}
        while any(name.startswith(self.prefix) for name in names):
            self.prefix += "_"
        self.plans: dict[str, Plan] = {}

    # ---- what an expression may be ----

    def global_value(self, node: ast.expr) -> Any:
        """What a global name, dotted or not, stands for now: only to choose what may be a link."""
        place = path_of(node, self.kind)
        if place is None or place[0] in self.bound:
            return MISSING
        value = Operand(name=place[0], path=place[1]).peek((), self.function.__globals__)
        return value

    def role(self, node: ast.expr) -> Role:
        """What may be called there."""
        place = path_of(node, self.kind)
        if place is None:
            return Role.NOTHING
        root, path = place
        if root == self.own:
            return self.roles.get(path, Role.NOTHING)
        if root not in self.bound:
            value = self.global_value(node)
            return Role.NOTHING if value is MISSING else role_of(value)
        if not path:
            return self.roles.get(CHILD, Role.NOTHING)
        if path[-1] != ELEMENT and hasattr(torch.Tensor, path[-1]):
            return Role.NOTHING
        return self.roles.get(DESCENDANT, Role.NOTHING)

    def late(self, node: ast.expr, order: list[ast.expr]) -> Operand | None:
        """What is the same at any moment, or can be read when its turn comes."""
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            value = MISSING
        if value is not MISSING:
            plain = all(
                isinstance(one, (int, float, str, bytes, type(None), type(...)))
                for one in (value if isinstance(value, tuple) else [value])
            )
            return Operand(constant=value) if plain else None
        place = path_of(node, self.kind)
        if place is None or ELEMENT in place[1]:
            return None
        root, path = place
        if root not in self.bound:
            return Operand(name=root, path=path)
        if root not in self.stable:
            return None
        order.append(ast.copy_location(ast.Name(root, ast.Load()), node))
        return Operand(slot=len(order) - 1, path=path)

    # ---- expressions ----

    def chain(self, node: ast.expr) -> _Chain | None:
        """The chain that an expression is."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._sum(node, node.left, node.right, None)
        if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        if any(k.arg is None for k in node.keywords):
            return None
        method = _method(node)
        if method is not None and (inner := self.chain(method.value)) is not None:
            return self._with_link(inner, node, Link(METHOD, name=method.attr))
        if not node.args:
            return None
        role = self.role(node.func)
        if role & Role.FOLLOWER:
            if self.global_value(node.func) is torch.add and len(node.args) == 2:
                left, right = node.args
                return None if node.keywords else self._sum(node, left, right, node.func)
            inner = self.chain(node.args[0])
            if inner is not None:
                inner = _after(inner, node.func)
                return self._with_link(inner, node, Link(CALL, Operand(slot=0)))
        if role & Role.LAYER and len(node.args) == 1 and not node.keywords:
            return _Chain(node, [node.func, node.args[0]], 0, 1, [])
        return None

    def _with_link(self, inner: _Chain, node: ast.Call, link: Link) -> _Chain | None:
        """With the other arguments of a call, which Python reads after the chain inside."""
        order = [*inner.order]
        args = node.args if link.kind == METHOD else node.args[1:]
        full = self._with_arguments(link, args, node.keywords, order)
        return full and inner._replace(order=order, links=[*inner.links, full])

    def _with_arguments(
        self, link: Link, args: list[ast.expr], keywords: list[ast.keyword], order: list[ast.expr]
    ) -> Link | None:
        late = [self.late(a, order) for a in args]
        named = [(k.arg, self.late(k.value, order)) for k in keywords]
        read = tuple(operand for operand in late if operand is not None)
        kwargs = tuple((name, operand) for name, operand in named if name and operand is not None)
        if len(read) < len(late) or len(kwargs) < len(named):
            return None
        return link._replace(args=read, kwargs=kwargs)

    def _sum(
        self, node: ast.expr, left: ast.expr, right: ast.expr, function: ast.expr | None
    ) -> _Chain | None:
        """left + right, or function(left, right)."""
        before = [] if function is None else [function]
        callee = None if function is None else Operand(slot=0)
        inner = self.chain(right)
        if inner is not None:  # left is evaluated before it
            inner = _after(inner, *before, left)
            link = Link(SUM, callee, args=(Operand(slot=len(before)),), first=True)
            return inner._replace(links=[*inner.links, link])
        inner = self.chain(left)
        if inner is None:
            return None
        inner = _after(inner, *before)
        order = [*inner.order]
        other = self.late(right, order)
        if other is None:
            return None
        link = Link(SUM, callee, args=(other,))
        return inner._replace(order=order, links=[*inner.links, link])

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and (chain := self.chain(node)) is not None:
            site = self._site(chain, node, 1)
            if site is not None:
                return site
        return super().visit(node)

    def _site(self, chain: _Chain, node: ast.expr, statements: int) -> ast.expr | None:
        """The call of a site; None where it is none."""
        place = path_of(chain.call.func, self.kind)
        root = place and place[0]
        if not chain.links and root in self.handed_over and root != self.own:
            return None  # a function that somebody hands over, rather than a layer
        handed, order = self._handed(chain.order)
        plan = Plan(
            order,
            chain.layer,
            chain.input,
            tuple(chain.links),
            statements,
            self.frozen,
            f"{self.code.co_filename}:{node.lineno}",
            ast.unparse(node),
        )
        name = f"{self.prefix}{len(self.plans)}"
        self.plans[name] = plan
        arguments = [self.visit(n) for n in handed]
        call = ast.Call(ast.Name(name, ast.Load()), arguments, [])
        # The line of the layer's call, where a chain goes over several.
        return ast.copy_location(call, chain.call)

    def _handed(self, order: list[ast.expr]) -> tuple[list[ast.expr], tuple[Operand, ...]]:
        """What a site is handed, and where in it lies what the chain evaluates.

        Where nothing but names is evaluated after ``self.fc``, the site is handed self and reads
        fc: 0.1 us instead of the 0.3 that torch.nn.Module.__getattr__ takes.
        """
        paths: list[Path] = []
        for node in reversed(order):
            place = path_of(node, self.kind)
            if place is None or ELEMENT in place[1] or (place[1] and place[0] not in self.stable):
                break
            paths.append(place[1])
        paths += [()] * (len(order) - len(paths))
        handed: list[ast.expr] = []
        found: list[Operand] = []
        slots: dict[str | None, int] = {}
        for node, path in zip(order, reversed(paths), strict=True):
            place = path_of(node, self.kind)
            name = place[0] if place and place[0] in self.stable and place[1] == path else None
            if name is None or name not in slots:
                slots[name] = len(handed)
                handed.append(node if name is None else ast.copy_location(_load(name), node))
            found.append(Operand(slot=slots[name], path=path))
        return handed, tuple(found)

    # ---- statements ----

    def _tail(self, node: ast.expr, current: str, order: list[ast.expr]) -> list[Link] | None:
        """The links of an expression around one reading of a name, read when the site is called."""
        if isinstance(node, ast.Name):
            return [] if node.id == current else None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            for inner, other, first in ((node.left, node.right, 0), (node.right, node.left, 1)):
                if self._tail(inner, current, []) is not None:
                    links = self._tail(inner, current, order)
                    operand = self.late(other, order)
                    if links is None or operand is None:
                        return None
                    return [*links, Link(SUM, args=(operand,), first=bool(first))]
            return None
        if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        if any(k.arg is None for k in node.keywords):
            return None
        method = _method(node)
        links = None if method is None else self._tail(method.value, current, order)
        if method is not None and links is not None:
            args, link = node.args, Link(METHOD, name=method.attr)
        elif node.args and self.role(node.func) & Role.FOLLOWER:
            if self.global_value(node.func) is torch.add:
                return None
            links, args = self._tail(node.args[0], current, order), node.args[1:]
            callee = self.late(node.func, order)
            if callee is None:
                return None
            link = Link(CALL, callee)
        else:
            return None
        if links is None:
            return None
        full = self._with_arguments(link, args, node.keywords, order)
        return None if full is None else [*links, full]

    def _following(
        self, statement: ast.stmt, current: str, names: set[str], order: list[ast.expr]
    ) -> list[Link] | None:
        """The links of a statement that takes the current value, which nobody reads after it."""
        start = len(order)
        if isinstance(statement, ast.AugAssign):
            if not isinstance(statement.op, ast.Add) or _name(statement.target) != current:
                return None
            operand = self.late(statement.value, order)
            links = None if operand is None else [Link(SUM, args=(operand,))]
        elif isinstance(statement, (ast.Assign, ast.Return)) and statement.value is not None:
            name = _name_set(statement)
            if name is None and isinstance(statement, ast.Assign):
                return None
            links = self._tail(statement.value, current, order)
            if name not in (None, current):
                uses = [self.uses[current, use] for use in (ast.Load, ast.Store, ast.Del)]
                if uses != [1, 1, 0] or current in self.constant:
                    return None
        else:
            return None
        # Nothing but the value itself may have been set by these statements.
        if not links or any(_name(node) in names for node in order[start:]):
            return None
        return links

    def _joined(self, statements: list[ast.stmt]) -> tuple[int, list[ast.stmt]] | None:
        """How many statements from here on are one chain, and those in their place."""
        start = statements[0]
        first = _name_set(start)
        if first is None or not isinstance(start, ast.Assign):
            return None
        chain = self.chain(start.value)
        if chain is None:
            return None
        current, names = first, set[str]()
        for node in ast.walk(start):
            if isinstance(node, ast.NamedExpr):
                names.add(node.target.id)
        order, links = [*chain.order], [*chain.links]
        taken: list[ast.stmt] = [start]
        targets = [current]
        for statement in statements[1:]:
            names.add(current)
            if current not in self.unshared or isinstance(taken[-1], ast.Return):
                break
            longer = [*order]
            more = self._following(statement, current, names, longer)
            if more is None:
                break
            order = longer
            links += [link._replace(statement=len(taken)) for link in more]
            taken.append(statement)
            current = _name_set(statement) or current
            targets.append(current)
        if len(taken) == 1:
            return None
        chain = chain._replace(order=order, links=links)
        call = self._site(chain, start.value, len(taken))
        if call is None:
            return None
        done = f"{self.prefix}_done"
        both = ast.Tuple([start.targets[0], ast.Name(done, ast.Store())], ast.Store())
        made: list[ast.stmt] = [ast.copy_location(ast.Assign([both], call), start)]
        for number, statement in enumerate(taken[1:], 1):
            test = ast.parse(f"{done} < {number + 1}", mode="eval").body
            otherwise: list[ast.stmt] = []
            before = ast.Name(targets[number - 1], ast.Load())
            if isinstance(statement, ast.Return):
                otherwise = [ast.Return(before)]
            elif targets[number] != targets[number - 1]:
                otherwise = [ast.Assign([ast.Name(targets[number], ast.Store())], before)]
            one = ast.If(test, [statement], otherwise)
            # All but the statement itself belongs to the line of the site.
            for node in (one, *_walk(test), *(n for o in otherwise for n in _walk(o))):
                ast.copy_location(node, start)
            made.append(one)
        return len(taken), made

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        while statements:
            count, those = self._joined(statements) or (1, None)
            if those is None:
                those = [self.visit(statements[0])]
            made += those
            statements = statements[count:]
        return made

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef)) or (
            isinstance(node, ast.FunctionDef)
            and any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(node))
        ):
            return node
        before = self.unshared, self.stable
        if isinstance(node, _SCOPES):  # with variables of its own, by whatever name
            self.unshared, self.stable = set(), self._still_constant(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self.block(value))
            elif isinstance(value, list):
                value[:] = [self.visit(v) if isinstance(v, ast.AST) else v for v in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        self.unshared, self.stable = before
        return node

    def _still_constant(self, scope: ast.AST) -> set[str]:
        """Arguments of the function that nobody sets, and that mean the same in here."""
        own = {n.arg for n in ast.walk(scope) if isinstance(n, ast.arg)}
        return {name for name in self.constant & self.stable if name not in own}


def _walk(node: ast.AST) -> list[ast.AST]:
    return [n for n in ast.walk(node) if isinstance(n, (ast.expr, ast.stmt))]


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _name_set(node: ast.AST) -> str | None:
    """The one name that a statement assigns to."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return _name(node.targets[0])
    return None


def _method(node: ast.Call) -> ast.Attribute | None:
    """What is called, where that is a method that may be a link."""
    return node.func if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS else None


def _shifted(operand: Operand, by: int) -> Operand:
    return operand if operand.slot < 0 else operand._replace(slot=operand.slot + by)


def _after(chain: _Chain, *nodes: ast.expr) -> _Chain:
    """The chain, with these expressions evaluated before it."""
    by = len(nodes)
    links = [
        link._replace(
            callee=None if link.callee is None else _shifted(link.callee, by),
            args=tuple(_shifted(a, by) for a in link.args),
            kwargs=tuple((name, _shifted(a, by)) for name, a in link.kwargs),
        )
        for link in chain.links
    ]
    order = [*nodes, *chain.order]
    return _Chain(chain.call, order, chain.layer + by, chain.input + by, links)


# ---- functions ---------------------------------------------------------------------------------


class Rewritten(NamedTuple):
    """A function with sites, its plans by the names that its code has for them."""

    code: types.CodeType
    plans: Mapping[str, Plan]
    extra: tuple[str, ...]  # further names that its code has free


# A decorator's function, and the cell of it that holds what it wraps.
Wrapper = tuple[types.FunctionType, Any]


def unwrapped(function: types.FunctionType) -> tuple[types.FunctionType, list[Wrapper]]:
    """The function that decorators wrapped, and what they made around it, the outermost first.

    Raises:
        Left: one of them holds what it wraps in another way than in one cell.
    """
    wrappers: list[Wrapper] = []
    while isinstance(inner := function.__dict__.get("__wrapped__"), types.FunctionType):
        cells = [
            cell
            for cell in function.__closure__ or ()
            if cell != types.CellType() and cell.cell_contents is inner
        ]
        if len(cells) != 1 or len(wrappers) > 20:
            raise Left("it is decorated")
        wrappers.append((function, cells[0]))
        function = inner
    return function, wrappers


def rewritten(
    function: types.FunctionType,
    roles: Mapping[Path, Role],
    frozen: bool,
    guard: Callable[[str, str], str],
) -> Rewritten:
    """The code of a function with sites.

    guard(prefix, arguments) is the text of the statements that its code begins with; names in it
    that start with prefix are free, to be bound by the caller. Raises Left.
    """
    node, kind = definition(function)
    node = copy.deepcopy(node)
    rewriter = Rewriter(function, node, kind, roles, frozen)
    node.body = rewriter.block(node.body)
    if not rewriter.plans:
        return Rewritten(function.__code__, {}, ())
    return _assembled(function, node, kind, rewriter, guard)


def replaced(
    function: types.FunctionType, body: Callable[[str, str], str], frozen: bool
) -> Rewritten:
    """The function with another body, as text: body(prefix, arguments)."""
    node, kind = definition(function)
    node = copy.deepcopy(node)
    rewriter = Rewriter(function, node, kind, {}, frozen)
    node.body = []
    return _assembled(function, node, kind, rewriter, body)


def _assembled(
    function: types.FunctionType,
    node: ast.FunctionDef,
    kind: str | None,
    rewriter: Rewriter,
    guard: Callable[[str, str], str],
) -> Rewritten:
    added = ast.parse(guard(rewriter.prefix, _handed(node.args))).body
    place = {"lineno": node.lineno, "end_lineno": node.lineno, "col_offset": 0, "end_col_offset": 0}
    for child in (n for statement in added for n in ast.walk(statement)):
        vars(child).update(place)
    extra = sorted(
        {
            n.id
            for statement in added
            for n in ast.walk(statement)
            if isinstance(n, ast.Name) and n.id.startswith(rewriter.prefix)
        }
    )
    after_docstring = ast.get_docstring(node, clean=False) is not None
    node.body[after_docstring:after_docstring] = added
    code = _compiled(node, kind, function.__code__, [*rewriter.plans, *extra])
    return Rewritten(code, rewriter.plans, tuple(extra))


def _handed(given: ast.arguments) -> str:
    """The arguments of a function, handed on."""
    parts = [p.arg for p in (*given.posonlyargs, *given.args)]
    parts += [f"*{given.vararg.arg}"] if given.vararg else []
    parts += [f"{p.arg}={p.arg}" for p in given.kwonlyargs]
    parts += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return ", ".join(parts)


def _compiled(
    node: ast.FunctionDef, owner: str | None, code: types.CodeType, names: list[str]
) -> types.CodeType:
    """The definition, compiled with these names and those it had free, in a class as good as its
    own for names such as __x."""
    inside: list[Any] = [node]
    if owner:
        inside = [ast.ClassDef("_____" + owner.lstrip("_"), [], [], [node], [])]
    free = [ast.arg(n) for n in (*code.co_freevars, *names) if n != "__class__"]
    arguments = ast.arguments([], free, None, [], [], None, [])
    around: Any = ast.FunctionDef("around", arguments, inside, [])
    if "type_params" in ast.FunctionDef._fields:
        around.type_params = []
        if owner:
            inside[0].type_params = []
    around.lineno, around.col_offset = 1, 0
    tree = ast.fix_missing_locations(ast.Module([around], []))
    flags, place = code.co_flags & _FUTURE, (code.co_name, code.co_firstlineno)
    pending = [compile(tree, code.co_filename, "exec", flags=flags, dont_inherit=True)]
    for one in pending:
        if (one.co_name, one.co_firstlineno) == place and one is not pending[0]:
            return one.replace(co_qualname=code.co_qualname)
        pending += [c for c in one.co_consts if isinstance(c, types.CodeType)]
    raise Left("its source is not where its code says")
