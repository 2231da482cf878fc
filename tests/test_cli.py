from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado.cli import main

SIZES = {"chr1": 40_010, "chr2": 20_003}
HELD = ("C2", "H3K27ac")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sheet of bigWigs, a cube built of them and a fitted one, all made by commands."""
    folder = tmp_path_factory.mktemp("cli")
    panel = xa.datasets.simulate(3, 3, SIZES)
    panel.avocado.to_bigwig(folder / "tracks", variable="signal", progress=False)
    (folder / "sizes.txt").write_text("".join(f"{chrom}\t{size}\n" for chrom, size in SIZES.items()))
    sheet, genome = str(folder / "tracks" / "samples.tsv"), str(folder / "sizes.txt")
    assert main(["build", sheet, str(folder / "cube.zarr"), "--genome", genome, "--n-jobs", "1", "--quiet"]) == 0
    hidden = ":".join(HELD)
    assert main(["fit", str(folder / "cube.zarr"), "--epochs", "1", "--hold-out", hidden, "--quiet"]) == 0
    return folder


def failed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Run a command that must fail as a user's mistake does, and return its one line."""
    capsys.readouterr()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("xr-avocado: error: ")
    return err


def test_the_command_is_installed():
    (script,) = entry_points(group="console_scripts", name="xr-avocado")
    assert script.load() is main


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"xr-avocado {xa.__version__}"


def test_build_makes_the_cube_that_python_makes(work):
    cube = xa.open_cube(work / "cube.zarr")
    panel = xa.datasets.simulate(3, 3, SIZES)
    np.testing.assert_allclose(cube.signal.values, panel.signal.values, atol=4e-3)
    assert cube.attrs["chromsizes"] == SIZES


def test_build_takes_regions_and_bin_size(work, tmp_path):
    bed = tmp_path / "regions.bed"
    bed.write_text("chr1\t1000\t3000\nchr2\t0\t20003\n")
    command = ["build", str(work / "tracks" / "samples.tsv"), str(tmp_path / "cube.zarr"), "--regions", str(bed)]
    assert main([*command, "--genome", str(work / "sizes.txt"), "--binsize", "200", "--n-jobs", "1", "--quiet"]) == 0
    cube = xa.open_cube(tmp_path / "cube.zarr")
    assert cube.avocado.bins.segments.values.tolist() == [["chr1", 1000, 3000], ["chr2", 0, 20_003]]
    assert cube.avocado.bins.binsize == 200


def test_fit_writes_beside_the_cube_and_hides_what_it_is_told(work):
    fitted = xa.open_cube(work / "cube.fitted.zarr")
    assert not fitted.observed.sel(celltype=HELD[0], assay=HELD[1])
    assert list(HELD) not in fitted.attrs["avocado"]["trained_on"]
    assert "celltype_factors" in fitted


def test_fit_again_opens_what_is_finished(work, monkeypatch, capsys):
    from xr_avocado.model.training import Trainer

    monkeypatch.setattr(Trainer, "step", lambda *_, **__: pytest.fail("trained again"))
    capsys.readouterr()
    assert main(["fit", str(work / "cube.zarr"), "--epochs", "1", "--hold-out", ":".join(HELD), "--quiet"]) == 0
    assert "8 of 9 were run" in capsys.readouterr().out


def test_info_says_what_is_there(work, capsys):
    assert main(["info", str(work / "cube.zarr")]) == 0
    out = capsys.readouterr().out
    assert "9 of 9 were run" in out and "H3K4me3, H3K27ac, H3K4me1" in out and "none; train one" in out
    assert main(["info", str(work / "cube.fitted.zarr")]) == 0
    out = capsys.readouterr().out
    assert "8 of 9 were run" in out and "trained on 7 experiments, 1 set aside" in out


def test_impute_writes_bigwigs_of_what_is_missing(work, tmp_path, capsys):
    command = ["impute", str(work / "cube.fitted.zarr"), str(tmp_path / "imputed"), "--only-missing", "--quiet"]
    assert main(command) == 0
    assert "1 bigWig file and their sheet" in capsys.readouterr().out
    sheet = pd.read_csv(tmp_path / "imputed" / "samples.tsv", sep="\t")
    assert sheet[["celltype", "assay"]].values.tolist() == [list(HELD)]
    assert (tmp_path / "imputed" / sheet.path[0]).is_file()


