"""Who may import whom: no circle among the modules of l2c, and the arrows between its rooms.

Every module is parsed, none is run. An import inside a function counts like any other, so that a circle cannot be held
open by hiding it there; so does one under TYPE_CHECKING. `from l2c.a import b` is an import of the module l2c.a.b where
there is one, else of l2c.a; that a package is entered on the way to its modules does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# (importer, what it loads) -> why it may be loaded late. These close no circle: what is loaded is optional.
LAZY = {
    ("l2c.ops.extension", "l2c._C"): "built from csrc/; the first call that needs it says what is missing",
    ("l2c.ops.extension", "l2c._cuda"): "built only where L2C_CUDA=1 asked for it",
    ("l2c.ops.extension", "l2c.kernels"): "needs Triton, which is optional and slow to import",
    ("l2c", "l2c.codec"): "loads PyTorch: `import l2c` and `l2c --help` do without",
}

# Room -> the rooms that its modules may import besides themselves; "" is the package itself, for its version.
# A room is the first part of a name after l2c. To add one is one line.
ARROWS = {
    "errors": set(),
    "files": {"errors"},
    "arrays": {"errors"},
    "devices": {"errors"},
    "settings": {"errors"},
    "registry": {"errors", "settings"},
    "format": {"errors", "arrays"},
    "images": {"errors", "files", "arrays", "format"},
    "kernels": {"ops.contract"},
    "ops": {"errors", "arrays", "format"},
    "architectures": {"errors"},
    "transforms": {"errors", "registry", "architectures", "ops"},
    "exact": {"errors", "transforms", "ops"},
    "entropy": {"errors", "registry", "arrays", "architectures", "format", "ops"},
    "compressai": {"errors", "architectures", "format", "images", "transforms", "entropy", "config", "models"},
    "config": {"errors", "settings", "format", "transforms", "entropy"},
    "adapt": {"errors", "arrays", "config", "format", "ops", "transforms", "entropy", "metrics", "objective", "models",
              "rate_control"},
    "rate_control": {"format"},
    "guard": {"rate_control"},
    "search": {"errors", "format", "adapt.effort", "adapt.savings", "guard", "rate_control"},
    "codec": {"errors", "arrays", "devices", "format", "images", "ops", "transforms", "exact", "entropy", "adapt",
              "models", "metrics", "objective", "guard", "rate_control", "search"},
    "pillow": {"errors", "format", "images", "codec"},
    "bulk": {"errors", "files", "format", "images", "models", "codec"},
    "torch_data": {"errors", "files", "format", "models", "codec", "bulk.batching", "bulk.places", "bulk.shards",
                   "bulk.sources"},
    "metrics": set(),
    "objective": {"format", "metrics", "transforms"},
    "models": {"errors", "files", "config", "transforms", "exact", "entropy", "adapt"},
    "text_tables": set(),
    "train": {"", "errors", "files", "settings", "devices", "format", "images", "ops", "transforms", "exact", "entropy",
              "config", "metrics", "objective", "models", "adapt", "text_tables"},
    "evaluate": {"", "errors", "files", "arrays", "format", "images", "ops", "transforms", "metrics", "objective",
                 "adapt", "codec", "train", "text_tables"},
    "cli": {"", "bulk", "errors", "files", "config", "devices", "format", "images", "transforms", "adapt.effort",
            "models", "codec", "compressai", "evaluate", "train", "text_tables"},
    "": {"errors", "format", "models", "adapt.effort"},
    "__main__": {"cli"},
}  # fmt: skip


def modules() -> dict[str, Path]:
    """All modules of l2c by name; kernels/ installs as l2c.kernels."""
    found = {}
    for folder, package in ((ROOT / "l2c", "l2c"), (ROOT / "kernels", "l2c.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module of l2c) for every import in a module, wherever it stands, and each `import_module("l2c...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if part in MODULES else str(node.module) for part in parts]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            names = [_literal(node.args[0])]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "l2c")


def _literal(argument: ast.expr) -> str:
    """The text of a literal, or its beginning where the rest is computed: "l2c.kernels" of f"l2c.kernels.{name}"."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    return str(first.value).rstrip(".") if isinstance(first, ast.Constant) else ""


def graph() -> dict[str, dict[str, int]]:
    """Importer -> what it imports -> at which line; without LAZY."""
    found: dict[str, dict[str, int]] = {}
    for name, path in MODULES.items():
        edges = found.setdefault(name, {})
        for line, other in imports(ast.parse(path.read_text())):
            if other != name and (name, other) not in LAZY:
                edges.setdefault(other, line)
    return found


def circles(edges: dict[str, dict[str, int]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges.get(name, {}):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in edges:
        if name not in index:
            visit(name)
    return found


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def is_allowed(room: str, other: str) -> bool:
    """Whether a module of a room may import the module `other`."""
    if room_of(other) == room:
        return True
    rest = other.removeprefix("l2c").removeprefix(".")
    return any(rest == allowed or (allowed and rest.startswith(f"{allowed}.")) for allowed in ARROWS[room])


def test_no_circle() -> None:
    assert circles(graph()) == []


def test_every_room_is_named() -> None:
    assert {room_of(name) for name in MODULES} == set(ARROWS)


def test_arrows() -> None:
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{line}: {name} may not import {other}"
        for name, edges in graph().items()
        for other, line in edges.items()
        if not is_allowed(room_of(name), other)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line() -> None:
    found = {name for name, edges in graph().items() if any(room_of(other) == "cli" for other in edges)}
    assert {name for name in found if room_of(name) != "cli"} == {"l2c.__main__"}


def test_lazy_imports_are_there() -> None:
    """The list of exceptions holds nothing that has gone."""
    there = {(name, other) for name, path in MODULES.items() for _, other in imports(ast.parse(path.read_text()))}
    assert set(LAZY) <= there


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b": 1}, "b": {"c": 1}, "c": {"b": 1, "d": 1}, "d": {}}) == [["b", "c"]]
    tree = ast.parse("def late():\n    from l2c.ops import contract, mixture_bits")
    assert {name for _, name in imports(tree)} == {"l2c.ops.contract", "l2c.ops"}
    tree = ast.parse("importlib.import_module(f'l2c.kernels.{name}')")
    assert list(imports(tree)) == [(1, "l2c.kernels")]
    assert not is_allowed("kernels", "l2c.ops.extension") and is_allowed("kernels", "l2c.ops.contract")
