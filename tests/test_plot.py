from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from xr_avocado import plot
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cube(simulated: xr.Dataset) -> xr.Dataset:
    return simulated.avocado.average()


def drawn(ax: plt.Axes) -> tuple[np.ndarray, np.ndarray]:
    """Heights and edges of the steps in an axes."""
    (patch,) = ax.patches
    values, edges, _ = patch.get_data()
    return values, edges


def test_steps_are_the_bins_and_their_values(cube):
    (ax,) = plot.tracks(cube, "chr1:10,010-20,000", celltype="C2", assay="DNase", variables="signal")
    values, edges = drawn(ax)
    here = cube.avocado.sel("chr1:10,010-20,000").signal.sel(celltype="C2", assay="DNase")
    np.testing.assert_array_equal(values, here.values.astype(float))
    np.testing.assert_array_equal(edges, [*here.start.values, here.end.values[-1]])
    assert edges[0] == 10_000, "bins that overlap the region are drawn whole"


def test_track_units_undo_the_transform(cube):
    (ax,) = plot.tracks(cube, "chr1:0-50kb", celltype="C2", assay="DNase", variables="signal", transformed=False)
    here = cube.avocado.sel("chr1:0-50kb").signal.sel(celltype="C2", assay="DNase")
    np.testing.assert_allclose(drawn(ax)[0], np.sinh(here.values.astype(float)))
    assert ax.figure.get_supylabel() == "signal"


def test_the_last_bin_ends_with_its_chromosome(cube):
    (ax,) = plot.tracks(cube, "chr2:799kb-", celltype="C1", assay="DNase", variables="signal")
    assert drawn(ax)[1][-1] == 800_017


def test_wide_regions_are_drawn_as_means(cube):
    (ax,) = plot.tracks(cube, "chr1", celltype="C1", assay="H3K4me3", variables="signal")
    values, edges = drawn(ax)
    track = cube.avocado.sel("chr1").signal.sel(celltype="C1", assay="H3K4me3").values.astype(float)
    width = int(edges[1] - edges[0]) // 25
    assert 1_000 < len(values) <= 2_000
    assert values[7] == pytest.approx(track[7 * width : 8 * width].mean())
    assert values[-1] == pytest.approx(track[(len(values) - 1) * width :].mean())
    assert edges[-1] == 1_200_010


def test_gaps_between_segments_stay_empty(cube):
    gapped = cube.avocado.sel(["chr1:1,000-2,000", "chr1:5,000-6,000"])
    (ax,) = plot.tracks(gapped, "chr1:1,000-6,000", celltype="C1", assay="DNase", variables="signal")
    values, edges = drawn(ax)
    assert len(values) == 40 + 1 + 40
    assert np.isnan(values[40]) and edges[40:42].tolist() == [2_000, 5_000]


def test_rows_of_a_pair_share_their_scale_and_pairs_are_named(cube):
    pairs = [("C1", "H3K4me3"), ("C4", "H3K36me3")]
    axes = plot.tracks(cube, "chr1:400kb-450kb", pairs=pairs)
    assert [ax.get_title(loc="left") for ax in axes] == ["C1 H3K4me3", "", "C4 H3K36me3", ""]
    assert axes[0].get_ylim() == axes[1].get_ylim() != axes[2].get_ylim()
    assert [ax.texts[0].get_text() for ax in axes[:2]] == ["observed", "average activity"]
    colors = {to_hex(ax.patches[0].get_facecolor()) for ax in axes[:2]}
    assert len(colors) == 2


def test_tracks_that_were_not_observed_have_no_observed_row(cube):
    held = cube.avocado.hold_out([("C1", "DNase")])
    (ax,) = plot.tracks(held, "chr1:0-50kb", celltype="C1", assay="DNase")
    assert ax.texts[0].get_text() == "average activity"


@pytest.mark.parametrize(
    ("region", "label", "ticks"),
    [
        ("chr1:1,000-3,000", "chr1 (bp)", {"1,000", "2,000"}),
        ("chr1:100kb-200kb", "chr1 (kb)", {"100", "200"}),
        ("chr1:1.00Mb-1.15Mb", "chr1 (Mb)", {"1.00", "1.10"}),
        ("chr1", "chr1 (Mb)", {"0.0", "0.2", "1.0"}),
    ],
)
def test_positions_read_as_people_write_them(cube, region, label, ticks):
    (ax,) = plot.tracks(cube, region, celltype="C1", assay="DNase", variables="signal")
    ax.figure.canvas.draw()
    assert ax.get_xlabel() == label
    assert ticks <= {tick.get_text() for tick in ax.get_xticklabels()}


def test_draws_into_axes_that_are_given(cube):
    _, own = plt.subplots(2, 1)
    axes = plot.tracks(cube, "chr1:0-50kb", celltype="C1", assay="DNase", axes=own)
    assert axes[0] is own[0] and axes[1] is own[1]
    assert axes[0].get_ylabel() == "arcsinh signal"
    with pytest.raises(CubeError, match="2 rows to draw, but 1 axes"):
        plot.tracks(cube, "chr1:0-50kb", celltype="C1", assay="DNase", axes=own[:1])


