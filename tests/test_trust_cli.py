"""Every command against what people give it by mistake: one line that says what is wrong, exit code 2, no work and nothing written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import xr_avocado as xa
from xr_avocado.cli import main
from xr_avocado.cube import CubeError

SIZES = {"chr1": 30_010, "chr2": 10_003}
HELD = "C2:H3K27ac"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all commands: bigWigs and their sheet, a cube, a fitted one, and files that are none of these."""
    home = tmp_path_factory.mktemp("made")
    panel = xa.datasets.simulate(3, 3, SIZES)
    panel.avocado.to_bigwig(home / "tracks", variable="signal", progress=False)
    panel.avocado.to_zarr(home / "cube.zarr", progress=False)
    fitted = panel.avocado.hold_out([tuple(HELD.split(":"))]).avocado.fit("small", epochs=1, progress=False)
    fitted.avocado.to_zarr(home / "fitted.zarr", progress=False)
    xa.datasets.simulate(4, 3, SIZES).isel(celltype=[3]).avocado.to_zarr(home / "more.zarr", progress=False)
    (home / "sizes.txt").write_text("".join(f"{chrom}\t{size}\n" for chrom, size in SIZES.items()))
    (home / "empty").touch()
    (home / "header.tsv").write_text("celltype\tassay\tpath\n")
    (home / "gone.tsv").write_text("celltype\tassay\tpath\nC1\tA\tgone.bw\n")
    (home / "elsewhere.bed").write_text("chr9\t0\t100\n")
    (home / "noise").write_bytes(np.random.default_rng(0).bytes(2_000))
    (home / "list.json").write_text("[1, 2]")
    (home / "unknown.json").write_text('{"depth": 3}')
    (home / "mine").mkdir()
    (home / "mine" / "letter.txt").write_text("Dear Sir")
    shutil.copytree(home / "cube.zarr", home / "torn.zarr")
    (home / "torn.zarr" / "observed" / "zarr.json").unlink()
    shutil.copytree(home / "cube.zarr", home / "flipped.zarr")
    for chunk in (home / "flipped.zarr" / "signal" / "c").rglob("*"):
        if chunk.is_file():
            content = bytearray(chunk.read_bytes())
            content[len(content) // 2] ^= 1
            chunk.write_bytes(content)
    return home


BUILD = "build {in}/tracks/samples.tsv out.zarr --genome {in}/sizes.txt"
RIGHT: dict[str, str] = {
    "demo": "demo --out out",
    "build": BUILD,
    "fit": "fit {in}/cube.zarr --out out.zarr",
    "extend": "extend {in}/fitted.zarr {in}/more.zarr --out out.zarr",
    "impute": "impute {in}/fitted.zarr out",
    "embed": "embed {in}/fitted.zarr out.tsv",
    "evaluate": "evaluate {in}/fitted.zarr --truth {in}/cube.zarr --out out.tsv --plot out.png",
    "segment": "segment {in}/fitted.zarr out.bed --states 3",
    "report": "report {in}/fitted.zarr out.html --truth {in}/cube.zarr",
    "search": "search {in}/cube.zarr --file out.jsonl --out out.json --plot out.png",
    "qc": "qc {in}/cube.zarr --out out.tsv --plot out.png",
    "info": "info {in}/cube.zarr",
}
"""A call of each command that is right: a wrong one has another value in one place, or an option more."""

STORES = {
    "build": (),
    "demo": (),
    "extend": ("fitted", "more"),
    "evaluate": ("fitted", "cube"),
    "report": ("fitted", "cube"),
}
NO_STORE = {
    "none.zarr": "there is no store",
    "empty": "cannot be read as a zarr store",
    "mine": "cannot be read as a zarr store",
    "torn.zarr": "cannot be read as a zarr store",
}


def instead(command: str, old: str, new: str) -> str:
    assert old in RIGHT[command], f"{old} is not in {RIGHT[command]}"
    return RIGHT[command].replace(old, new)


WRONG: list[tuple[str, str]] = []
"""A call, and what its line says."""
for command in RIGHT:
    fitted = command in ("impute", "embed", "segment")
    for store in STORES.get(command, ("fitted",) if fitted else ("cube",)):
        WRONG += [(instead(command, f"{{in}}/{store}.zarr", f"{{in}}/{bad}"), says) for bad, says in NO_STORE.items()]
        WRONG += [(instead(command, f"{{in}}/{store}.zarr", "''"), "there is no store")]
    if fitted or command == "extend":
        WRONG += [(instead(command, "{in}/fitted.zarr", "{in}/cube.zarr"), "fit")]
for command, name in {
    "demo": "out", "build": "out.zarr", "fit": "out.zarr", "extend": "out.zarr", "impute": "out", "embed": "out.tsv", "segment": "out.bed",
    "report": "out.html", "search": "out.jsonl", "qc": "out.tsv", "evaluate": "out.tsv",
}.items():  # fmt: skip
    at = f" {name}"
    WRONG += [
        (
            instead(command, at, f" /proc/none/{name}"),
            f"/proc/none/{name}.* cannot be written: No such file or directory",
        ),
        (instead(command, at, f" {{in}}/empty/{name}"), "cannot be written: .*a part of its path is a file"),
        (instead(command, at, f" s3://bucket/{name}"), "path of this machine"),
        (instead(command, at, f" {name.replace('out', 'o' * 300)}"), "cannot be written: File name too long"),
    ]
for command in ("evaluate", "qc", "search"):
    WRONG += [
        (instead(command, "out.png", "/proc/none/out.png"), "/proc/none/out.png cannot be written"),
        (instead(command, "out.png", "out.xls"), "write figures to .png, .pdf, .svg"),
    ]
WRONG += [
    # Nothing where something is needed, as an unset variable of a shell gives it.
    *((f"{RIGHT[command]} --{option} ''", says) for command, option, says in [
        ("build", "genome", "is neither a file nor an assembly"), ("build", "regions", "region|no file"), ("fit", "out", "path of this machine"),
        ("fit", "config", " cannot be read"), ("extend", "out", "path of this machine"), ("impute", "region", "region"),
        ("embed", "regions", "region"), ("evaluate", "out", "path of this machine"), ("evaluate", "plot", "write figures to"),
        ("evaluate", "genes", "region|no file"), ("segment", "regions", "region"), ("search", "file", "path of this machine"),
        ("search", "space", " cannot be read"), ("search", "out", "path of this machine"), ("qc", "plot", "write figures to"),
        ("demo", "out", "path of this machine"),
    ]),
    # What is there already, and is not ours to replace.
    (instead("build", "out.zarr", "{in}/mine"), "is no zarr store, so it is not replaced"),
    (instead("build", "out.zarr", "{in}/fitted.zarr"), "holds more than signal"),
    (instead("fit", "out.zarr", "{in}/mine"), "is no zarr store, so it is not replaced"),
    (instead("fit", "out.zarr", "{in}/cube.zarr"), "holds no model"),
    (instead("fit", "out.zarr", "{in}/fitted.zarr"), "is of another call"),
    (instead("extend", "out.zarr", "{in}/mine"), "is there already; give --overwrite"),
    (instead("extend", "out.zarr", "{in}/mine") + " --overwrite", "is no zarr store, so it is not replaced"),
    (instead("extend", "out.zarr", "{in}/cube.zarr"), "is there already; give --overwrite"),
    (instead("impute", " out", " {in}/mine") + " --format zarr", "is there already|is no zarr store"),
    (instead("impute", " out", " {in}/cube.zarr") + " --format zarr", "is there already"),
    (instead("impute", " out", " {in}/empty"), "a part of its path is a file"),
    (instead("segment", "out.bed", "{in}/mine"), "a folder is there"),
    (instead("report", "out.html", "{in}/mine"), "a folder is there"),
    (instead("qc", "out.tsv", "{in}/mine"), "a folder is there"),
    (instead("search", "out.jsonl", "{in}/sizes.txt"), "is there already and holds no search"),
    (instead("search", "out.json", "{in}/mine"), "a folder is there|No search"),
    (instead("demo", " out", " {in}"), "is there and no demo's, so it is not replaced"),
    # Sheets, genomes and regions.
    (instead("build", "tracks/samples.tsv", "none.tsv"), "there is no sheet"),
    (instead("build", "tracks/samples.tsv", "empty"), "is no TSV or CSV file"),
    (instead("build", "tracks/samples.tsv", "header.tsv"), "has no rows"),
    (instead("build", "tracks/samples.tsv", "gone.tsv"), "gone.bw is not there"),
    (instead("build", "tracks/samples.tsv", "noise"), "noise is no|noise is not UTF-8"),
    (instead("build", "tracks/samples.tsv", "mine"), "is a folder"),
    (instead("build", "{in}/sizes.txt", "hg99"), "neither a file nor an assembly"),
    (instead("build", "{in}/sizes.txt", "{in}/empty"), "is not a chrom.sizes file"),
    (instead("build", "{in}/sizes.txt", "{in}/noise"), "is not a chrom.sizes file"),
    (instead("build", "{in}/sizes.txt", "hg38"), "in the assembly"),
    (BUILD + " --regions {in}/none.bed", "there is no file"),
    (BUILD + " --regions {in}/empty", "holds no intervals"),
    (BUILD + " --regions {in}/elsewhere.bed", "'chr9' is not here"),
    (BUILD + " --regions chr1:9Mb-10Mb", "chr1 ends at 30,010"),
    (BUILD + " --binsize 0", "bin"),
    (BUILD + " --binsize -25", "bin"),
    (BUILD + " --n-jobs 0", "n_jobs must be at least 1; got 0"),
    # Labels, regions and numbers.
    *((f"{RIGHT['fit']} {option}", says) for option, says in {
        "--hold-out C9:DNase": "'C9' is not a celltype",
        "--hold-out C1:ATAC": "'ATAC' is not an assay",
        "--hold-out C1": "write CELLTYPE:ASSAY",
        "--hold-out :": "write CELLTYPE:ASSAY",
        "--epochs 0": "epochs must be at least 1; got 0",
        "--epochs -3": "epochs must be at least 1; got -3",
        "--seed -1": "seed must be at least 0; got -1",
        "--checkpoint-minutes -1": "checkpoint_minutes",
        "--checkpoint-minutes nan": "checkpoint_minutes",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
        "--config {in}/none.json": "none.json cannot be read: No such file",
        "--config {in}/mine": "mine cannot be read: Is a directory",
        "--config {in}/noise": "noise is not JSON",
        "--config {in}/empty": "empty is not JSON",
        "--config {in}/list.json": "does not hold settings by name",
        "--config {in}/unknown.json": "'depth' is not a model setting",
    }.items()),
    *((f"{RIGHT['extend']} {option}", says) for option, says in {
        "--epochs 0": "epochs must be at least 1; got 0",
        "--seed -1": "seed must be at least 0; got -1",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
        "--only-new": "only_new and client are for new positions",
    }.items()),
    *((f"{RIGHT['impute']} {option}", says) for option, says in {
        "--celltype C9": "'C9' is not a celltype",
        "--assay ATAC": "'ATAC' is not an assay",
        "--track C9:DNase": "'C9' is not a celltype",
        "--track C1": "write CELLTYPE:ASSAY",
        "--region chr9:0-100": "'chr9'",
        "--region chr1:9Mb-10Mb": "chr1",
        "--region chr1:100-50": "is empty: its start must be below its end|is not a region",
        "--region {in}/none.bed": "there is no file",
        "--region {in}/empty": "empty",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
    }.items()),
    *((f"{RIGHT['embed']} {option}", says) for option, says in {
        "--scale 7": "7 bp",
        "--regions chr9": "'chr9'",
        "--regions {in}/none.bed": "there is no file",
    }.items()),
    (instead("embed", "out.tsv", "out.xls"), ".tsv or .bed"),
    (instead("embed", "out.tsv", "out.bed") + " --axis celltype", ".tsv or .h5ad"),
    *((f"{RIGHT['evaluate']} {option}", says) for option, says in {
        "--track C9:DNase": "'C9' is not a celltype",
        "--track C1:ATAC": "'ATAC' is not an assay",
        "--method guess": "'guess' is neither a layer",
        "--method theirs={in}/none": "is neither a layer",
        "--method theirs={in}/mine": "mine has no bigWig of",
        "--measure accuracy": "accuracy",
        "--genes {in}/none.bed": "there is no file",
        "--genes {in}/empty": "holds no intervals",
        "--genes {in}/elsewhere.bed": "none of the 1 genes overlaps a bin",
        "--enhancers {in}/noise": "noise cannot be read as text",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
    }.items()),
    *((f"{RIGHT['segment']} {option}", says) for option, says in {
        "--states 1": "n_states must be at least 2; got 1",
        "--states 90000": "are too few for 90000 states",
        "--regions chr9": "'chr9'",
        "--seed -1": "seed must be at least 0; got -1",
    }.items()),
    *((f"{RIGHT['report']} {option}", says) for option, says in {
        "--region chr9:0-100": "'chr9'",
        "--region chr1:9Mb-10Mb": "chr1",
        "--genes {in}/none.bed": "there is no file",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
    }.items()),
    *((f"{RIGHT['search']} {option}", says) for option, says in {
        "--trials 0": "trials must be at least 1; got 0",
        "--epochs 0": "epochs must be at least 1; got 0",
        "--seed -1": "seed must be at least 0; got -1",
        "--folds 0": "folds",
        "--folds 99": "folds",
        "--folds some": "folds",
        "--measure accuracy": "accuracy",
        "--measure mseprom": "needs an annotation",
        "--space {in}/none.json": "none.json cannot be read",
        "--space {in}/list.json": "does not hold settings by name",
        "--space {in}/unknown.json": "depth",
        "--device tpu-ish": "device 'tpu-ish' is not at hand",
    }.items()),
    (instead("qc", "{in}/cube.zarr", "{in}/flipped.zarr"), "is damaged: its contents do not have the checksum"),
    (instead("fit", "{in}/cube.zarr", "{in}/flipped.zarr"), "is damaged: its contents do not have the checksum"),
]  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "says"), WRONG, ids=[line.replace("{in}/", "") for line, _ in WRONG])
def test_a_mistake_is_one_line_and_no_work(made, tmp_path, monkeypatch, capsys, line, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xr_avocado.model.training.Trainer.step", lambda *_, **__: pytest.fail("it trained first"))
    before = files_of(made)
    words = ["" if word == "''" else word.replace("{in}", str(made)) for word in line.split()]
    assert main([*words, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("xr-avocado: error: "), err
    assert re.search(says, err), err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert files_of(made) == before, "nothing is changed"


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (command, more)
        for command in RIGHT
        for more in ("--no-such-option", "--binsize wide", "one too many", None)
        # A demo needs nothing more.
        if more or command != "demo"
    ],
)
def test_what_the_command_does_not_know_ends_with_usage(tmp_path, monkeypatch, capsys, command, more):
    monkeypatch.chdir(tmp_path)
    words = [command] if more is None else [*RIGHT[command].split(), *more.split()]
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.startswith("usage: xr-avocado") and "error: " in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", RIGHT)
def test_the_call_that_wrong_ones_differ_from_is_taken(made, tmp_path, monkeypatch, capsys, command):
    """Up to the work, which is left out where it would be long."""
    monkeypatch.chdir(tmp_path)

    def work(*_: object, **__: object) -> None:
        raise CubeError("here work begins")

    monkeypatch.setattr("xr_avocado.demo._panel", work)
    monkeypatch.setattr("xr_avocado.fit.load_panel", work)
    monkeypatch.setattr("xr_avocado.extend_labels.load_panel", work)
    monkeypatch.setattr("xr_avocado.search._run", work)
    words = [word.replace("{in}", str(made)) for word in RIGHT[command].split()]
    code, (out, err) = main([*words, "--quiet"]), capsys.readouterr()
    if command in ("demo", "fit", "extend", "search"):
        assert code == 2 and err == "xr-avocado: error: here work begins\n"
    else:
        assert code == 0 and out


def test_out_of_memory_is_one_line(made, capsys, monkeypatch):
    import torch

    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("xr_avocado.summary.summary", full)
    assert main(["info", str(made / "cube.zarr")]) == 2
    assert capsys.readouterr().err == "xr-avocado: error: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    monkeypatch.setattr("xr_avocado.summary.summary", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["info", str(made / "cube.zarr")])
