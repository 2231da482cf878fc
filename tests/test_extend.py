from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xr_avocado as xa
from xr_avocado import datasets
from xr_avocado.cli import main
from xr_avocado.cube import CubeError
from xr_avocado.generations import as_known_to
from xr_avocado.genome import GenomeError
from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet
from xr_avocado.model.context_extension import assay_of_parameters, of_assays
from xr_avocado.model.levels import Levels
from xr_avocado.model.squared_error import squared_error

FACTORS = {"nodes": 16, "layers": 1, "context": False, "batch": 8_000}
CONTEXT = {
    "nodes": 8,
    "layers": 1,
    "context_members": 1,
    "context_units": 8,
    "context_nodes": 16,
    "context_heads": 2,
    "context_samples": 4_000,
}
KNOWN = {"celltype": slice(4), "assay": slice(4)}


@pytest.fixture(scope="module")
def whole() -> xr.Dataset:
    return datasets.simulate(n_celltypes=6, n_assays=5, chromsizes={"chr1": 100_010, "chr2": 50_007})


@pytest.fixture(scope="module")
def known(whole: xr.Dataset) -> xr.Dataset:
    return whole.isel(KNOWN).avocado.hold_out([("C1", "H3K4me3"), ("C3", "DNase")])


@pytest.fixture(scope="module")
def factors(known: xr.Dataset) -> xr.Dataset:
    return known.avocado.fit(config=FACTORS, epochs=4, validation=None, progress=False)


@pytest.fixture(scope="module")
def averaging(known: xr.Dataset) -> xr.Dataset:
    return known.avocado.fit(config={**FACTORS, "average": True}, epochs=2, validation=None, progress=False)


@pytest.fixture(scope="module")
def context(known: xr.Dataset) -> xr.Dataset:
    return known.avocado.fit(config=CONTEXT, epochs=2, progress=False)


@pytest.fixture(scope="module")
def celltypes(whole: xr.Dataset) -> xr.Dataset:
    """Two new cell types: three tracks of one, one of the other."""
    return whole.isel(celltype=[4, 5], assay=slice(4)).avocado.hold_out(
        [("C5", "DNase"), *(("C6", a) for a in ("H3K27ac", "H3K4me1", "DNase"))]
    )


@pytest.fixture(scope="module")
def assay(whole: xr.Dataset) -> xr.Dataset:
    return whole.isel(celltype=slice(4), assay=[4]).avocado.hold_out([("C2", "H3K36me3")])


def extended(model: xr.Dataset, new: xr.Dataset, **options: Any) -> xr.Dataset:
    return model.avocado.extend(new, **{"epochs": 1, "progress": False, **options})


def assert_frozen(before: xr.Dataset, after: xr.Dataset) -> None:
    """Every parameter that there was is there still, bit for bit."""
    for name, old in before.data_vars.items():
        if name == "context_net" and after.sizes["context_parameter"] > before.sizes["context_parameter"]:
            config = Config.from_attrs(after.attrs["avocado"]["config"])
            n, m = (len(ds.attrs["avocado"]["assays"]) for ds in (before, after))
            np.testing.assert_array_equal(of_assays(config, after[name].values, m, range(n)), old)
        else:
            new = after[name].isel(
                {dim: slice(size) for dim, size in old.sizes.items() if dim in ("celltype", "assay")}
            )
            np.testing.assert_array_equal(new.values, old.values, err_msg=str(name))


def imputed(ds: xr.Dataset) -> np.ndarray:
    return ds.avocado.impute().imputed.transpose("celltype", "assay", "position").values


@pytest.mark.parametrize("kind", ["factors", "averaging", "context"])
@pytest.mark.parametrize("axis", ["celltypes", "assay"])
def test_what_the_model_knew_and_predicted_stays_bit_for_bit(
    kind: str, axis: str, request: pytest.FixtureRequest
) -> None:
    model, new = request.getfixturevalue(kind), request.getfixturevalue(axis)
    more = extended(model, new)
    assert_frozen(model, more)
    assert len(more.celltype) + len(more.assay) > len(model.celltype) + len(model.assay)
    before, after = imputed(model), imputed(more)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(after[:4, :4], before)
    again = more.avocado.impute(tracks=[("C1", "H3K4me3")]).imputed.sel(celltype="C1", assay="H3K4me3").values
    once = model.avocado.impute(tracks=[("C1", "H3K4me3")]).imputed.sel(celltype="C1", assay="H3K4me3").values
    np.testing.assert_array_equal(again, once)