def test_what_cannot_be_drawn_is_refused(cube):
    with pytest.raises(GenomeError, match="one chromosome"):
        plot.tracks(cube, ["chr1:0-50kb", "chr2:0-50kb"], celltype="C1", assay="DNase")
    with pytest.raises(CubeError, match="48 tracks are too many"):
        plot.tracks(cube, "chr1:0-50kb")
    with pytest.raises(CubeError, match="'C99' is not a celltype"):
        plot.tracks(cube, "chr1:0-50kb", celltype="C99")
    with pytest.raises(CubeError, match="impute"):
        plot.tracks(cube, "chr1:0-50kb", celltype="C1", variables="imputed")
    with pytest.raises(CubeError, match="not both"):
        plot.tracks(cube, "chr1:0-50kb", celltype="C1", pairs=[("C1", "DNase")])


def test_panel_shows_each_experiment(simulated):
    held = simulated.avocado.hold_out([("C2", "DNase")])
    held.attrs["avocado"] = {"validation": [["C3", "H3K4me3"], ["gone", "DNase"]]}
    ax = plot.panel(held)
    (mesh,) = ax.collections
    state = np.asarray(mesh.get_array()).reshape(8, 6)
    assert state[1, 3] == 0 and state[2, 0] == 2 and (state == 1).sum() == 46
    assert [label.get_text() for label in ax.get_xticklabels()] == simulated.assay.values.tolist()
    assert len(ax.get_legend().get_texts()) == 3


def test_history_marks_the_epoch_kept():
    bins = GenomeBins([("chr1", 0, 50)], 25)
    rows = [[0.5, 0.6, np.nan, 1e-3], [0.4, 0.5, np.nan, 1e-3], [0.3, 0.55, np.nan, 1e-3]]
    metrics = ["train_mse", "validation_mse", "validation_average_mse", "learning_rate"]
    ds = assign_bins(
        xr.Dataset(
            {"observed": (("celltype", "assay"), [[True]]), "history": (("epoch", "metric"), rows)},
            coords={"celltype": ["C1"], "assay": ["A1"], "epoch": [1, 2, 3], "metric": metrics, "position": [0, 1]},
            attrs={"avocado": {"best_epoch": 2}, "transform": "arcsinh"},
        ).drop_vars("position"),
        bins,
    )
    ax = plot.history(ds)
    train, validation, kept = ax.lines
    assert validation.get_ydata().tolist() == [0.6, 0.5, 0.55]
    assert train.get_ydata().tolist() == [0.5, 0.4, 0.3]
    assert kept.get_xdata() == [2, 2]
    assert ax.get_ylabel() == "mean squared error (arcsinh)"


def test_history_needs_a_fit(simulated):
    with pytest.raises(CubeError, match="fit"):
        plot.history(simulated)


SCORES = pd.DataFrame(
    [
        ("C1", "DNase", "imputed", "arcsinh", 0.1, 0.9, np.nan),
        ("C1", "DNase", "average", "arcsinh", 0.2, 0.8, np.nan),
        ("C2", "DNase", "imputed", "arcsinh", 0.3, 0.7, np.nan),
        ("C2", "H3K4me3", "imputed", "arcsinh", 0.5, 0.6, np.nan),
        ("C2", "H3K4me3", "average", "arcsinh", 0.4, 0.5, np.nan),
    ],
    columns=["celltype", "assay", "method", "space", "mse", "gwcorr", "mseprom"],
)


def dots_of(ax: plt.Axes) -> dict[str, list[tuple[int, float]]]:
    """Mark and height of each method's dots."""
    dots = {c.get_label(): c.get_offsets() for c in ax.collections if not c.get_label().startswith("_")}
    return {name: [(round(float(x)), round(float(y), 6)) for x, y in at] for name, at in dots.items()}


