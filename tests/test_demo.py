from __future__ import annotations

import matplotlib.image
import pytest

import xr_avocado as xa
from xr_avocado.cli import main
from xr_avocado.cube import CubeError
from xr_avocado.demo import HELD_OUT, compare, run_demo


@pytest.mark.slow
def test_the_demo_beats_the_average_and_leaves_its_files(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--quiet"]) == 0
    out = capsys.readouterr().out
    mean = next(line for line in out.splitlines() if line.startswith("mean")).split()[1:]
    imputed_mse, average_mse, imputed_r, average_r = map(float, mean)
    assert imputed_mse < 0.9 * average_mse
    assert imputed_r > average_r + 0.01

    fitted = xa.open_cube(tmp_path / "demo.zarr")
    assert all(not fitted.observed.sel(pair._asdict()) for pair in HELD_OUT)
    assert {path.name for path in (tmp_path / "imputed").glob("*.bw")} == {
        f"{celltype}.{assay}.imputed.bw" for celltype, assay in HELD_OUT
    }
    height, width = matplotlib.image.imread(tmp_path / "demo.png").shape[:2]
    assert width > height > 300


@pytest.mark.slow
def test_a_second_demo_replaces_the_first(tmp_path):
    short = {"epochs": 1, "context_samples": 4_000}
    first = run_demo(tmp_path, config=short, progress=False)
    second = run_demo(tmp_path, config=short, progress=False)
    assert first.scores.equals(second.scores), "the same seed gives the same model"
    assert second.figure.is_file()


def test_what_is_no_demo_s_is_not_replaced(tmp_path, simulated):
    mine = xa.datasets.simulate(2, 2, {"chr1": 10_000})
    for name, write in {
        "cube.zarr": lambda path: mine.avocado.to_zarr(path, progress=False),
        "demo.zarr": lambda path: mine.avocado.to_zarr(path, progress=False),
        "tracks/samples.tsv": lambda path: path.write_text("celltype\tassay\tpath\nliver\tDNase\tliver.bw\n"),
    }.items():
        path = tmp_path / name.replace("/", "-") / name
        path.parent.mkdir(parents=True)
        write(path)
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(CubeError, match=f"{name} is there and no demo's, so it is not replaced"):
            run_demo(tmp_path / name.replace("/", "-"), progress=False)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_scores_turn_sideways_with_the_imputed_first(simulated):
    tracks = [("C1", "DNase"), ("C2", "H3K27ac")]
    small = simulated.avocado.sel("chr2:0-100kb")
    options = {"methods": ["average", "ridge"], "measures": ["mse", "gwcorr"], "progress": False}
    table = small.avocado.evaluate(tracks=tracks, **options)
    wide = compare(table)
    assert list(wide.columns) == ["mse average", "mse ridge", "gwcorr average", "gwcorr ridge"]
    mse = table[table.method == "average"].mse
    assert wide["mse average"].tolist() == pytest.approx([*mse, mse.mean()])
    assert compare(table.replace("ridge", "imputed")).columns[0] == "mse imputed"