def test_extending_twice_changes_nothing_of_the_first_extension(
    context: xr.Dataset, celltypes: xr.Dataset, assay: xr.Dataset
) -> None:
    first = extended(context, celltypes)
    second = extended(first, assay)
    assert_frozen(first, second)
    np.testing.assert_array_equal(imputed(second)[:, :4], imputed(first))
    assert [entry["axis"] for entry in second.attrs["avocado"]["extended"]] == ["celltype", "assay"]
    for generation, model in enumerate([context, first]):
        cut = as_known_to(second, generation)
        assert cut.celltype.equals(model.celltype) and cut.assay.equals(model.assay)
        np.testing.assert_array_equal(cut.context_net, model.context_net)


@pytest.mark.parametrize("axis", ["celltypes", "assay"])
def test_signal_and_provenance_are_joined(
    whole: xr.Dataset, factors: xr.Dataset, axis: str, request: pytest.FixtureRequest
) -> None:
    new = request.getfixturevalue(axis)
    more = extended(factors, new, seed=3)
    for cube in (factors, new):
        part = more.sel(celltype=cube.celltype, assay=cube.assay)
        np.testing.assert_array_equal(part.signal, cube.signal)
        np.testing.assert_array_equal(part.observed, cube.observed)
    assert int(more.observed.sum()) == int(factors.observed.sum() + new.observed.sum())
    about, old = more.attrs["avocado"], factors.attrs["avocado"]
    pairs = [list(pair) for pair in new.avocado.experiments]
    assert about["celltypes"] == more.celltype.values.tolist() and about["assays"] == more.assay.values.tolist()
    assert about["trained_on"] == [*old["trained_on"], *pairs]
    dim, labels = ("celltype", ["C5", "C6"]) if axis == "celltypes" else ("assay", ["H3K36me3"])
    (entry,) = about["extended"]
    assert (entry["axis"], entry["labels"], entry["tracks"]) == (dim, labels, pairs)
    assert (entry["seed"], entry["epochs"], entry["version"]) == (3, 1, xa.__version__)
    assert about["config"] == old["config"]


def test_an_extended_cube_is_saved_and_goes_on(
    tmp_path: Any, context: xr.Dataset, celltypes: xr.Dataset, assay: xr.Dataset
) -> None:
    more = extended(context, celltypes)
    stored = more.avocado.to_zarr(tmp_path / "more.zarr", precision="float32", progress=False)
    assert stored.attrs["avocado"] == more.attrs["avocado"]
    assert stored.signal.chunks is not None
    np.testing.assert_array_equal(imputed(stored), imputed(more))
    again = extended(stored, assay)
    assert again.signal.chunks is not None
    np.testing.assert_array_equal(again.context_net, extended(more, assay).context_net)


def test_new_labels_learn_from_their_tracks(whole: xr.Dataset, factors: xr.Dataset, celltypes: xr.Dataset) -> None:
    more = extended(factors, celltypes, epochs=8)
    truth = celltypes.signal.sel(celltype="C5", assay="H3K4me3")
    mine = more.avocado.impute(tracks=[("C5", "H3K4me3")]).imputed.sel(celltype="C5", assay="H3K4me3")
    others = factors.avocado.impute(assay="H3K4me3").imputed.sel(assay="H3K4me3")
    errors = ((others - truth) ** 2).mean("position")
    assert float(((mine - truth) ** 2).mean()) < float(errors.min())


