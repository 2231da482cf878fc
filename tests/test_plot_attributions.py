from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex

import xr_avocado as xa
from xr_avocado import plot
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins

PARTS = ["celltype_factors", "assay_factors", "genome_factors_25bp", "genome_factors_5kbp"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def attributions(components: list[str], values: np.ndarray, *, chrom: str = "chr1") -> xr.Dataset:
    """What ``attribute`` returns, of numbers of our own: two cell types x one assay x components x 4 bins."""
    bins = GenomeBins([(chrom, 1_000, 1_100)], 25)
    dims = ("celltype", "assay", "component", "position")
    ds = xr.Dataset(
        {
            "observed": (dims[:2], [[True], [False]]),
            "attribution": (dims, values),
            "baseline": (("celltype", "assay", "position"), np.full((2, 1, 4), 0.25)),
            "signal": (("celltype", "assay", "position"), [[[1.0, 2, 3, 4]], [[np.nan] * 4]]),
        },
        coords={"celltype": ["C1", "C2"], "assay": ["DNase"], "component": components},
        attrs={"transform": "arcsinh"},
    )
    ds["prediction"] = ds.attribution.sum("component") + ds.baseline
    return assign_bins(ds, bins)


@pytest.fixture
def parts() -> xr.Dataset:
    return attributions(PARTS, np.random.default_rng(0).normal(size=(2, 1, 4, 4)))


def stacks(ax: plt.Axes) -> tuple[np.ndarray, np.ndarray]:
    """Where the filled parts of a stack begin and end: parts x steps."""
    filled = [patch.get_data() for patch in ax.patches if patch.get_fill()]
    return np.stack([np.broadcast_to(d.baseline, 4) for d in filled]), np.stack([d.values for d in filled])


def test_each_cell_type_has_its_signal_prediction_and_stack(parts):
    axes = plot.attributions(parts)
    assert [ax.get_title(loc="left") for ax in axes] == ["C1 DNase", "", "", "C2 DNase", ""], "C2 was not observed"
    assert [ax.texts[0].get_text() for ax in (axes[0], axes[1], axes[3])] == ["observed", "prediction", "prediction"]
    np.testing.assert_allclose(axes[1].patches[0].get_data().values, parts.prediction[0, 0])
    assert axes[2].get_ylim() == axes[4].get_ylim(), "stacks of cell types compare"
    assert axes[-1].get_xlabel() == "chr1 (bp)"


def test_stacks_hold_every_part_once_up_or_down(parts):
    stack = plot.attributions(parts)[2]
    bottom, top = stacks(stack)
    heights = (top - bottom)[:4] + (top - bottom)[4:]
    np.testing.assert_allclose(heights, parts.attribution[0, 0], atol=1e-12)
    assert (top[:4] >= bottom[:4]).all() and (top[4:] <= bottom[4:]).all()
    np.testing.assert_allclose(top[3], np.maximum(parts.attribution[0, 0], 0).sum("component"))
    line = next(patch for patch in stack.patches if not patch.get_fill())
    np.testing.assert_allclose(line.get_data().values, parts.prediction[0, 0] - 0.25)
    low, high = stack.get_ylim()
    assert low < top.min() and high > top.max()


def test_parts_have_names_and_colors_of_their_own(parts):
    legend = plot.attributions(parts)[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["cell type", "assay", "25 bp", "5 kbp", "all together"]
    colors = {to_hex(patch.get_facecolor()) for patch in legend.get_patches()}
    assert len(colors) >= 4


def test_of_many_assays_those_that_matter_are_named_and_the_rest_is_one():
    components = ["average", "same_assay", "elsewhere", *(f"own_A{i}" for i in range(9))]
    values = np.ones((2, 1, 12, 4)) * np.arange(12)[:, None]
    stack = plot.attributions(attributions(components, values))[2]
    names = [text.get_text() for text in stack.get_legend().get_texts()]
    assert names[:3] == ["average activity", "same assay, other cell types", "other assays, other cell types"]
    assert names[3:] == [*(f"own A{i}" for i in (8, 7, 6, 5, 4)), "all others", "all together"]
    assert stacks(stack)[1][8].tolist() == [66] * 4, "nothing is lost"


def test_one_call_takes_a_fitted_cube_apart():
    fitted = xa.datasets.simulate(3, 3, {"chr1": 20_000}).avocado.fit("small", epochs=1, progress=False)
    genes = pd.DataFrame({"chrom": ["chr1"], "start": [5_500], "end": [9_000]})
    axes = fitted.avocado.plot.attributions(["C1", "C3"], "H3K27ac", "chr1:5kb-6kb", genes=genes)
    assert len(axes) == 7
    expected = fitted.avocado.attribute("C1", "H3K27ac", "chr1:5kb-6kb").prediction.values
    np.testing.assert_allclose(axes[1].patches[0].get_data().values, expected, rtol=1e-5)


def test_what_cannot_be_drawn_is_refused(parts):
    with pytest.raises(CubeError, match="5 rows to draw, but 2 axes"):
        plot.attributions(parts, axes=plt.subplots(2)[1])
    both = xr.concat([parts, parts.assign_coords(assay=["H3K4me3"])], "assay")
    with pytest.raises(CubeError, match="one assay; choose one of DNase, H3K4me3"):
        plot.attributions(both)
    with pytest.raises(CubeError, match="a cell type or a few, an assay, and a region"):
        plot.attributions(parts.drop_vars("attribution"), "C1", "DNase")
    two = assign_bins(parts.drop_vars(["chrom", "start", "end"]), GenomeBins([("chr1", 0, 50), ("chr2", 0, 50)], 25))
    with pytest.raises(GenomeError, match="one chromosome"):
        plot.attributions(two)


def by_peaks() -> pd.DataFrame:
    rows = []
    for k in (1, 2):
        for peak in (False, True):
            means = {"celltype_factors": 0.1 * k, "genome_factors_25bp": -0.2 if peak else 0.5}
            means |= {"prediction": sum(means.values()) + 0.3, "baseline": 0.3, "signal": k}
            rows += [("DNase", k, peak, name, 10 * k, value) for name, value in means.items()]
    return pd.DataFrame(rows, columns=["assay", "celltypes", "peak", "component", "bins", "attribution"])


def test_means_by_peaks_are_stacked_beside_what_was_observed():
    axes = plot.attribution_by_peaks(by_peaks())
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["without it", "with the peak"]
    bars = [(bar.get_x() + 0.4, bar.get_y(), bar.get_height()) for bar in axes[0, 1].patches]
    np.testing.assert_allclose(bars, [(1, 0, 0.1), (2, 0, 0.2), (1, 0, -0.2), (2, 0, -0.2)], atol=1e-12)
    total, seen = (line for line in axes[0, 1].lines[:2])
    np.testing.assert_allclose(total.get_ydata(), [-0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(seen.get_ydata(), [0.7, 1.7])
    assert [bar.get_height() for bar in axes[1, 0].patches] == [10, 20]
    with pytest.raises(ValueError, match="no rows"):
        plot.attribution_by_peaks(by_peaks()[:0])


def factors(n: int = 5) -> xr.Dataset:
    values = np.zeros((n, 3))
    values[:, 0] = np.arange(n) * 3.0
    values[:, 1] = [1, -1] * (n // 2) + [0] * (n % 2)
    return xr.Dataset(
        {
            "celltype_factors": (("celltype", "celltype_factor"), values),
            "assay_factors": (("assay", "assay_factor"), values),
            "observed": (("celltype", "assay"), np.ones((n, n), bool)),
        },
        coords={"celltype": [f"C{i}" for i in range(n)], "assay": [f"A{i}" for i in range(n)]},
    )


@pytest.mark.parametrize(("axis", "letter"), [("celltype", "C"), ("assay", "A")])
def test_an_embedding_keeps_the_distances_of_its_factors(axis, letter):
    ax = plot.embedding(factors(), axis)
    at = ax.collections[0].get_offsets()
    table = factors()[f"{axis}_factors"].values
    between = np.linalg.norm(table[:, None] - table[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(at[:, None] - at[None], axis=-1), between, atol=1e-9)
    assert [text.get_text() for text in ax.texts] == [f"{letter}{i}" for i in range(5)]
    assert ax.get_xlabel().startswith("component 1 (9") and ax.get_xlabel().endswith("of variance)")


def test_groups_color_points_and_names_do_not_cover_each_other():
    groups = {"C0": "blood", "C1": "blood", "C3": "brain"}
    ax = factors(40).avocado.plot.embedding(groups=groups)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["blood", "other", "brain"]
    assert len(ax.collections[0].get_offsets()) == 2
    assert not plot.embedding(factors(80)).texts, "too many to name"


def test_umap_is_for_those_who_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        plot.embedding(factors(), method="umap")
    with pytest.raises(ValueError, match="'pca' or 'umap'"):
        plot.embedding(factors(), method="tsne")
    with pytest.raises(ValueError, match="'celltype' or 'assay'"):
        plot.embedding(factors(), "position")
    with pytest.raises(CubeError, match="need three celltype labels; this cube has 2"):
        plot.embedding(factors(2))


def test_figures_hang_off_the_dataset(simulated):
    tracks = {"celltype": "C1", "assay": "DNase"}
    one, other = simulated.avocado.plot.tracks("chr1:0-5kb", **tracks), plot.tracks(simulated, "chr1:0-5kb", **tracks)
    np.testing.assert_array_equal(one[0].patches[0].get_data().values, other[0].patches[0].get_data().values)
    small = simulated.isel(celltype=slice(3), assay=slice(3)).avocado.sel("chr2")
    assert len(small.avocado.plot.qc(progress=False)) == 4
    axes = small.avocado.plot.scores(methods=["average"], measures=["mse"], progress=False)
    assert axes[0].get_title(loc="left") == "mse (arcsinh)"
