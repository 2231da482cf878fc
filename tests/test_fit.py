from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xr_avocado import cube, datasets
from xr_avocado.baselines import average
from xr_avocado.fit import Layout, load_panel, validation_tracks
from xr_avocado.genome import GenomeBins
from xr_avocado.model.average import AverageActivity
from xr_avocado.model.config import PRESETS, Config, config_for
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.optimizer import BlockTable
from xr_avocado.model.sampling import batches
from xr_avocado.model.training import Trainer

SMALL = {"epochs": 2, "nodes": 16, "layers": 1, "batch": 8_000, "average": True, "context": False}


@pytest.fixture(scope="module")
def panel_cube() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr1": 200_010, "chr2": 90_007})


@pytest.fixture(scope="module")
def fitted(panel_cube: xr.Dataset) -> xr.Dataset:
    return panel_cube.avocado.fit(config=SMALL, progress=False)


def test_the_parameters_are_labelled_variables(fitted: xr.Dataset) -> None:
    config = Config.from_attrs(fitted.attrs["avocado"]["config"])
    assert fitted.celltype_factors.sizes == {"celltype": 4, "celltype_factor": config.celltype_factors}
    assert fitted.assay_factors.sizes == {"assay": 4, "assay_factor": config.assay_factors}
    assert fitted.genome_factors_25bp.dims == ("position", "factor_25bp")
    assert fitted.genome_factors_250bp.dims == ("position_250bp", "factor_250bp")
    assert fitted.genome_factors_5kbp.sizes["position_5kbp"] == 41 + 19
    assert fitted.network_weight_0.shape == (config.nodes, config.inputs)
    assert fitted.history.sizes == {"epoch": 2, "metric": 4}
    assert all(np.isfinite(fitted[v]).all() for v in fitted.data_vars if "factors" in v or "network" in v)


def test_coarse_factors_lie_on_the_genomes_grid(fitted: xr.Dataset) -> None:
    row = fitted.isel(position_250bp=3)
    assert (row.chrom_250bp.item(), row.start_250bp.item(), row.end_250bp.item()) == ("chr1", 750, 1000)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    panel_cube: xr.Dataset, fitted: xr.Dataset
) -> None:
    again = panel_cube.avocado.fit(config=SMALL, progress=False)
    other = panel_cube.avocado.fit(config=SMALL, seed=1, validation=None, progress=False)
    for name in ("genome_factors_25bp", "network_weight_0", "celltype_factors", "history"):
        np.testing.assert_array_equal(again[name], fitted[name])
    assert not np.array_equal(other.celltype_factors, fitted.celltype_factors)


