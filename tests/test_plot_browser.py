from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pandas as pd
import pytest

from xr_avocado import plot
from xr_avocado.cube import CubeError


def read(path: Path) -> ConfigParser:
    ini = ConfigParser(interpolation=None)
    ini.read(path)
    return ini


def test_each_exported_track_is_a_row_with_its_assays_color(simulated, tmp_path):
    pairs = [("C1", "DNase"), ("C2", "DNase"), ("C1", "H3K4me3")]
    files = simulated.avocado.sel("chr2:0-5kb").avocado.to_bigwig(
        tmp_path, variable="signal", tracks=pairs, progress=False
    )
    (tmp_path / "genes.bed").write_text("chr2\t10\t20\n")
    ini = read(plot.browser_tracks(files, tmp_path / "tracks.ini", genes=tmp_path / "genes.bed"))
    assert sorted(ini.sections()[:3]) == ["C1 DNase", "C1 H3K4me3", "C2 DNase"]
    assert ini.sections()[3:] == ["spacer", "genes", "x-axis"]
    assert ini["C1 DNase"]["color"] == ini["C2 DNase"]["color"] != ini["C1 H3K4me3"]["color"]
    for section in (*ini.sections()[:3], "genes"):
        assert not Path(ini[section]["file"]).is_absolute() and (tmp_path / ini[section]["file"]).is_file()


def test_files_elsewhere_keep_their_paths_and_labels_may_be_odd(tmp_path):
    files = pd.DataFrame({"celltype": ["50%"], "assay": ["A"], "path": [str(tmp_path / "a" / "x.bw")]})
    ini = read(plot.browser_tracks(files, tmp_path / "b" / "tracks.ini"))
    assert ini["50% A"]["file"] == str(tmp_path / "a" / "x.bw")
    with pytest.raises(CubeError, match="no 'path'"):
        plot.browser_tracks(files[["celltype", "assay"]], tmp_path / "t.ini")
    with pytest.raises(CubeError, match="no file"):
        plot.browser_tracks(files[:0], tmp_path / "t.ini")
