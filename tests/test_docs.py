"""What people read is true: every public name is documented with an example, and every block of code in the README and the docs runs."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import xr_avocado as xa
from xr_avocado.accessor import AvocadoAccessor

ROOT = Path(__file__).parents[1]
DOCS = sorted(
    path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts and "tutorials" not in path.parts
)
PAGES = [ROOT / "README.md", *DOCS]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MODULES = [name for name in xa.__all__ if inspect.ismodule(getattr(xa, name))]


def public() -> dict[str, Any]:
    """Name everything that users are told of."""
    names = {name: getattr(xa, name) for name in xa.__all__ if name not in MODULES}
    names |= {f"ds.avocado.{name}": what for name, what in vars(AvocadoAccessor).items() if not name.startswith("_")}
    for module in MODULES:
        here = getattr(xa, module)
        names |= {f"{module}.{name}": getattr(here, name) for name in here.__all__}
    return names


def blocks(page: Path, language: str) -> Iterator[str]:
    """Blocks of code of a page, in their order."""
    for block in re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.M | re.S):
        yield textwrap.dedent(block[1])


@pytest.mark.parametrize("name", public())
def test_every_public_name_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(public()[name]) or ""
    assert text.splitlines()[0].endswith((".", ":", "?")), f"{name} has no first line"
    assert ">>>" in text, f"{name} has no example"


@pytest.mark.parametrize(
    "name", [n for n, what in public().items() if inspect.isfunction(what) and not n.startswith("evaluate.")]
)
def test_every_argument_of_a_public_function_is_described(name):
    function = public()[name]
    section = inspect.getdoc(function).partition("Parameters\n----------\n")[2].split("\n\n")[0]
    described = {
        word.strip("* ") for line in re.findall(r"^\S.*$", inspect.getdoc(function), re.M) for word in line.split(",")
    }
    missing = [p for p in inspect.signature(function).parameters if p not in ("self", "ds") and p not in described]
    assert not missing, f"{name} does not say what {missing} are{'' if section else ': it has no section Parameters'}"


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    listed = {line.strip() for line in page.splitlines()}
    names = {name.replace("ds.avocado", "Dataset.avocado") for name in public()} - {
        "evaluate.evaluate",
        "evaluate.cross_validate",
    }
    assert not sorted(names - listed - {"to_keras"})


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages say a reader has: a demo, a sheet of bigWigs of hg38, a BED file."""
    import pandas as pd

    from xr_avocado.assembly import chromosome_sizes
    from xr_avocado.genome import GenomeBins
    from xr_avocado.index import assign_bins

    monkeypatch.chdir(tmp_path)
    sizes = {"chr1": 300_000}
    panel = xa.datasets.simulate(n_celltypes=4, n_assays=5, chromsizes=sizes)
    hg38 = chromosome_sizes("hg38")
    pilot = pd.DataFrame({"chrom": ["chr1"], "start": [1_000_000], "end": [1_300_000]})
    pilot.to_csv("pilot.bed", sep="\t", header=False, index=False)
    bare = panel.drop_vars(["chrom", "start", "end"])
    moved = assign_bins(bare, GenomeBins.from_regions(pilot, 25, hg38)).assign_attrs(genome="hg38", chromsizes=hg38)
    run = [pair for pair in moved.avocado.experiments if pair != ("C2", "H3K27ac")]
    moved.avocado.to_bigwig("tracks", variable="signal", tracks=run, progress=False)
    sheet = pd.read_csv("tracks/samples.tsv", sep="\t")
    sheet.assign(path=[str(tmp_path / "tracks" / Path(p).name) for p in sheet.path]).to_csv(
        "samples.tsv", sep="\t", index=False
    )
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as little as a test may: pages show the calls of real work."""
    import importlib

    fit = importlib.import_module("xr_avocado.fit")
    resolve = fit.resolve_config

    def tiny(*args: Any, **kwargs: Any) -> Any:
        return resolve(*args, **kwargs).updated({"context_samples": 2_000, "context_members": 1, "epochs": 1})

    monkeypatch.setattr(fit, "resolve_config", tiny)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=lambda p: p.stem)
def test_blocks_of_python_run(page: Path, desk: Path, quick: None):
    if "demo/" in page.read_text():
        from xr_avocado.demo import run_demo

        run_demo("demo", progress=False)
    code = [block for block in blocks(page, "python") if "datasets.pretrained(" not in block]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in code:
        exec(compile(block, f"{page.name}", "exec"), namespace)


def commands(page: Path) -> Iterator[list[str]]:
    for block in (*blocks(page, "bash"), *blocks(page, "console")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("xr-avocado "):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("words", [pytest.param(c, id=" ".join(c)) for page in PAGES for c in commands(page)])
def test_commands_of_the_pages_are_commands(words: list[str]):
    from xr_avocado import cli

    cli._parser().parse_args(words)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_tutorials_are_kept_without_their_outputs(path: Path):
    book = json.loads(path.read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]


def test_links_between_pages_lead_somewhere():
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            beside = page.parent / target
            if not any(
                path.exists()
                for path in (beside, beside.with_suffix(".md"), beside.with_suffix(".ipynb"), Path(f"{beside}.ipynb"))
            ):
                lost.append(f"{page.name}: {target}")
    assert not lost
