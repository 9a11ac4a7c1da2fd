"""The arrows between packages point down only, and importing the library loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("vision", "vision_language", "commonsense_reasoning")
HEAVY = (
    "transformers",
    "peft",
    "timm",
    "open_clip",
    "torchvision",
    "datasets",
    "hydra",
    "omegaconf",
    "wandb",
    "bitsandbytes",
    "submitit",
)

FOUNDATION = tuple(
    f"randlora_core.{name}" for name in ("command_line", "errors", "extras", "files", "machine", "splitmix", "streams")
)
"""Modules that import nothing of this repository but each other, which every package may import."""

# Package -> packages of this repository that it may import, itself and FOUNDATION left out.
ALLOWED = {
    "randlora_core.ops": (),
    "randlora_core.adapters": ("randlora_core.ops",),
    "randlora_core.models": ("randlora_core.adapters", "randlora_core.ops"),
    "randlora_core.datasets": ("randlora_core.adapters", "randlora_core.ops"),
    "randlora_core.experiment": (
        "randlora_core.adapters",
        "randlora_core.ops",
        "randlora_core.models",
        "randlora_core.datasets",
    ),
    **dict.fromkeys((*EXPERIMENTS, "tools"), ("randlora_core",)),
}
"""Modules directly in randlora_core (the public names, the benchmark) may import all of it, and no experiment."""

# What adapters and ops may import at module level, beside the standard library and this repository.
LIGHT = {"torch", "safetensors", "numpy"}
KERNELS = "randlora_core.ops.triton_blocks"
"""Imports Triton, and is itself imported by functions only."""


def sources() -> list[Path]:
    return [
        path for package in ("randlora_core", *EXPERIMENTS, "tools") for path in sorted((ROOT / package).rglob("*.py"))
    ]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> list[str]:
    """Full names that a syntax tree imports; `from a import b` counts as a.b, whether b is a module or not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree without function bodies and without blocks for type checkers."""

    class Pruner(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Pruner().visit(tree)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden_arrows(module: str, imported: list[str]) -> list[str]:
    """Imports of this repository that the package of `module` may not make."""
    own = next((package for package in ALLOWED if inside(module, package)), None)
    here = ("randlora_core", *EXPERIMENTS, "tools", "scripts", "tests")
    local = [name for name in imported if name.split(".")[0] in here]
    if own is None:
        return [name for name in local if not inside(name, "randlora_core")]
    allowed = (own, *ALLOWED[own], *FOUNDATION)
    return [name for name in local if not any(inside(name, package) for package in allowed)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    module = module_name(path)
    imported = imports(parse(path), module, is_package=path.name == "__init__.py")
    assert forbidden_arrows(module, imported) == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_inside_functions(path):
    module = module_name(path)
    if not inside(module, "randlora_core"):
        pytest.skip("an experiment or a tool may import them")
    tree = at_module_level(parse(path))
    roots = {name.split(".")[0] for name in imports(tree, module, is_package=path.name == "__init__.py")}
    assert not roots & set(HEAVY)
    if inside(module, "randlora_core.adapters") or inside(module, "randlora_core.ops"):
        allowed = {*LIGHT, "triton"} if module == KERNELS else LIGHT
        assert roots <= {*sys.stdlib_module_names, *allowed, "randlora_core"}


def import_graph(imported: dict[str, list[str]]) -> dict[str, set[str]]:
    """Module -> the modules of the same dictionary that it imports, anywhere in its text.

    A name stands for the module that has it: `a.b.c` is the module a.b where a.b.c is none.
    """
    graph: dict[str, set[str]] = {}
    for module, names in imported.items():
        graph[module] = set()
        for name in names:
            while name not in imported and "." in name:
                name = name.rpartition(".")[0]
            if name in imported and name != module:
                graph[module].add(name)
    return graph


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The largest groups of modules that import each other, directly or through others of the group."""
    reached = {module: set(names) for module, names in graph.items()}
    for middle in graph:  # Warshall's transitive closure
        for names in reached.values():
            if middle in names:
                names |= reached[middle]
    return {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }


def test_no_modules_of_the_library_import_each_other_in_a_circle():
    """Imports inside functions and for type checkers count as well: they hide a circle, but do not open it."""
    paths = {module_name(path): path for path in sources() if inside(module_name(path), "randlora_core")}
    imported = {
        module: imports(parse(path), module, is_package=path.name == "__init__.py") for module, path in paths.items()
    }
    assert circles(import_graph(imported)) == set()


def test_circles_are_found():
    imported = {
        "p": ["p.a.f"],
        "p.a": ["p.b.g", "torch"],
        "p.b": ["p.c"],
        "p.c": ["p.a", "p.d"],
        "p.d": ["p.e.x.y"],
        "p.e": ["os"],
    }
    assert circles(import_graph(imported)) == {("p.a", "p.b", "p.c")}


def test_there_is_something_to_check():
    names = {module_name(path) for path in sources()}
    assert {"randlora_core", "randlora_core.adapters.randlora", "randlora_core.ops.linear"} <= names


def test_the_check_finds_forbidden_arrows():
    def arrows(module: str, source: str, *, is_package: bool = False) -> list[str]:
        return forbidden_arrows(module, imports(ast.parse(source), module, is_package=is_package))

    assert arrows("randlora_core.ops.linear", "from randlora_core.adapters import lora")
    assert arrows("randlora_core.adapters.lora", "def f():\n    import randlora_core.models.registry")
    assert arrows("randlora_core.adapters.lora", "from ..experiment import ledger")
    assert arrows("randlora_core.adapters", "from ..experiment import ledger", is_package=True)
    assert arrows("vision.train", "from vision_language import train")
    assert arrows("randlora_core.benchmark", "import vision")
    assert arrows("randlora_core.models.mini_clip", "def f():\n    from tools.pretrain_mini_clip import train")
    assert arrows("tools.capabilities_page", "import vision_language")
    assert arrows("randlora_core.adapters.lora", "from randlora_core import models")
    assert not arrows("vision.train", "from randlora_core.experiment import ledger")
    assert not arrows("randlora_core.adapters.lora", "from .layer import Update\nfrom randlora_core import ops")
    pruned = at_module_level(ast.parse("import a\ndef f():\n    import b\nif TYPE_CHECKING:\n    import c\n"))
    assert imports(pruned, "m", is_package=False) == ["a"]


@pytest.mark.parametrize("module", ["randlora_core", "randlora_core.models", "randlora_core.datasets"])
def test_importing_the_library_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "torch" in loaded and "randlora_core" in loaded
    assert not loaded & set(HEAVY)
