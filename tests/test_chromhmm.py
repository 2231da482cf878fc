from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado.cube import CubeError


def read(path: str) -> tuple[list[str], list[str], np.ndarray]:
    """A binarized file as ChromHMM has it: its two lines of header, and a line a bin."""
    first, second, *lines = Path(path).read_text().splitlines()
    return first.split("\t"), second.split("\t"), np.array([line.split("\t") for line in lines]).astype(int)


def cube_of(values: np.ndarray, region: str = "chr1:400-1,010") -> xr.Dataset:
    cube = xa.datasets.simulate(1, 2, {"chr1": 1_010}).avocado.sel(region)
    return cube.assign(signal=cube.signal.copy(data=np.arcsinh(values).astype(np.float32)))


def test_marks_are_present_where_their_mean_reaches_the_threshold(tmp_path):
    values = np.zeros((1, 2, 25))
    values[0, 0, :8] = [16, 0, 0, 0, 0, 0, 0, 0]  # a mean of 2: present
    values[0, 0, 8:16] = [15.9, 0, 0, 0, 0, 0, 0, 0]
    values[0, 1, 16:24] = np.nan
    values[0, 1, :8] = [np.nan] * 7 + [5]
    files = cube_of(values).avocado.to_chromhmm(tmp_path, variable="signal", progress=False)
    assert files.values.tolist() == [["C1", "chr1", str(tmp_path / "C1_chr1_binary.txt")]]
    names, marks, present = read(files.path[0])
    assert names == ["C1", "chr1"] and marks == ["H3K4me3", "H3K27ac"]
    # 1,010 bp hold five whole bins of 200; the cube begins with the third.
    assert present.tolist() == [[2, 2], [2, 2], [1, 1], [0, 0], [0, 2]]


def test_pieces_make_no_difference(simulated, tmp_path, monkeypatch):
    few = simulated.isel(celltype=[0, 3])
    whole = few.avocado.to_chromhmm(tmp_path / "a", variable="signal", progress=False)
    monkeypatch.setattr("xr_avocado.io.chromhmm.PIECE", 60)
    pieces = few.avocado.sel("chr2").avocado.to_chromhmm(tmp_path / "b", variable="signal", progress=False)
    assert whole[["celltype", "chrom"]].values.tolist() == [
        ["C1", "chr1"],
        ["C1", "chr2"],
        ["C4", "chr1"],
        ["C4", "chr2"],
    ]
    assert Path(pieces.path[1]).read_text() == Path(whole.path[3]).read_text()
    _, _, present = read(whole.path[3])
    track = np.sinh(few.avocado.sel("chr2").signal.sel(celltype="C4", assay="DNase").values.astype(float))
    expected = track[: len(present) * 8].reshape(-1, 8).mean(1) >= 2
    np.testing.assert_array_equal(present[:, 3], expected)
    assert len(present) == 800_017 // 200 and 0 < present[:, 3].mean() < 0.5


def test_imputed_tracks_and_marks_that_a_cell_type_lacks(tmp_path):
    held = xa.datasets.simulate(3, 3, {"chr1": 20_000}).avocado.hold_out([("C2", "H3K27ac")])
    fitted = held.avocado.fit("small", epochs=1, progress=False)
    files = fitted.avocado.impute().avocado.to_chromhmm(tmp_path, celltype="C2", progress=False)
    assert files.celltype.tolist() == ["C2"] and (read(files.path[0])[2] < 2).all()
    files = held.avocado.to_chromhmm(
        tmp_path, variable="signal", celltype=["C2"], assay=["H3K27ac", "H3K4me3"], progress=False
    )
    _, marks, present = read(files.path[0])
    assert marks == ["H3K27ac", "H3K4me3"] and (present[:, 0] == 2).all() and (present[:, 1] < 2).all()


def test_what_cannot_be_written_is_refused(simulated, tmp_path):
    with pytest.raises(CubeError, match="impute"):
        simulated.avocado.to_chromhmm(tmp_path / "x")
    with pytest.raises(CubeError, match="no multiple of the cube's, which have 25 bp"):
        simulated.avocado.to_chromhmm(tmp_path / "x", variable="signal", binsize=110)
    with pytest.raises(CubeError, match="'C9' is not a celltype"):
        simulated.avocado.to_chromhmm(tmp_path / "x", variable="signal", celltype="C9")
    bare = simulated.assign_attrs(chromsizes={})
    with pytest.raises(CubeError, match="chromsizes"):
        bare.avocado.to_chromhmm(tmp_path / "x", variable="signal")
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(shutil.which("ChromHMM") is None, reason="ChromHMM is not installed")
def test_chromhmm_learns_states_from_the_files(simulated, tmp_path):
    """Debian has the program in its package chromhmm."""
    held = simulated.avocado.hold_out([("C2", "H3K27ac")]).sel(celltype=["C1", "C2"])
    held.avocado.to_chromhmm(tmp_path / "in", variable="signal", progress=False)
    sizes = simulated.attrs["chromsizes"]
    (tmp_path / "sizes").write_text("".join(f"{chrom}\t{size}\n" for chrom, size in sizes.items()))
    plain = ["-noimage", "-nobrowser", "-noenrich", "-noautoopen", "-r", "10", "-l", "sizes"]
    command = ["ChromHMM", "LearnModel", *plain, "in", "out", "3", "hg38"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    emissions = pd.read_csv(tmp_path / "out" / "emissions_3.txt", sep="\t", index_col=0)
    assert set(emissions.columns) == set(simulated.assay.values)
    promoter, body = emissions.H3K4me3.idxmax(), emissions.H3K36me3.idxmax()
    assert promoter != body and emissions.H3K4me3[promoter] > 0.3 > 0.1 > emissions.H3K4me3[body]
    assert emissions.H3K36me3[body] > 0.5 and (emissions.max(axis=1) < 0.1).any(), "and a state of nothing"
    for celltype in ("C1", "C2"):
        states = pd.read_csv(tmp_path / "out" / f"{celltype}_3_segments.bed", sep="\t", header=None)
        assert states.groupby(0)[2].max().to_dict() == {chrom: size // 200 * 200 for chrom, size in sizes.items()}
