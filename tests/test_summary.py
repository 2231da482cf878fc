from __future__ import annotations

import xarray as xr

import xr_avocado as xa
from xr_avocado.model.config import PRESETS, Config


def test_the_accessor_shows_what_the_cube_holds(simulated: xr.Dataset):
    cube = simulated.avocado.hold_out([("C1", "DNase")])
    text = repr(cube.avocado)
    assert "47 of 48 were run" in text
    assert "80,002 bins of 25 bp" in text
    assert "none; train one" in text
    assert all(
        f"<td style='text-align:left'>{line[13:]}</td>" in cube.avocado._repr_html_() for line in text.splitlines()
    )


def test_a_fitted_cube_says_what_its_model_is():
    fitted = xa.datasets.simulate(2, 2, {"chr1": 30_000}).avocado.fit("small", epochs=1, progress=False)
    assert "trained on 3 experiments, 1 set aside" in repr(fitted.avocado)


def test_a_published_model_says_that_it_was_read(tmp_path):
    fitted = xa.datasets.simulate(2, 2, {"chr1": 30_000}).avocado.fit(
        "small", config={"average": False}, epochs=1, progress=False
    )
    fitted.avocado.to_keras(tmp_path / "model", progress=False)
    assert "read from: published package; trained on" in repr(
        xa.read_keras(tmp_path / "model", genome={"chr1": 30_000}, chrom="chr1").avocado
    )


def test_a_dataset_that_is_no_cube_says_why():
    assert repr(xr.Dataset().avocado).startswith("no cube")
    assert "no cube" in xr.Dataset({"<b>": 1}).avocado._repr_html_()


def test_labels_cannot_put_html_on_the_page(simulated: xr.Dataset):
    cube = simulated.assign_coords(celltype=["<script>", *simulated.celltype.values[1:]])
    assert "<script>" not in cube.avocado._repr_html_()


def test_a_config_shows_what_is_not_the_default_and_reads_back():
    small = PRESETS["small"]
    assert repr(Config()) == "Config()"
    assert eval(repr(small), {"Config": Config}) == small
    assert "nodes=64" in repr(small) and "context_samples" not in repr(small)
    assert "nodes" in small._repr_html_()