def test_impute_writes_a_region_as_zarr(work, tmp_path):
    store = tmp_path / "imputed.zarr"
    command = ["impute", str(work / "cube.fitted.zarr"), str(store), "--region", "chr2:1,000-2,000", "--format", "zarr"]
    assert main([*command, "--celltype", "C1", "--quiet"]) == 0
    cube = xa.open_cube(store)
    assert cube.start.values[[0, -1]].tolist() == [1000, 1975]
    assert np.isfinite(cube.imputed.sel(celltype="C1")).all() and np.isnan(cube.imputed.sel(celltype="C2")).all()
    expected = xa.open_cube(work / "cube.fitted.zarr").avocado.impute("C1").avocado.sel("chr2:1,000-2,000").imputed
    xr.testing.assert_allclose(cube.imputed.drop_attrs(), expected.compute().drop_attrs(), atol=2e-3)


def test_embed_writes_positions_and_labels(work, tmp_path):
    import anndata

    fitted = str(work / "cube.fitted.zarr")
    region = ["--regions", "chr1:10,000-12,000", "--scale", "250"]
    assert main(["embed", fitted, str(tmp_path / "bins.bed"), *region]) == 0
    bed = pd.read_csv(tmp_path / "bins.bed", sep="\t")
    assert list(bed.columns[:4]) == ["#chrom", "start", "end", "factor_250bp_0"] and len(bed) == 8
    assert main(["embed", fitted, str(tmp_path / "bins.tsv"), *region]) == 0
    assert pd.read_csv(tmp_path / "bins.tsv", sep="\t").columns[0] == "chrom"
    assert main(["embed", fitted, str(tmp_path / "cells.h5ad")]) == 0
    assert list(anndata.read_h5ad(tmp_path / "cells.h5ad").obs_names) == ["C1", "C2", "C3"]
    assert main(["embed", fitted, str(tmp_path / "assays.tsv"), "--axis", "assay"]) == 0
    assert pd.read_csv(tmp_path / "assays.tsv", sep="\t").assay.tolist() == ["H3K4me3", "H3K27ac", "H3K4me1"]


def test_evaluate_scores_what_was_held_out(work, tmp_path, capsys):
    command = ["evaluate", str(work / "cube.fitted.zarr"), "--truth", str(work / "cube.zarr"), "--quiet"]
    assert main([*command, "--measure", "mse"]) == 0
    assert "H3K27ac imputed" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--out", str(tmp_path / "scores.tsv")]) == 0
    table = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    assert set(table.method) == {"imputed", "average"}
    assert {tuple(row) for row in table[["celltype", "assay"]].values} == {HELD}


