"""Nothing that is read is run: no pickle, eval or unsafe loader in the package, no secret in the repository, and the CI looks."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins
from xr_avocado.io.build import build_cube
from xr_avocado.io.export import to_bigwig

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "xr_avocado").rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "code", "telnetlib"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.hub.load",
    "pd.read_pickle",
    "pd.eval",
    "np.fromfile",
    "tarfile.open",
    "zipfile.ZipFile.extractall",
    "shutil.unpack_archive",
    "tempfile.mktemp",
}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & MODULES, f"line {node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            assert called(node) not in CALLS, f"line {node.lineno} calls {called(node)}"
            assert not called(node).endswith((".extractall", ".read_pickle", ".to_pickle")), f"line {node.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle", "False") == "False", f"line {node.lineno} allows pickle"
            assert given.get("shell", "False") == "False", f"line {node.lineno} runs a shell"
            if called(node) == "np.load":
                assert given.get("allow_pickle") == "False", f"line {node.lineno}: np.load without allow_pickle=False"


def test_the_walk_finds_what_it_looks_for(tmp_path):
    for text in ("import pickle", "from yaml import load", "eval('1')", "np.load(x)", "run(x, shell=True)"):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(AssertionError):
            test_nothing_that_is_read_is_run(tmp_path / "bad.py")


SECRETS = {
    "a private key": r"-----BEGIN (RSA |EC |OPENSSH |DSA |PGP )?PRIVATE KEY",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{30,}",
    "a PyPI token": r"\bpypi-AgE[A-Za-z0-9_-]{30,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a password in a URL": r"\b[a-z]+://[^\s/:@\"'{}<]+:[^\s/:@\"'{}<]{3,}@",
    "an assigned secret": r"(?i)\b(api_?key|secret|password|token)\s*[:=]\s*[\"'][A-Za-z0-9+/_-]{16,}[\"']",
}


@pytest.mark.parametrize("name", ["hg19' or name != '", "@pd.io.common.os.getcwd()", "x' == 'x", "`name`", "hg19\n"])
def test_the_name_of_an_assembly_is_no_expression(name):
    """bioframe has pandas evaluate it."""
    with pytest.raises(GenomeError, match="is neither a file nor an assembly"):
        chromosome_sizes(name)


def test_the_repository_holds_no_secret():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in SOURCES]
    paths = [ROOT / name for name in names if name and name != str(Path(__file__).relative_to(ROOT))]
    for path in paths:
        if path.is_file() and path.stat().st_size < 1 << 20:
            text = path.read_bytes().decode("utf-8", "ignore")
            found = [what for what, pattern in SECRETS.items() if re.search(pattern, text)]
            assert not found, f"{path.relative_to(ROOT)} seems to hold {found[0]}"


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_recognized(what):
    samples = {
        "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
        "an AWS key": "AKIA" + "ABCDEFGHIJKLMNOP",
        "a GitHub token": "ghp_" + "a1" * 18,
        "a PyPI token": "pypi-AgE" + "IcHl" * 10,
        "a Slack token": "xoxb-" + "1234567890-abc",
        "a password in a URL": "https://me:" + "hunter2@example.org",
        "an assigned secret": "api_key = '" + "x1" * 10 + "'",
    }
    assert re.search(SECRETS[what], samples[what])


@pytest.mark.parametrize(
    "label", ["../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\0b", "con\n", "~", "$HOME", " "]
)
def test_a_label_cannot_write_outside_the_folder(tmp_path, label):
    cube = xr.Dataset(
        {
            "signal": (("celltype", "assay", "position"), np.ones((1, 1, 2), np.float32)),
            "observed": (("celltype", "assay"), [[True]]),
        },
        coords={"celltype": [label], "assay": [label]},
        attrs={"chromsizes": {"chr1": 50}},
    )
    cube = assign_bins(cube, GenomeBins([("chr1", 0, 50)], 25))
    out = tmp_path / "deep" / "out"
    files = to_bigwig(cube, out, variable="signal", progress=False)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 and all(path.parent == out for path in written)
    assert [Path(path).parent for path in files.path] == [out]
    cube.avocado.to_chromhmm(tmp_path / "deep" / "states", variable="signal", binsize=25, progress=False)
    store = tmp_path / "deep" / "cube.zarr"
    # A sheet's cells are stripped, and a line that ends in one is two.
    if (kept := label.strip()) and "\0" not in label:
        sheet = pd.DataFrame({"celltype": [kept], "assay": kept, "path": files.path.iloc[0]})
        built = build_cube(sheet, store, genome={"chr1": 50}, n_jobs=1, progress=False)
        assert built.celltype.values.tolist() == [kept]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.parent in (out, out.with_name("states")) or path.is_relative_to(store)
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}


def test_the_ci_audits_the_dependencies():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert "pip-audit --strict" in workflow and "gitleaks" in workflow