def test_fit_leaves_torchs_global_random_state_alone(panel_cube: xr.Dataset) -> None:
    before = torch.get_rng_state()
    panel_cube.avocado.fit(config=SMALL, epochs=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_a_track_held_out_has_no_influence(panel_cube: xr.Dataset) -> None:
    hidden = [("C1", "H3K4me3"), ("C2", "DNase")]
    scrambled = panel_cube.copy(deep=True)
    for celltype, assay in hidden:
        scrambled.signal.loc[{"celltype": celltype, "assay": assay}] = 7.0
    models = [ds.avocado.hold_out(hidden).avocado.fit(config=SMALL, progress=False) for ds in (panel_cube, scrambled)]
    np.testing.assert_array_equal(*(m.avocado.impute(tracks=hidden).imputed for m in models))


def test_a_validation_track_chooses_the_epoch_and_trains_nothing(panel_cube: xr.Dataset) -> None:
    pair = {"celltype": "C1", "assay": "H3K4me3"}
    scrambled = panel_cube.copy(deep=True)
    scrambled.signal.loc[pair] = 7.0
    models = [
        ds.avocado.fit(config=SMALL, epochs=1, validation=[tuple(pair.values())], progress=False)
        for ds in (panel_cube, scrambled)
    ]
    np.testing.assert_array_equal(models[0].genome_factors_25bp, models[1].genome_factors_25bp)
    np.testing.assert_array_equal(models[0].network_weight_0, models[1].network_weight_0)
    assert models[0].history.sel(metric="validation_mse") != models[1].history.sel(metric="validation_mse")


def test_the_best_epoch_comes_back(panel_cube: xr.Dataset) -> None:
    pair = [("C1", "H3K4me3")]
    model = panel_cube.avocado.fit(
        config={**SMALL, "epochs": 6, "genome_learning_rate": 0.2, "patience": 0}, validation=pair, progress=False
    )
    scores = model.history.sel(metric="validation_mse").values
    best = model.attrs["avocado"]["best_epoch"]
    assert best == scores.argmin() + 1
    assert best < 6, "the settings were meant to over-fit"
    imputed = model.avocado.impute(tracks=pair).imputed.sel(celltype="C1", assay="H3K4me3").values
    error = np.mean((imputed - panel_cube.signal.sel(celltype="C1", assay="H3K4me3").values) ** 2)
    # The epoch's score reads the panel's float16 copy.
    assert error == pytest.approx(scores.min(), rel=1e-3)


def test_early_stopping_stops(panel_cube: xr.Dataset) -> None:
    model = panel_cube.avocado.fit(
        config={**SMALL, "epochs": 30, "genome_learning_rate": 0.2, "patience": 2}, progress=False
    )
    assert model.sizes["epoch"] == model.attrs["avocado"]["best_epoch"] + 2 < 30


def test_training_learns_the_panel(panel_cube: xr.Dataset) -> None:
    model = panel_cube.avocado.fit("small", config={"nodes": 16, "batch": 4_000}, epochs=8, progress=False)
    loss = model.history.sel(metric="train_mse").values
    variance = float(panel_cube.signal.var())
    assert loss[-1] < 0.5 * loss[0]
    assert loss[-1] < 0.75 * variance


def test_fitting_again_replaces_the_model(fitted: xr.Dataset) -> None:
    again = fitted.avocado.fit(
        config={**SMALL, "scales": (1, 4), "genome_factors": (2, 3)}, epochs=1, validation=None, progress=False
    )
    assert "genome_factors_250bp" not in again
    assert "position_250bp" not in again.dims
    assert again.genome_factors_100bp.sizes == {"position_100bp": 2001 + 901, "factor_100bp": 3}


def test_regions_that_start_and_end_inside_a_block() -> None:
    whole = datasets.simulate(n_celltypes=3, n_assays=3, chromsizes={"chr1": 60_010})
    part = whole.avocado.sel(["chr1:3,325-21,050", "chr1:40,000-60,010"])
    model = part.avocado.fit(config=SMALL, epochs=1, validation=None, progress=False)
    assert model.genome_factors_5kbp.sizes["position_5kbp"] == 5 + 5
    assert np.isfinite(model.avocado.impute().imputed.values).all()


@given(
    starts=st.lists(st.integers(0, 60), min_size=1, max_size=4, unique=True),
    scales=st.sampled_from([(1,), (1, 3), (1, 2, 10), (1, 10, 200)]),
)
def test_every_bin_of_every_scale_has_a_slot_of_its_own(starts: list[int], scales: tuple[int, ...]) -> None:
    starts = sorted(starts)
    segments = [("c", 25 * s, 25 * e) for s, e in zip(starts, [*starts[1:], 900], strict=True)]
    segments = [(c, s, max(s + 25, e - 25 * (i % 2))) for i, (c, s, e) in enumerate(segments)]
    config = Config(scales=scales, genome_factors=(1,) * len(scales), context=False)
    layout = Layout.of(bins := GenomeBins(segments, 25), config)
    for axis, slots, scale in zip(layout.coarse, layout.slots, scales, strict=True):
        assert len(np.unique(slots)) == len(axis)
        assert slots.max() < layout.n_blocks * config.block // scale
        np.testing.assert_array_equal(slots[axis.rows_of(bins)], layout.slots[0] // scale)


def test_the_split_first_layer_is_the_network_on_concatenated_factors() -> None:
    config = Config(celltype_factors=3, assay_factors=4, genome_factors=(2, 5, 6), layers=2, nodes=7, average=False)
    net = AvocadoNet(config, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    random = torch.Generator().manual_seed(1)
    genome = [
        torch.randn(2, 200 // s, f, generator=random, dtype=torch.double)
        for s, f in zip((1, 10, 200), (2, 5, 6), strict=True)
    ]
    celltype, assay = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1, 0], [0, 1]])
    got = net(genome, celltype, assay).detach().numpy()
    weights = [w.detach().numpy() for w in net.weights]
    biases = [b.detach().numpy() for b in net.biases]
    for block, position, k in [(0, 0, 0), (1, 199, 1), (0, 57, 1)]:
        x = np.concatenate([
            net.celltype_factors[celltype[block, k]].detach(), net.assay_factors[assay[block, k]].detach(),
            genome[0][block, position], genome[1][block, position // 10], genome[2][block, 0],
        ])  # fmt: skip
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            x = np.maximum(w @ x + b, 0)
        assert got[block, position, k] == pytest.approx((weights[-1] @ x + biases[-1]).item(), abs=1e-12)


def test_row_wise_adam_is_adam_on_the_rows_visited() -> None:
    values = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    table = BlockTable(values.clone(), decay=0.5)
    mine = torch.nn.Parameter(values[[2, 0]].clone())
    theirs = torch.optim.AdamW([mine], lr=0.1, weight_decay=0.5, eps=1e-12)
    for visit in (1, 2, 3):
        blocks = torch.tensor([2, 0])
        rows = table.read(blocks)
        (rows**2).sum().backward()
        table.step(blocks, rows, rate=0.1, visit=visit)
        theirs.zero_grad()
        (mine**2).sum().backward()
        theirs.step()
    torch.testing.assert_close(table.values[[2, 0]], mine.detach())
    torch.testing.assert_close(table.values[[1, 3]], values[[1, 3]], rtol=0, atol=0)


def test_training_averages_as_the_baseline_does(panel_cube: xr.Dataset) -> None:
    holes = panel_cube.copy(deep=True)
    holes.signal[1, 2, 100:300] = np.nan
    held = holes.avocado.hold_out([("C1", "H3K4me3")])
    config = Config()
    layout = Layout.of(held.avocado.bins, config)
    panel = load_panel(held, cube.experiments(held), layout, config, torch.device("cpu"))
    every = AverageActivity(panel, 4)
    blocks = torch.arange(layout.n_blocks)
    expected = average(held).transpose("celltype", "assay", "position").values
    for c, a in [(0, 0), (1, 2), (2, 2), (3, 1)]:
        tracks = torch.full((layout.n_blocks, 1), c), torch.full((layout.n_blocks, 1), a)
        got = every(blocks, *tracks).reshape(-1).numpy()[layout.slots[0]]
        np.testing.assert_allclose(got, expected[c, a], atol=3e-3)


def test_an_epoch_visits_every_block_once_with_distinct_tracks(panel_cube: xr.Dataset) -> None:
    config = Config()
    layout = Layout.of(panel_cube.avocado.bins, config)
    panel = load_panel(panel_cube, cube.experiments(panel_cube), layout, config, torch.device("cpu"))
    drawn = list(batches(panel, tracks_per_position=3, batch=5 * 600, generator=torch.Generator().manual_seed(0)))
    assert sorted(torch.cat([b.blocks for b in drawn]).tolist()) == list(range(layout.n_blocks))
    assert all(len(set(row)) == 3 for b in drawn for row in b.tracks.tolist())
    assert max(len(b.blocks) for b in drawn) == 5


def test_validation_takes_no_label_s_last_track(panel_cube: xr.Dataset) -> None:
    only = [("C1", "H3K4me3"), ("C1", "H3K27ac"), ("C2", "H3K27ac"), ("C3", "H3K27ac")]
    hidden = [pair for pair in panel_cube.avocado.experiments if tuple(pair) not in only]
    sparse = panel_cube.avocado.hold_out(hidden)
    assert {tuple(p) for seed in range(20) for p in validation_tracks(sparse, "auto", seed=seed)} == {("C1", "H3K27ac")}
    assert validation_tracks(sparse, None, seed=0) == []


def test_default_sizes_grow_with_the_panel() -> None:
    sizes = [config_for(n).nodes for n in (20, 200, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == PRESETS["paper"].nodes == 2048
    assert PRESETS["paper"].inputs == 398
    assert not PRESETS["paper"].average


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"preset": "huge"}, "'paper', 'small'"),
        ({"config": {"node": 3}}, "'node' is not a model setting"),
        ({"config": {"nodes": 0}}, "nodes must be at least 1"),
        ({"config": {"scales": (1, 10, 15), "genome_factors": (1, 1, 1)}}, "each divides the next"),
        ({"config": {"scales": (1, 10)}}, "one length"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"device": "cuda:7"}, "is not at hand"),
        ({"device": "warp"}, "is not at hand"),
        ({"validation": [("C9", "DNase")]}, "'C9' is not a celltype"),
        ({"validation": ["C1"]}, "pair"),
        ({"validation": 2.0}, "between 0 and 1"),
        ({"config": {"learning_rate": float("nan")}}, "learning_rate must be above 0"),
    ],
)
def test_bad_arguments_are_told_before_training(panel_cube: xr.Dataset, arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        panel_cube.avocado.fit(**arguments)


def test_a_diverging_run_says_so(panel_cube: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="lower learning_rate"):
        panel_cube.avocado.fit(config={**SMALL, "learning_rate": 1e30}, progress=False)


def test_a_run_that_diverges_late_stops_with_the_last_good_state(
    panel_cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    fit = lambda epochs, **how: panel_cube.avocado.fit(config={**SMALL, "epochs": epochs}, progress=False, **how)
    epoch = Trainer.epoch

    def diverging(self: Trainer, number: int, *args: object) -> float:
        loss = epoch(self, number, *args)
        if number < 2:
            return loss
        for parameter in self.net.parameters():
            parameter.data *= np.nan
        return np.nan

    monkeypatch.setattr(Trainer, "epoch", diverging)
    fitted = fit(9)
    assert "training error is no longer finite at epoch 3: lower learning_rate" in caplog.text
    assert fitted.attrs["avocado"]["best_epoch"] <= 2 and fitted.sizes["epoch"] == 3
    assert np.isfinite(fitted.avocado.impute().imputed).all()
    stored = fit(9, store=tmp_path / "fit.zarr").compute()
    for name in ("celltype_factors", "genome_factors_25bp", "network_weight_0"):
        np.testing.assert_array_equal(stored[name], fitted[name])
    assert [path.name for path in tmp_path.iterdir()] == ["fit.zarr"]


def test_a_cube_without_signal_or_tracks(panel_cube: xr.Dataset) -> None:
    with pytest.raises(cube.CubeError, match="no 'signal'"):
        panel_cube.drop_vars("signal").avocado.fit()
    with pytest.raises(cube.CubeError, match="no experiment"):
        panel_cube.avocado.hold_out(panel_cube.avocado.experiments).avocado.fit()
    empty = panel_cube.assign(signal=panel_cube.signal.where(panel_cube.celltype != "C2"))
    with pytest.raises(cube.CubeError, match="C2 .* all NaN"):
        empty.avocado.fit()


def test_an_interrupt_keeps_what_was_learned(panel_cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from xr_avocado.model.training import Trainer

    run = Trainer.epoch

    def interrupted(self: Trainer, number: int, *arguments: Any) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return run(self, number, *arguments)

    monkeypatch.setattr(Trainer, "epoch", interrupted)
    model = panel_cube.avocado.fit(config={**SMALL, "epochs": 9}, validation=None, progress=False)
    assert model.sizes["epoch"] == 2


@pytest.mark.gpu
def test_a_gpu_learns_what_the_cpu_learns(panel_cube: xr.Dataset) -> None:
    models = [panel_cube.avocado.fit(config=SMALL, device=d, progress=False) for d in ("cpu", "cuda")]
    np.testing.assert_allclose(*(m.history.sel(metric="train_mse") for m in models), rtol=0.02)


def test_an_interrupt_before_the_first_epoch_loses_nothing(
    panel_cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado.model import context_training
    from xr_avocado.model.training import Trainer

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "epoch", interrupted)
    monkeypatch.setattr(context_training, "_step", interrupted)
    model = panel_cube.avocado.fit(config={**SMALL, "context": True}, progress=False)
    assert np.isfinite(model.avocado.impute("C1").imputed.sel(celltype="C1").values).all()


def test_untransformed_signal_past_float16_is_trained_on(panel_cube: xr.Dataset) -> None:
    large = panel_cube.assign(signal=panel_cube.signal * 1e5).assign_attrs(transform="none")
    model = large.avocado.fit(config={**SMALL, "context_samples": 4_000, "context": True}, epochs=1, progress=False)
    assert np.isfinite(model.avocado.impute("C1").imputed.sel(celltype="C1").values).all()


def test_fitting_again_drops_what_the_earlier_model_imputed(fitted: xr.Dataset) -> None:
    again = fitted.avocado.impute().avocado.fit(config=SMALL, epochs=1, progress=False)
    assert "imputed" not in again and "imputed_tracks" not in again
