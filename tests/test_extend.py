from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xr_avocado as xa
from xr_avocado import datasets
from xr_avocado.cube import CubeError
from xr_avocado.generations import as_known_to
from xr_avocado.genome import GenomeError
from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet
from xr_avocado.model.context_extension import assay_of_parameters, of_assays
from xr_avocado.model.levels import Levels

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
    for signal in (new, new.chunk(position=1_000)):
        more = extended(factors, signal)
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


def test_levels_of_new_tracks_are_measured_and_those_of_known_ones_kept(
    context: xr.Dataset, celltypes: xr.Dataset
) -> None:
    more = extended(context, celltypes)
    there = celltypes.observed.values
    np.testing.assert_allclose(
        more.track_mean.values[4:][there], celltypes.signal.mean("position").values[there], rtol=1e-4
    )
    np.testing.assert_allclose(
        more.track_spread.values[4:][there], celltypes.signal.std("position").values[there], rtol=1e-4
    )
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
    signal, visible = torch.rand(20, 3, 4, 3, generator=random), torch.ones(20, 3, 4)
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