def test_the_same_seed_gives_the_same_rows(factors: xr.Dataset, celltypes: xr.Dataset) -> None:
    one, same, other = (extended(factors, celltypes, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.celltype_factors, same.celltype_factors)
    assert not np.array_equal(one.celltype_factors, other.celltype_factors)


def test_some_positions_of_the_model_are_enough(factors: xr.Dataset, celltypes: xr.Dataset) -> None:
    regions = ["chr1:13,000-31,010", "chr1:50,000-75,000", "chr2:2,500-"]
    new = celltypes.avocado.sel(regions)
    for ds in (new, new.chunk(position=1_000)):
        more = extended(factors, ds)
        assert_frozen(factors, more)
        assert more.avocado.bins == factors.avocado.bins
        np.testing.assert_array_equal(
            more.avocado.sel(regions).signal.sel(celltype="C5", assay=new.assay), new.signal.sel(celltype="C5")
        )
        there = np.isfinite(more.signal.sel(celltype="C5", assay="H3K4me3").values)
        assert there.sum() == new.sizes["position"]
        assert np.isfinite(imputed(more)).all()


def test_labels_are_learnt_from_stretches_of_a_long_genome(
    factors: xr.Dataset, celltypes: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado import extend_labels

    read = []
    load = extend_labels.load_panel
    monkeypatch.setattr(extend_labels, "MEMORY", 1)
    monkeypatch.setattr(extend_labels, "load_panel", lambda ds, *rest: read.append(ds) or load(ds, *rest))
    more = extended(factors, celltypes)
    # Sixteen blocks, of which two are the ends of chromosomes, of one bin each.
    assert read[0].sizes["position"] == 14 * 200 + 2
    assert set(read[0].avocado.bins.chroms) == {"chr1", "chr2"}
    assert_frozen(factors, more)


def test_a_model_without_signal_stays_without(factors: xr.Dataset, celltypes: xr.Dataset) -> None:
    more = extended(factors.drop_vars("signal"), celltypes)
    assert "signal" not in more
    np.testing.assert_array_equal(more.celltype_factors, extended(factors, celltypes).celltype_factors)


def test_a_published_model_learns_ones_own_cell_type(tmp_path: Any, whole: xr.Dataset) -> None:
    model = whole.isel(KNOWN).avocado.sel("chr1").avocado.fit("small", epochs=1, progress=False)
    model.avocado.to_keras(tmp_path / "avocado-chr1", progress=False)
    read = xa.read_keras(tmp_path / "avocado-chr1")
    new = whole.isel(celltype=[5], assay=[0, 2]).avocado.sel("chr1:0-75,000")
    more = extended(read, new)
    assert_frozen(read, more)
    assert np.isfinite(imputed(more)).all()
    files = more.avocado.to_keras(tmp_path / "mine-chr1", progress=False)
    back = xa.read_keras(files[0])
    np.testing.assert_array_equal(back.celltype_factors, more.celltype_factors)
    assert ["C6", "H3K4me3"] in back.attrs["avocado"]["trained_on"]


def test_a_new_cell_type_needs_no_training_where_there_is_a_context_term(
    context: xr.Dataset, celltypes: xr.Dataset, whole: xr.Dataset
) -> None:
    more = extended(context, celltypes)
    known = xr.concat([context[["signal", "observed"]], celltypes[["signal", "observed"]]], "celltype", join="exact")
    asked = [("C5", "DNase"), ("C6", "H3K27ac")]
    untrained = known.assign_attrs(context.attrs).avocado.impute(tracks=asked, model=context).imputed
    trained = more.avocado.impute(tracks=asked).imputed
    for c, a in asked:
        mine = untrained.sel(celltype=c, assay=a).values
        np.testing.assert_array_equal(mine, trained.sel(celltype=c, assay=a).values)
        assert np.isfinite(mine).all() and mine.std() > 0.05


def test_leaving_out_a_track_of_an_unseen_cell_type_undoes_its_level(
    context: xr.Dataset, celltypes: xr.Dataset
) -> None:
    pair = {"celltype": "C5", "assay": "H3K4me3"}
    there = xr.full_like(celltypes.observed, False)
    there.loc[pair] = True
    louder = celltypes.assign(signal=celltypes.signal.where(~there, 2 * celltypes.signal + 1))
    one, other = (
        ds.avocado.impute(tracks=[tuple(pair.values())], model=context, leave_one_out=True).imputed.sel(pair).values
        for ds in (celltypes, louder)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_levels_of_new_tracks_are_measured_and_those_of_known_ones_kept(
    context: xr.Dataset, celltypes: xr.Dataset
) -> None:
    more = extended(context, celltypes)
    there = celltypes.observed.values
    tracks = celltypes.signal.values[there]
    np.testing.assert_allclose(more.track_mean.values[4:][there], tracks.mean(-1), rtol=1e-4)
    np.testing.assert_allclose(more.track_spread.values[4:][there], tracks.std(-1), rtol=1e-4)
    assert np.isfinite(more.track_mean).all() and (more.track_spread > 0).all()


def test_every_parameter_of_an_assay_is_known_as_such() -> None:
    config = Config(**CONTEXT)
    two, three = (ContextNet(config, Levels(*np.ones((2, 1, n), np.float32))) for n in (2, 3))
    of = assay_of_parameters(three)
    assert (of < 2).sum() == assay_of_parameters(two).numel()
    assert len({int((of == a).sum()) for a in range(3)}) == 1
    for (name, small), large in zip(two.named_parameters(), three.parameters(), strict=True):
        start = sum(p.numel() for n, p in three.named_parameters() if list(dict(three.named_parameters())).index(n) < list(dict(three.named_parameters())).index(name))  # fmt: skip
        own = int((of[start : start + large.numel()] >= 2).sum())
        assert own == large.numel() - small.numel(), f"{name} grows with the assays, and extend does not know how"


def test_an_assay_that_is_not_seen_tells_nothing() -> None:
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    random = torch.Generator().manual_seed(0)
    config = Config(**CONTEXT)
    levels = Levels(*torch.rand(2, 3, 4, generator=random).add(0.5).numpy())
    large = ContextNet(config, levels, generator=random).eval()
    torch.nn.init.normal_(large.out.weight, generator=random)
    small = ContextNet(config, Levels(levels.mean[:, :3], levels.spread[:, :3])).eval()
    vector = parameters_to_vector(large.parameters()).detach().numpy()[None]
    vector_to_parameters(torch.from_numpy(of_assays(config, vector, 4, [0, 1, 2])[0]), small.parameters())
    signal, visible = torch.rand(20, 3, 4, len(config.context_scales), generator=random), torch.ones(20, 3, 4)
    visible[:, :, 3], visible[:, 0, 0] = 0, 0
    at = torch.zeros(20, 1, dtype=torch.long)
    torch.testing.assert_close(
        large(signal, visible, at, at), small(signal[:, :, :3], visible[:, :, :3], at, at), rtol=1e-4, atol=1e-5
    )


def test_nothing_new_is_no_work(
    context: xr.Dataset, known: xr.Dataset, whole: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert extended(context, known).identical(context)
    assert not caplog.records
    assert extended(context, whole.isel(KNOWN)).identical(context)
    assert "C1 H3K4me3" in caplog.text


def test_what_cannot_be_learnt_is_told_before_training(
    factors: xr.Dataset, context: xr.Dataset, whole: xr.Dataset, celltypes: xr.Dataset
) -> None:
    cases = [
        (factors, whole, "celltype C5, C6; assay H3K36me3.* one after the other"),
        (factors, datasets.simulate(5, 4, {"chr7": 50_000}), "celltype C5; position 2,000 bins"),
        (factors, celltypes.avocado.hold_out([("C6", "H3K4me3")]), "C6 has no observed track"),
        (factors, celltypes.avocado.coarsen(2), "binsize"),
        (factors, celltypes.assign_attrs(transform="log1p"), "transform"),
        (factors, celltypes.avocado.normalize(progress=False), "normalized"),
        (factors, celltypes.drop_vars("signal"), "no 'signal'"),
        (celltypes, celltypes, "not fitted"),
        (context.drop_vars("signal"), whole.isel(celltype=slice(4)), "has no signal"),
        (factors, celltypes.assign(signal=celltypes.signal.where(celltypes.celltype != "C6")), "all NaN"),
    ]
    for model, new, says in cases:
        with pytest.raises(CubeError, match=says):
            extended(model, new)
    with pytest.raises(GenomeError, match="inside a bin"):
        extended(factors, datasets.simulate(5, 4, {"chr1": 100_005}))
    with pytest.raises(ValueError, match="epochs"):
        extended(factors, celltypes, epochs=0)


def test_layers_of_before_are_dropped(factors: xr.Dataset, celltypes: xr.Dataset) -> None:
    more = extended(factors.avocado.impute().avocado.average(), celltypes)
    assert not {"imputed", "imputed_tracks", "average", "support"} & set(more.data_vars)


def test_labels_cut_after_extending_are_predicted_as_before(context: xr.Dataset, celltypes: xr.Dataset) -> None:
    more = extended(context, celltypes)
    cut = more.isel(celltype=[5, 1, 4])
    np.testing.assert_array_equal(
        cut.avocado.impute("C2").imputed.sel(celltype="C2").values,
        more.sel(celltype=["C2", "C5", "C6"]).avocado.impute("C2").imputed.sel(celltype="C2").values,
    )


# --- new positions ------------------------------------------------------------------------------------------------------

ELSEWHERE = ["chr1:40,000-75,000", "chr2:2,500-27,500", "chr3"]


@pytest.fixture(scope="module")
def genome() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr1": 100_010, "chr2": 50_007, "chr3": 30_000})


@pytest.fixture(scope="module")
def elsewhere(genome: xr.Dataset) -> xr.Dataset:
    return genome.avocado.sel(ELSEWHERE)


@pytest.fixture(scope="module")
def there(genome: xr.Dataset) -> xr.Dataset:
    """The positions that a model is trained on: all the others."""
    return genome.avocado.sel(["chr1:0-40,000", "chr1:75,000-", "chr2:30,000-"])


@pytest.fixture(scope="module")
def pilot(there: xr.Dataset) -> xr.Dataset:
    rates = {"batch": 400, "genome_learning_rate": 0.05, "patience": 0}
    return there.avocado.fit(config={**FACTORS, **rates}, epochs=40, progress=False)


def test_new_positions_come_where_they_belong(pilot: xr.Dataset, elsewhere: xr.Dataset, there: xr.Dataset) -> None:
    more = extended(pilot, elsewhere)
    assert more.avocado.bins.segments.values.tolist() == [
        ["chr1", 0, 100_010],
        ["chr2", 2_500, 27_500],
        ["chr2", 30_000, 50_007],
        ["chr3", 0, 30_000],
    ]
    for cube, regions in ((elsewhere, ELSEWHERE), (there, ["chr1:0-40,000", "chr1:75,000-", "chr2:30,000-"])):
        np.testing.assert_array_equal(more.avocado.sel(regions).signal, cube.signal)
    for name in ("celltype_factors", "assay_factors", *(n for n in pilot.data_vars if n.startswith("network"))):
        np.testing.assert_array_equal(more[name], pilot[name])
    back = more.avocado.sel(["chr1:0-40,000", "chr1:75,000-", "chr2:30,000-"])
    for name in ("genome_factors_25bp", "genome_factors_250bp", "genome_factors_5kbp"):
        np.testing.assert_array_equal(back[name], pilot[name])
    np.testing.assert_array_equal(imputed(back), imputed(pilot))
    assert np.isfinite(imputed(more)).all()
    (entry,) = more.attrs["avocado"]["extended"]
    assert (entry["axis"], entry["labels"], entry["epochs"]) == ("position", [], 1)


def test_new_positions_are_learnt(there: xr.Dataset, elsewhere: xr.Dataset) -> None:
    rates = {"batch": 400, "genome_learning_rate": 0.05}
    model = there.avocado.fit(config={**FACTORS, **rates}, epochs=30, validation=None, progress=False)
    before, after = (extended(model, elsewhere, only_new=True, epochs=epochs) for epochs in (1, 30))
    errors = [float(((ds.avocado.impute().imputed - elsewhere.signal) ** 2).mean()) for ds in (before, after)]
    variance = float(elsewhere.signal.var("position").mean())
    assert errors[1] < 0.6 * variance < errors[0]
    assert errors[1] < 1.2 * float(((model.avocado.impute().imputed - there.signal) ** 2).mean()), "as well as in fit"


def test_tracks_set_aside_have_no_part_in_new_positions(pilot: xr.Dataset, elsewhere: xr.Dataset) -> None:
    pairs = pilot.attrs["avocado"]["validation"]
    scrambled = elsewhere.copy(deep=True)
    for c, a in pairs:
        scrambled.signal.loc[{"celltype": c, "assay": a}] = 7.0
    models = [extended(pilot, ds) for ds in (elsewhere, scrambled)]
    np.testing.assert_array_equal(*(m.genome_factors_25bp for m in models))
    assert pairs and not [p for p in models[0].attrs["avocado"]["trained_on"] if p in pairs]


def test_the_new_positions_alone(pilot: xr.Dataset, elsewhere: xr.Dataset) -> None:
    alone, both = extended(pilot, elsewhere, only_new=True), extended(pilot, elsewhere)
    assert alone.avocado.bins == elsewhere.avocado.bins
    assert list(alone.sizes) and set(alone.data_vars) == set(both.data_vars)
    cut = both.avocado.sel(ELSEWHERE)
    for name in both.data_vars:
        np.testing.assert_array_equal(alone[name], cut[name], err_msg=str(name))


def test_a_cube_of_old_and_new_positions_learns_the_new_ones(
    pilot: xr.Dataset, elsewhere: xr.Dataset, genome: xr.Dataset
) -> None:
    whole = genome.avocado.sel(["chr1", "chr2:2,500-27,500", "chr2:30,000-", "chr3"])
    xr.testing.assert_identical(extended(pilot, whole).drop_attrs(), extended(pilot, elsewhere).drop_attrs())


def test_a_chromosome_is_learnt_the_same_alone_and_among_others(
    pilot: xr.Dataset, elsewhere: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado import extend_positions

    monkeypatch.setattr(extend_positions, "MEMORY", 100_000)
    together = extended(pilot, elsewhere, only_new=True)
    for region in ELSEWHERE:
        alone = extended(pilot, elsewhere.avocado.sel(region), only_new=True)
        for name in ("genome_factors_25bp", "genome_factors_5kbp"):
            np.testing.assert_array_equal(alone[name], together.avocado.sel(region)[name])


def test_a_part_of_the_labels_and_of_the_tracks_will_do(pilot: xr.Dataset, elsewhere: xr.Dataset) -> None:
    few = elsewhere.isel(celltype=[2, 0], assay=[1, 3])
    few = few.assign(signal=few.signal.where((few.chrom != "chr3") | (few.celltype != "C3")))
    more = extended(pilot, few)
    np.testing.assert_array_equal(
        more.avocado.sel(ELSEWHERE).signal.sel(celltype="C1", assay=few.assay), few.signal.sel(celltype="C1")
    )
    assert more.avocado.sel("chr3").signal.sel(celltype="C2").isnull().all()
    assert np.isfinite(imputed(more)).all()


def test_positions_without_a_value_are_told(
    pilot: xr.Dataset, elsewhere: xr.Dataset, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hollow = elsewhere.assign(signal=elsewhere.signal.where(elsewhere.chrom == "chr9"))
    for how in ({}, {"store": tmp_path / "more.zarr"}, {"only_new": True}):
        with pytest.raises(CubeError, match=r"at the 3,600 new positions the signal of all \d+ tracks is NaN"):
            extended(pilot, hollow, **how)
    assert list(tmp_path.iterdir()) == []
    gap = elsewhere.assign(signal=elsewhere.signal.where(elsewhere.chrom != "chr3"))
    more = extended(pilot, gap)
    assert [r.message for r in caplog.records if "NaN" in r.message] == [
        f"nothing is learnt of chr3:0-30,000: the signal of all {len(elsewhere.avocado.experiments) - 2} tracks is NaN there"
    ]
    np.testing.assert_array_equal(
        more.avocado.sel("chr2:2,500-27,500").genome_factors_25bp,
        extended(pilot, elsewhere).avocado.sel("chr2:2,500-27,500").genome_factors_25bp,
    )


def test_a_new_label_without_a_value_is_told(
    factors: xr.Dataset, context: xr.Dataset, celltypes: xr.Dataset, assay: xr.Dataset
) -> None:
    for model in (factors, context):
        for new in (celltypes, assay):
            with pytest.raises(CubeError, match="is marked as observed but its signal is all NaN"):
                extended(model, new.assign(signal=new.signal * np.nan))


def test_the_published_pilot_model_learns_a_chromosome(tmp_path: Any, genome: xr.Dataset) -> None:
    model = genome.avocado.sel("chr1").avocado.fit("small", epochs=1, progress=False)
    files = model.avocado.to_keras(tmp_path / "pilot", progress=False)
    # The rows of its array, taken for regions that begin off the grid of coarse scales.
    read = xa.read_keras(files[0], genome=genome.attrs["chromsizes"], regions=["chr1:75-50,075", "chr2:0-50,007"])
    new = genome.avocado.sel("chr3")
    with pytest.raises(CubeError, match="only_new=True"):
        extended(read, new)
    alone = extended(read, new, only_new=True)
    assert alone.genome_factors_5kbp.sizes["position_5kbp"] == 6
    assert np.isfinite(imputed(alone)).all()
    np.testing.assert_array_equal(alone.network_weight_0, model.network_weight_0)
    assert xa.read_keras(alone.avocado.to_keras(tmp_path / "mine-chr3", progress=False)[0]).sizes["position"] == 1_200


# --- kept in a store, taken up again, on a cluster ------------------------------------------------------------------------

PARAMETERS = (
    "genome_factors_25bp",
    "genome_factors_250bp",
    "genome_factors_5kbp",
    "celltype_factors",
    "network_weight_0",
)


def assert_same_model(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    assert one.avocado.bins == other.avocado.bins
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chromosomes of a few pieces each, and a checkpoint after each pass."""
    from xr_avocado import extend, extend_positions

    monkeypatch.setattr(extend_positions, "MEMORY", 200_000)
    monkeypatch.setattr(extend, "CHECKPOINT_MINUTES", 0.0)


@pytest.mark.usefixtures("many_pieces")
def test_what_is_kept_in_a_store_comes_back_lazy(tmp_path: Any, pilot: xr.Dataset, elsewhere: xr.Dataset) -> None:
    whole = extended(pilot, elsewhere, epochs=2)
    kept = extended(pilot, elsewhere, epochs=2, store=tmp_path / "more.zarr")
    assert_same_model(kept, whole)
    assert kept.genome_factors_25bp.chunks is not None
    stored = xa.open_cube(tmp_path / "more.zarr")
    assert "signal" not in stored and stored.attrs["avocado"] == kept.attrs["avocado"]
    assert not list(tmp_path.glob(".*")), "nothing is left of the work"


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize("after", [1, 5, 9])
def test_work_that_was_broken_off_goes_on_to_the_same_result(
    tmp_path: Any, pilot: xr.Dataset, elsewhere: xr.Dataset, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    from xr_avocado.model.optimizer import BlockTable

    undisturbed = extended(pilot, elsewhere, epochs=3)
    step, steps = BlockTable.step, []

    def counted(self: BlockTable, *args: Any, **kwargs: Any) -> None:
        steps.append(1)
        step(self, *args, **kwargs)

    monkeypatch.setattr(BlockTable, "step", counted)
    extended(pilot, elsewhere, epochs=3)
    total = len(steps)

    def broken(self: BlockTable, *args: Any, **kwargs: Any) -> None:
        if len(steps) > total * after // 10:
            raise MemoryError
        counted(self, *args, **kwargs)

    steps.clear()
    monkeypatch.setattr(BlockTable, "step", broken)
    with pytest.raises(MemoryError):
        extended(pilot, elsewhere, epochs=3, store=tmp_path / "more.zarr")
    assert not (tmp_path / "more.zarr").exists()
    before = len(steps)
    steps.clear()
    monkeypatch.setattr(BlockTable, "step", counted)
    assert_same_model(extended(pilot, elsewhere, epochs=3, store=tmp_path / "more.zarr"), undisturbed)
    assert len(steps) <= total - before + 3 * 3, "no more is done again than one pass over a piece"


def test_a_finished_store_is_opened_and_one_of_another_call_refused(
    tmp_path: Any, pilot: xr.Dataset, elsewhere: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado.model import extension

    store = tmp_path / "more.zarr"
    first = extended(pilot, elsewhere, store=store).load()
    monkeypatch.setattr(extension, "learn_blocks", None)
    assert_same_model(extended(pilot, elsewhere, store=store), first)
    with pytest.raises(CubeError, match="of another call"):
        extended(pilot, elsewhere, store=store, seed=1)
    with pytest.raises(CubeError, match="of another call"):
        extended(pilot, elsewhere.assign(signal=elsewhere.signal + 1), store=store)
    monkeypatch.undo()
    assert not np.array_equal(
        extended(pilot, elsewhere, store=store, seed=1, overwrite=True).genome_factors_25bp, first.genome_factors_25bp
    )


def test_new_labels_are_kept_in_a_store_too(tmp_path: Any, context: xr.Dataset, celltypes: xr.Dataset) -> None:
    kept = extended(context, celltypes, store=tmp_path / "more.zarr")
    assert_same_model(kept, extended(context, celltypes))
    assert_same_model(extended(context, celltypes, store=tmp_path / "more.zarr"), kept)
    assert "signal" in kept and "signal" not in xa.open_cube(tmp_path / "more.zarr")


def test_what_does_not_go_together_is_told(factors: xr.Dataset, celltypes: xr.Dataset, pilot: xr.Dataset) -> None:
    for option in ({"only_new": True}, {"client": object()}):
        with pytest.raises(ValueError, match="for new positions"):
            extended(factors, celltypes, **option)
    inside = datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr3": 20_000})
    model = extended(pilot, inside.avocado.sel("chr3:0-11,000"))
    with pytest.raises(CubeError, match="meet those of the model inside a bin of"):
        extended(model, inside.avocado.sel("chr3:11,000-"))
    with pytest.raises(CubeError, match="no experiment at the new positions"):
        extended(pilot, inside.avocado.hold_out(inside.avocado.experiments))


@pytest.mark.slow
@pytest.mark.usefixtures("many_pieces")
def test_a_process_that_is_killed_goes_on(tmp_path: Any, pilot: xr.Dataset, elsewhere: xr.Dataset) -> None:
    program = (
        "import sys, xr_avocado as xa\n"
        "from xr_avocado import extend, extend_positions\n"
        "extend_positions.MEMORY, extend.CHECKPOINT_MINUTES = 200_000, 0.0\n"
        "model, new = (xa.open_cube(path) for path in sys.argv[1:3])\n"
        "model.avocado.extend(new, epochs=50, store=sys.argv[3], device='cpu', progress=False)\n"
    )
    paths = [tmp_path / "model.zarr", tmp_path / "new.zarr"]
    model, new = (ds.avocado.to_zarr(path, progress=False) for ds, path in zip((pilot, elsewhere), paths, strict=True))
    store, folder = tmp_path / "more.zarr", tmp_path / ".more.zarr.fitting"
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, paths), str(store)])
    wait_for(lambda: len(list(folder.glob("*.done"))) >= 2 or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not store.exists() and list(folder.glob("*.done"))
    assert_same_model(extended(model, new, epochs=50, store=store), extended(model, new, epochs=50))


@pytest.mark.slow
def test_a_cluster_learns_what_one_process_learns(
    tmp_path: Any, pilot: xr.Dataset, genome: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chromosomes side by side on two workers, one of which is killed while it works."""
    from distributed import Client, LocalCluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    new = datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={f"chr{i}": 20_000 for i in range(3, 7)})
    new.avocado.to_zarr(tmp_path / "new.zarr", progress=False)
    new = xa.open_cube(tmp_path / "new.zarr")
    serial = extended(pilot, new, epochs=40)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert_same_model(extended(pilot, new, epochs=40, client=client), serial)
        folder = tmp_path / ".killed.zarr.fitting"
        first = next(iter(client.run(os.getpid).values()))
        killer = threading.Thread(
            target=lambda: (wait_for(lambda: any(folder.glob("*"))), os.kill(first, signal.SIGKILL))
        )
        killer.start()
        assert_same_model(extended(pilot, new, epochs=40, client=client, store=tmp_path / "killed.zarr"), serial)
        killer.join()


def wait_for(condition: Any) -> None:
    for _ in range(3_000):
        if condition():
            return
        time.sleep(0.01)


# --- refined ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["factors", "context"])
def test_refining_moves_everything_from_where_it_was(
    kind: str, celltypes: xr.Dataset, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    frozen, moved = extended(model, celltypes), extended(model, celltypes, refine=True)
    for name in (
        "celltype_factors",
        "network_weight_0",
        "genome_factors_25bp",
        *(["context_net"] if kind == "context" else []),
    ):
        step, size = (float(abs(x).mean()) for x in (moved[name] - frozen[name], frozen[name]))
        assert 0 < step < 0.3 * size, name
    assert moved.attrs["avocado"]["extended"][0]["refined"]
    assert moved.attrs["avocado"]["best_epoch"] == model.attrs["avocado"]["best_epoch"]
    np.testing.assert_array_equal(moved.signal, frozen.signal)
    assert np.isfinite(imputed(moved)).all()


def test_a_refined_model_reads_all_tracks(context: xr.Dataset, celltypes: xr.Dataset) -> None:
    moved = extended(context, celltypes, refine=True)
    other = moved.assign(signal=moved.signal.where(moved.celltype != "C5", moved.signal + 1))
    assert not np.array_equal(imputed(moved)[:4], imputed(other)[:4])
    frozen = extended(context, celltypes)
    other = frozen.assign(signal=frozen.signal.where(frozen.celltype != "C5", frozen.signal + 1))
    np.testing.assert_array_equal(imputed(frozen)[:4], imputed(other)[:4])


def test_what_cannot_be_refined_is_told(
    factors: xr.Dataset, pilot: xr.Dataset, celltypes: xr.Dataset, elsewhere: xr.Dataset
) -> None:
    with pytest.raises(CubeError, match="no 'signal'"):
        extended(factors.drop_vars("signal"), celltypes, refine=True)
    with pytest.raises(ValueError, match="only_new"):
        extended(pilot, elsewhere, refine=True, only_new=True)
    with pytest.raises(CubeError, match="cut to some"):
        extended(factors.isel(assay=slice(2)), celltypes.isel(assay=slice(2)), refine=True)


# --- the command line, and the parts ----------------------------------------------------------------------------------------


def test_the_command_extends(
    tmp_path: Any, context: xr.Dataset, celltypes: xr.Dataset, capsys: pytest.CaptureFixture
) -> None:
    for ds, name in ((context, "model.fitted.zarr"), (celltypes, "new.zarr")):
        ds.avocado.to_zarr(tmp_path / name, precision="float32", progress=False)
    command = ["extend", str(tmp_path / "model.fitted.zarr"), str(tmp_path / "new.zarr"), "--epochs", "1", "--quiet"]
    assert main(command) == 0
    out = tmp_path / "model.fitted.extended.zarr"
    assert str(out) in capsys.readouterr().out
    written = xa.open_cube(out)
    np.testing.assert_allclose(written.signal, extended(context, celltypes).signal, atol=4e-3)
    np.testing.assert_array_equal(written.celltype_factors, extended(context, celltypes).celltype_factors)
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_frozen_layers_pass_the_same_gradient_on() -> None:
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    terms = draw(3, 20, 8).requires_grad_(), draw(3, 2, 8).requires_grad_()
    truth = draw(3, 20, 2)
    found = []
    for learn in (True, False):
        layers = [draw(8, 8).mul(0) + 0.3, torch.ones(1, 8)], [torch.zeros(8), torch.zeros(1)]
        for layer in (x for group in layers for x in group):
            layer.requires_grad_(learn)
        loss = squared_error(*terms, truth, *layers, piece=1)
        found.append(torch.autograd.grad(loss, terms))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