def test_scores_have_a_panel_a_measure_marks_across_and_a_color_a_method():
    axes = plot.scores(SCORES)
    assert [ax.get_title(loc="left") for ax in axes] == ["mse (arcsinh)", "gwcorr"], "mseprom has no value"
    assert [ax.get_ylabel() for ax in axes] == ["↓ lower is better", "↑ higher is better"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["DNase", "H3K4me3"]
    assert dots_of(axes[0]) == {"imputed": [(0, 0.1), (0, 0.3), (1, 0.5)], "average": [(0, 0.2), (1, 0.4)]}
    means = [line[0, 1] for c in axes[0].collections for line in getattr(c, "get_segments", list)()]
    assert means == pytest.approx([0.2, 0.5, 0.2, 0.4])
    faces = [to_hex(c.get_facecolor()) for c in axes[0].collections if c.get_label() in ("imputed", "average")]
    assert len(set(faces)) == 2
    legend = next(ax.get_legend() for ax in axes if ax.get_legend())
    assert [text.get_text() for text in legend.get_texts()][:2] == ["imputed", "average activity"]


def test_bootstraps_are_drawn_at_their_mean():
    table = pd.concat([SCORES.assign(bootstrap=0), SCORES.assign(bootstrap=1, mse=SCORES.mse + 0.2)])
    (ax,) = plot.scores(table, measures="mse")
    assert dots_of(ax)["average"] == [(0, 0.3), (1, 0.5)]


def test_scores_are_drawn_into_axes_that_are_given():
    _, own = plt.subplots(1, 2)
    assert plot.scores(SCORES, measures=["gwcorr", "mse"], axes=own)[0] is own[0]
    with pytest.raises(ValueError, match="1 measures to draw, but 2 axes"):
        plot.scores(SCORES, measures="mse", axes=own)
    with pytest.raises(ValueError, match="no measure 'r2'; it has mse, gwcorr"):
        plot.scores(SCORES, measures="r2")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.scores(SCORES[:0])


def test_scores_of_every_measure_and_method_can_be_drawn(cube):
    table = cube.avocado.evaluate(methods=["average", "additive", "ridge"], tracks=[("C1", "DNase")], progress=False)
    axes = plot.scores(table)
    axes[0].figure.canvas.draw()
    assert len(axes) == 11


def test_loci_show_each_method_by_the_number_of_cell_types():
    rows = [
        ("A1", method, k, 10 * k, 0.1 * k, 0.2 * k, 0.3 * k)
        for method in ("observed", "average", "ours")
        for k in (1, 2, 3)
    ]
    table = pd.DataFrame(rows, columns=["assay", "method", "celltypes", "bins", "mse", "recall", "precision"])
    table = pd.concat([table, table.assign(assay="A2")])
    axes = plot.loci(table)
    axes[0, 0].figure.canvas.draw()
    assert axes.shape == (4, 2)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["mse (arcsinh)", "recall", "precision", "bins"]
    for row, name in enumerate(("mse", "recall", "precision")):
        lines = {line.get_label(): line for line in axes[row, 1].lines}
        assert set(lines) == {"observed", "average activity", "ours"}
        np.testing.assert_array_equal(lines["ours"].get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(lines["ours"].get_ydata(), table[name][:3])
        assert len({line.get_color() for line in lines.values()}) == 3
    assert [bar.get_height() for bar in axes[3, 0].patches] == [10, 20, 30]
    assert plot.loci(table, assay="A2").shape == (4, 1)
    with pytest.raises(ValueError, match="'A3'.*A1, A2"):
        plot.loci(table, assay="A3")


GENES = pd.DataFrame(
    [
        ("chr1", 11_000, 13_000, "+", "AB1"),
        ("chr1", 12_000, 12_500, "-", "CD2"),
        ("chr1", 19_990, 30_000, "+", "EF3"),
        ("chr2", 12_000, 13_000, "+", "elsewhere"),
    ],
    columns=["chrom", "start", "end", "strand", "name"],
)


def test_genes_are_boxes_in_lanes_below_the_tracks(cube):
    axes = plot.tracks(cube, "chr1:10kb-20kb", celltype="C2", assay="DNase", variables="signal", genes=GENES)
    row = axes[-1]
    assert len(axes) == 2 and row.get_xlabel() == "chr1 (kb)" and axes[0].get_xlabel() == ""
    boxes = [
        (box.get_x(), box.get_x() + box.get_width(), round(box.get_y() + box.get_height() / 2)) for box in row.patches
    ]
    assert boxes == [(11_000, 13_000, 0), (12_000, 12_500, 1), (19_990, 20_000, 0)], "the last is cut at the edge"
    assert [text.get_text() for text in row.texts] == ["AB1", "CD2", "EF3", "genes"]
    assert [line.get_marker() for line in row.lines] == [">", "<", ">"]
    assert row.get_xlim() == axes[0].get_xlim()


def test_genes_need_neither_strand_nor_name_and_may_be_absent(cube):
    bare = GENES[["chrom", "start", "end"]]
    options = {"celltype": "C2", "assay": "DNase", "variables": "signal"}
    row = plot.tracks(cube, "chr1:10kb-20kb", genes=bare, **options)[-1]
    assert len(row.patches) == 3 and not row.lines
    assert plot.tracks(cube, "chr1:60kb-70kb", genes=bare, **options)[-1].texts[-1].get_text() == "no gene here"
    crowd = pd.concat([bare.iloc[:1]] * 9)
    assert plot.tracks(cube, "chr1:10kb-20kb", genes=crowd, **options)[-1].texts[-1].get_text() == "(3 more)"


def test_a_method_without_scores_is_not_in_the_key():
    rows = [("C1", "DNase", "ridge", 0.5), ("C1", "DNase", "imputed", np.nan)]
    (ax,) = plot.scores(pd.DataFrame(rows, columns=["celltype", "assay", "method", "mse"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ridge", "a track", "mean of a mark"]
