"""Which code reads which field of a recipe, found by following section types through the syntax trees.

A light type inference: it knows annotations, attribute chains from a section to its sub-sections, `self` attributes,
dataclass fields, assignments, `match` patterns and calls of functions whose return type is annotated. A name alone
proves nothing: `path` and `kind` are read everywhere, `Bin.path` only where the object is known to be able to be one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import types
import typing
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from architecture.source import Module, dotted, modules
from farthing.recipe import Recipe
from farthing.section import Section

Types = frozenset[type[Section]]
NOTHING: Types = frozenset()
ORIGINS = ("farthing.recipe", "farthing.budget", "farthing.section")


def sections_in(annotation: object) -> Types:
    """The section classes that a runtime annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return frozenset({annotation})
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        return union(sections_in(part) for part in typing.get_args(annotation))
    return NOTHING


def union(several: Iterable[Types]) -> Types:
    return frozenset().union(*several)


def reachable(start: type[Section] = Recipe) -> Types:
    """Every section class that a recipe can contain."""
    found: set[type[Section]] = set()
    waiting = [start]
    while waiting:
        section = waiting.pop()
        if section not in found:
            found.add(section)
            for info in section.model_fields.values():
                waiting.extend(sections_in(info.annotation))
    return frozenset(found)


def owner(section: type[Section], name: str) -> type[Section]:
    """The class that declares the field, which may be a base of `section`."""
    return next(base for base in reversed(section.__mro__) if name in getattr(base, "model_fields", {}))


@dataclass
class Knowledge:
    """What is known of the whole package, and what has been read so far."""

    read: set[tuple[type[Section], str]] = field(default_factory=set)
    """(class, field); the class is the one that an object may be, not the one that declares the field"""
    properties: set[tuple[type[Section], str]] = field(default_factory=set)
    """methods and properties of sections that are used"""
    returns: dict[str, Types] = field(default_factory=lambda: defaultdict(frozenset))
    attributes: dict[str, Types] = field(default_factory=lambda: defaultdict(frozenset))
    """what an attribute of this name, of an object that is no section, may be"""
    aliases: dict[str, Types] = field(default_factory=dict)
    """names that the package's own modules give to unions of sections"""
    splats: list[str] = field(default_factory=list)

    def size(self) -> int:
        several = [*self.returns.values(), *self.attributes.values(), *self.aliases.values()]
        return len(self.read) + len(self.properties) + sum(map(len, several))