def test_evaluate_gives_the_table_that_python_gives_and_draws_it(work, tmp_path):
    fitted, truth = xa.open_cube(work / "cube.fitted.zarr"), xa.open_cube(work / "cube.zarr")
    elsewhere = fitted.avocado.impute(tracks=[HELD]).avocado.to_bigwig(tmp_path / "theirs", progress=False)
    genes = tmp_path / "genes.bed"
    genes.write_text("chr1\t5000\t9000\tg1\t0\t+\nchr2\t2000\t6000\tg2\t0\t-\n")
    command = ["evaluate", str(work / "cube.fitted.zarr"), "--truth", str(work / "cube.zarr"), "--quiet"]
    command += ["--method", "imputed", "--method", "ridge", "--method", f"theirs={tmp_path / 'theirs'}"]
    command += ["--genes", str(genes), "--convention", "challenge", "--space", "signal"]
    assert main([*command, "--out", str(tmp_path / "s.tsv"), "--plot", str(tmp_path / "s.png")]) == 0
    expected = fitted.avocado.impute(tracks=[HELD]).avocado.evaluate(
        truth,
        methods={"imputed": "imputed", "ridge": "ridge", "theirs": tmp_path / "theirs"},
        annotations={"genes": genes},
        convention="challenge",
        space="signal",
        progress=False,
    )
    table = pd.read_csv(tmp_path / "s.tsv", sep="\t")
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert table.msegene.notna().all() and table.mseprom.notna().all()
    assert len(elsewhere) == 1 and (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_of_baselines_needs_no_model(work, capsys):
    command = ["evaluate", str(work / "cube.zarr"), "--method", "average", "--measure", "mse", "--quiet"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("average") == 9


def test_segment_writes_the_states_that_python_gives(work, tmp_path, capsys):
    pytest.importorskip("hmmlearn")
    bed, fitted = tmp_path / "states.bed", str(work / "cube.fitted.zarr")
    command = ["segment", fitted, str(bed), "--states", "3", "--regions", "chr1:0-30kb", "--seed", "4", "--quiet"]
    assert main(command) == 0
    expected = xa.open_cube(fitted).avocado.segment(3, regions="chr1:0-30kb", seed=4, as_="frame", progress=False)
    assert f"{len(expected)} runs of {expected.state.nunique()} states in {bed}" in capsys.readouterr().out
    table = pd.read_csv(bed, sep="\t", header=None)
    pd.testing.assert_frame_equal(
        table[[0, 1, 2, 3, 8]].set_axis(["chrom", "start", "end", "name", "rgb"], axis=1),
        expected.drop(columns="state"),
        check_dtype=False,
    )
    assert (
        table[1].iloc[0] == 0 and table[2].iloc[-1] == 30_000 and (table[1].iloc[1:].values == table[2].iloc[:-1]).all()
    )


def test_report_scores_what_was_hidden_and_shows_the_loci_asked_for(work, tmp_path, capsys):
    page, genes = tmp_path / "report.html", tmp_path / "genes.bed"
    genes.write_text("chr1\t5000\t9000\tg1\t0\t+\n")
    command = ["report", str(work / "cube.fitted.zarr"), str(page), "--truth", str(work / "cube.zarr"), "--quiet"]
    regions = ["chr1:2,000-12,000", "chr2:0-10,000"]
    assert main([*command, *(part for region in regions for part in ("--region", region)), "--genes", str(genes)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert all(f"<figcaption>{region}</figcaption>" in text for region in regions)
    assert "The model did not see C2 H3K27ac." in text
    scored = xa.open_cube(work / "cube.fitted.zarr").avocado.impute(tracks=[HELD])
    table = scored.avocado.evaluate(xa.open_cube(work / "cube.zarr"), measures=["mse"], progress=False)
    for method, mse in zip(table.method, table.mse, strict=True):
        assert f"<tr><td>{method}</td><td class='n'>{mse:.3f}</td>" in text


def test_mistakes_are_told_in_one_line(work, tmp_path, capsys):
    cube, fitted = str(work / "cube.zarr"), str(work / "cube.fitted.zarr")
    assert "no store" in failed(capsys, "info", str(tmp_path / "nothing.zarr"))
    assert "'C9' is not a celltype" in failed(capsys, "impute", fitted, str(tmp_path / "x"), "--celltype", "C9")
    assert "call .avocado.fit() first" in failed(capsys, "impute", cube, str(tmp_path / "x"))
    assert "write CELLTYPE:ASSAY" in failed(capsys, "fit", cube, "--hold-out", "C1", "--out", str(tmp_path / "f.zarr"))
    assert "epochs was 1, now 12" in failed(capsys, "fit", cube)
    assert "holds no model" in failed(capsys, "fit", cube, "--out", cube)
    assert "chr9" in failed(capsys, "impute", fitted, str(tmp_path / "x"), "--region", "chr9:1-100")
    assert ".tsv or .bed" in failed(capsys, "embed", fitted, str(tmp_path / "e.csv"))
    assert ".tsv or .h5ad" in failed(capsys, "embed", fitted, str(tmp_path / "e.bed"), "--axis", "celltype")
    assert ".png, .pdf, .svg" in failed(capsys, "evaluate", fitted, "--plot", str(tmp_path / "scores.xls"))
    assert "call .avocado.fit() first" in failed(capsys, "segment", cube, str(tmp_path / "s.bed"))
    assert "at least 2; got 1" in failed(capsys, "segment", fitted, str(tmp_path / "s.bed"), "--states", "1")
    assert "chr9" in failed(capsys, "report", fitted, str(tmp_path / "r.html"), "--region", "chr9:1-100")
    assert "no store" in failed(capsys, "report", fitted, str(tmp_path / "r.html"), "--truth", str(tmp_path / "t.zarr"))
    missing = ["build", str(tmp_path / "no.tsv"), str(tmp_path / "c.zarr"), "--genome", str(work / "sizes.txt")]
    assert "no.tsv" in failed(capsys, *missing)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_an_unknown_option_ends_with_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fit"])
    assert "usage: xr-avocado fit" in capsys.readouterr().err
