"""Each module knows only the layers above it. The layers are those that docs/design.md draws, so the two cannot part."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xr_avocado"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").replace("__init__", ""): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Name below the package ("" for the package itself) -> file."""


def layers() -> dict[str, int]:
    """Read the drawing: a line says what a layer is, and indented below it are its modules: ``folder/ a.py b.py``."""
    drawing = (ROOT / "docs" / "design.md").read_text().split("## Layers")[1].split("```")[1]
    found: dict[str, int] = {}
    number = -1
    for line in drawing.strip().splitlines():
        folder = ""
        if not line.startswith(" "):
            number += 1
            continue
        for word in line.split():
            if word.endswith("/"):
                folder = word.replace("/", ".")
                found[folder.removesuffix(".")] = number
            elif word.endswith(".py"):
                found[folder + word.removesuffix(".py")] = number
    return found


def imports(path: Path, *, on_import: bool = False) -> Iterator[str]:
    """Name every module that a file imports; with ``on_import`` only what runs when the file itself is imported."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if on_import and isinstance(node, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef):
            continue
        if on_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the layer they reach into"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


@cache
def known_by(name: str) -> frozenset[str]:
    """Name the modules of the package that one of them imports, anywhere in it."""
    found = set()
    for imported in imports(MODULES[name]):
        package, *parts = imported.split(".")
        if package == "xr_avocado" and parts != ["__version__"]:
            while parts and ".".join(parts) not in MODULES:
                parts.pop()
            found.add(".".join(parts))
    return frozenset(found - {name})


def test_the_reader_sees_every_import(tmp_path):
    source = tmp_path / "some.py"
    source.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\ndef f():\n    import g\n    def h():\n        from i.j import k\n"
    )
    assert set(imports(source)) == {"a.b", "c.d", "e", "g", "i.j.k"}
    assert set(imports(source, on_import=True)) == {"a.b", "c.d"}


def test_every_module_has_a_layer():
    assert set(MODULES) - {""} == set(layers()), "docs/design.md draws the layers; add a new module to its line there"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_module_knows_only_the_layers_above(name):
    level = layers()
    assert name in level, f"docs/design.md draws no {name}: add it to the line it belongs to"
    below = {other for other in known_by(name) if other == "" or level.get(other, 0) > level[name]}
    assert not below, f"{name} imports {', '.join(sorted(below)) or 'the package itself'}, which lies below it"


def test_no_modules_know_each_other():
    graph = {name: set(known_by(name)) for name in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] == "model"])
def test_the_model_sees_arrays_only(name):
    labelled = {"xarray", "pandas", "dask", "zarr"}
    assert not labelled & {imported.split(".")[0] for imported in imports(MODULES[name])}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("model.")])
def test_heavy_packages_are_loaded_where_they_are_used(name):
    heavy = {"torch", "xgboost", "sklearn", "anndata", "pyranges", "bioframe", "matplotlib", "optuna"}
    assert not heavy & {imported.split(".")[0] for imported in imports(MODULES[name], on_import=True)}


def test_no_module_is_a_drawer_of_odds_and_ends():
    assert not {"utils", "util", "helpers", "common", "misc"} & {name.split(".")[-1] for name in MODULES}