class Reader(ast.NodeVisitor):
    """Follows sections through one module."""

    def __init__(self, module: Module, knowledge: Knowledge, *, names: dict[str, object]) -> None:
        self.module = module
        self.known = knowledge
        self.names = names
        self.scopes: list[dict[str, Types]] = [{}]

    # Types of annotations and expressions

    def resolve(self, node: ast.AST) -> object:
        """The runtime object behind a name such as `Wsd` or `recipe.Model`, or None."""
        first, *rest = dotted(node).split(".")
        found = self.names.get(first)
        for part in rest:
            found = getattr(found, part, None)
        return found

    def annotated(self, node: ast.AST | None) -> Types:
        match node:
            case None:
                return NOTHING
            case ast.Constant(value=str(text)):
                try:
                    return self.annotated(ast.parse(text, mode="eval").body)
                except SyntaxError:  # not a type: the help text of a command's argument, say
                    return NOTHING
            case ast.Name() | ast.Attribute():
                return sections_in(self.resolve(node)) or self.known.aliases.get(dotted(node), NOTHING)
            case _:
                return union(self.annotated(child) for child in ast.iter_child_nodes(node))

    def infer(self, node: ast.AST | None) -> Types:
        match node:
            case ast.Name(id=name):
                return next((scope[name] for scope in reversed(self.scopes) if name in scope), NOTHING)
            case ast.Attribute(value=value, attr=attr):
                return self.attribute(self.infer(value), attr)
            case ast.Call():
                return self.called(node)
            case ast.NamedExpr(value=value) | ast.Await(value=value):
                return self.infer(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self.infer(body) | self.infer(orelse)
            case ast.BoolOp(values=values):
                return union(map(self.infer, values))
        return NOTHING

    def attribute(self, base: Types, attr: str) -> Types:
        if not base:
            return self.known.attributes.get(attr, NOTHING)
        for section in base:
            if attr in section.model_fields:
                self.known.read.add((section, attr))
            elif hasattr(section, attr):
                self.known.properties.add((section, attr))
        return union(sections_in(s.model_fields[attr].annotation) for s in base if attr in s.model_fields)

    def called(self, node: ast.Call) -> Types:
        made = sections_in(self.resolve(node.func))
        if made:
            return made
        if isinstance(node.func, ast.Attribute) and node.func.attr == "model_dump":
            self.dumped(node)
            return NOTHING
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"model_copy", "model_validate"}:
            return self.infer(node.func.value) or sections_in(self.resolve(node.func.value))
        # config.load(Recipe, ...), cast(Wsd, ...), replace(...)
        handed = union(sections_in(self.resolve(argument)) for argument in node.args)
        name = dotted(node.func).rpartition(".")[2]
        return handed if handed and name in {"load", "build", "cast"} else self.known.returns.get(name, NOTHING)

    def dumped(self, node: ast.Call) -> None:
        """`section.model_dump(include={"field"})` reads the fields that it names."""
        assert isinstance(node.func, ast.Attribute)
        for keyword in node.keywords:
            if keyword.arg == "include" and isinstance(keyword.value, ast.Set):
                for named in keyword.value.elts:
                    if isinstance(named, ast.Constant):
                        self.attribute(self.infer(node.func.value), str(named.value))

    # Statements

    def bind(self, target: ast.AST, found: Types) -> None:
        if not found:
            return
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = self.scopes[-1].get(target.id, NOTHING) | found
        elif isinstance(target, ast.Attribute):
            self.known.attributes[target.attr] |= found

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.known.returns[node.name] |= self.annotated(node.returns)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append({one.arg: found for one in arguments if (found := self.annotated(one.annotation))})
        self.generic_visit(node)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                self.known.attributes[statement.target.id] |= self.annotated(statement.annotation)
        own = self.names.get(node.name)
        self.scopes.append({"self": sections_in(own)} if own is not None else {})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        if len(self.scopes) == 1 and isinstance(node.targets[0], ast.Name):
            union_of = self.annotated(node.value) if isinstance(node.value, ast.BinOp | ast.Subscript) else NOTHING
            if union_of:
                self.known.aliases[node.targets[0].id] = union_of
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for left, right in pairs:
                self.bind(left, self.infer(right))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self.bind(node.target, self.annotated(node.annotation) | self.infer(node.value))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self.bind(node.target, self.infer(node.value))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.infer(node)
        self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        for section in sections_in(self.resolve(node.cls)):
            self.known.read.update((section, name) for name in node.kwd_attrs if name in section.model_fields)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name and isinstance(node.pattern, ast.MatchClass):
            self.bind(ast.Name(node.name), sections_in(self.resolve(node.pattern.cls)))

    def visit_Call(self, node: ast.Call) -> None:
        self.infer(node)
        for keyword in node.keywords:
            if keyword.arg is None and any(self.splat(inner) for inner in ast.walk(keyword.value)):
                self.known.splats.append(self.module.where(node.lineno))
        # getattr(section, "name") with a fixed name reads it.
        if dotted(node.func) == "getattr" and len(node.args) >= 2 and isinstance(node.args[1], ast.Constant):
            self.attribute(self.infer(node.args[0]), str(node.args[1].value))
        self.generic_visit(node)

    def splat(self, node: ast.AST) -> bool:
        return bool(self.infer(node)) or (isinstance(node, ast.Attribute) and node.attr in {"model_dump", "__dict__"})


def names_of(module: Module) -> dict[str, object]:
    """What the module's names for sections mean at run time."""
    found: dict[str, object] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("farthing"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if (node.module or "").startswith(ORIGINS):
                    origin = importlib.import_module(str(node.module))
                    found[alias.asname or alias.name] = (
                        getattr(origin, alias.name) if hasattr(origin, alias.name) else importlib.import_module(full)
                    )
                elif full in ORIGINS:
                    found[alias.asname or alias.name] = importlib.import_module(full)
    if module.name.startswith(ORIGINS):
        found |= vars(importlib.import_module(module.name))
    return found


def knowledge() -> Knowledge:
    """Read the whole package until nothing new is learnt. Recipe files count only through properties in use."""
    known = Knowledge()
    before = -1
    names = {module.name: names_of(module) for module in modules()}
    while known.size() > before:
        before = known.size()
        known.splats.clear()
        for module in modules():
            if module.package not in {"recipe", "section"}:
                Reader(module, known, names=names[module.name]).visit(module.tree)
        for section, name in list(known.properties):
            read_property(section, name, known)
    return known


def read_property(section: type[Section], name: str, known: Knowledge) -> None:
    """Count what a property or method of a section reads of it, now that something uses it."""
    code = inspect.getattr_static(section, name)
    function = code.fget if isinstance(code, property) else getattr(code, "__func__", code)
    if not isinstance(function, types.FunctionType) or not function.__module__.startswith("farthing."):
        return
    module = next(one for one in modules() if one.name == function.__module__)
    reader = Reader(module, known, names=names_of(module))
    reader.scopes.append({"self": frozenset({section})})
    reader.visit(ast.parse(textwrap.dedent(inspect.getsource(function))))
