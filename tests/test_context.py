from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BSpline

import xr_avocado.impute
import xr_avocado.io.encoding
import xr_avocado.io.export
import xr_avocado.io.zarr
import xr_avocado.track_reader
from xr_avocado import cube, datasets
from xr_avocado.fit import Layout, load_panel
from xr_avocado.index import bins_of
from xr_avocado.io.checkpoint import Checkpoint
from xr_avocado.model import comparison, context_training
from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextEnsemble, ContextNet, KnownTracks
from xr_avocado.model.context_training import ContextSampler, Task, learn, task_error
from xr_avocado.model.levels import SHRINKAGES, Levels
from xr_avocado.model.windows import Windows
from xr_avocado.track_reader import TrackReader

QUICK = {
    "context_members": 2,
    "context_units": 8,
    "context_nodes": 16,
    "context_heads": 2,
    "context_samples": 20_000,
    "context_batch": 512,
}
FACTORS = {"nodes": 8, "layers": 1}
TINY = Config(**QUICK, **FACTORS)


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return datasets.simulate(n_celltypes=5, n_assays=4, chromsizes={"chr1": 100_010, "chr2": 50_007})


@pytest.fixture(scope="module")
def hidden() -> list[tuple[str, str]]:
    return [("C1", "H3K4me3"), ("C3", "H3K27ac")]


@pytest.fixture(scope="module")
def fitted(truth: xr.Dataset, hidden: list) -> xr.Dataset:
    return truth.avocado.hold_out(hidden).avocado.fit(config=QUICK | FACTORS, epochs=2, progress=False)


@pytest.fixture(scope="module")
def whole(fitted: xr.Dataset) -> xr.DataArray:
    """What is imputed for all pairs and positions."""
    return fitted.avocado.impute().imputed.compute()


def sampler_of(ds: xr.Dataset, config: Config = TINY) -> tuple[ContextSampler, Layout]:
    layout = Layout.of(ds.avocado.bins, config)
    panel = load_panel(ds, cube.experiments(ds), layout, config, torch.device("cpu"))
    labels = ds.sizes["celltype"], ds.sizes["assay"]
    return ContextSampler(panel, config, labels, torch.Generator().manual_seed(0)), layout


def test_an_untrained_context_term_is_average_activity_in_standard_units(truth: xr.Dataset, hidden: list) -> None:
    held = truth.avocado.hold_out(hidden)
    sampler, layout = sampler_of(held)
    levels = Levels.of(sampler.panel, sampler.labels)
    signal, visible, _ = sampler.read(torch.from_numpy(layout.slots[0]), sampler.celltypes)
    celltype, assay = torch.zeros(len(signal), 1, dtype=torch.long), torch.zeros(len(signal), 1, dtype=torch.long)
    got = ContextNet(TINY, levels)(signal, visible, celltype, assay).detach().numpy()[:, 0]
    others = held.signal.sel(assay="H3K4me3", celltype=["C2", "C3", "C4", "C5"])
    standard = ((others - others.mean("position")) / others.std("position")).mean("celltype").values
    column = held.assay.values.tolist().index("H3K4me3")
    np.testing.assert_allclose(got, levels.mean[0, column] + levels.spread[0, column] * standard, atol=8e-3)


def foretold(table: np.ndarray, overall: float, row: float, column: float) -> np.ndarray:
    """Effects of a table's rows and columns on top of its mean, by ridge regression on the labels' indicators."""
    i, j = np.nonzero(~np.isnan(table))
    rows, columns = table.shape
    penalty = np.diag(np.sqrt(np.repeat([row, column], [rows, columns])))
    design = np.vstack([np.hstack([np.eye(rows)[i], np.eye(columns)[j]]), penalty])
    target = np.concatenate([table[i, j] - overall, np.zeros(rows + columns)])
    effects = np.linalg.lstsq(design, target, rcond=None)[0]
    return overall + effects[:rows, None] + effects[rows:]


@pytest.mark.parametrize("kind", ["rows", "columns", "noise"])
def test_levels_are_measured_and_where_not_observed_foretold(kind: str) -> None:
    """Shrinkage is chosen by leaving out each entry in turn, done here by fitting again without it."""
    random = np.random.default_rng(1)
    table = 0.3 * random.normal(size=(5, 4))
    table += {"rows": random.normal(size=(5, 1)), "columns": random.normal(size=4), "noise": 0}[kind]
    table[[0, 2, 3], [1, 2, 0]] = np.nan
    there, overall = np.argwhere(~np.isnan(table)), float(np.nanmean(table))
    errors = {}
    for row, column in product(SHRINKAGES, SHRINKAGES):
        left_out = []
        for i, j in there:
            rest = table.copy()
            rest[i, j] = np.nan
            left_out.append(table[i, j] - foretold(rest, overall, row, column)[i, j])
        errors[row, column] = np.mean(np.square(left_out))
    expected = np.where(np.isnan(table), foretold(table, overall, *min(errors, key=errors.get)), table)
    got = Levels.completed(table, np.exp(-table))
    np.testing.assert_allclose(got.mean, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.spread, np.exp(-expected), rtol=1e-4)


def test_a_dead_track_has_levels() -> None:
    dead = Levels.completed(np.full((2, 2), 0.3), np.array([[0.0, 1], [2, 3]]))
    assert (dead.spread > 0).all() and np.isfinite(dead.spread).all()


def test_levels_of_a_panel_are_those_of_its_tracks(truth: xr.Dataset, hidden: list) -> None:
    held = truth.avocado.hold_out(hidden)
    sampler, _ = sampler_of(held)
    levels = Levels.of(sampler.panel, sampler.labels)
    there = held.observed.values
    tracks = held.signal.values[there]
    np.testing.assert_allclose(levels.mean[there], tracks.mean(-1), rtol=2e-3)
    np.testing.assert_allclose(levels.spread[there], tracks.std(-1), rtol=2e-3)
    assert np.isfinite(levels.mean).all() and (levels.spread > 0).all()


def test_what_is_hidden_is_not_read() -> None:
    random = torch.Generator().manual_seed(0)
    levels = Levels(*torch.rand(2, 5, 4, generator=random).add(0.5).numpy())
    net = ContextNet(TINY, levels, generator=random).eval()
    for out in (net.out, net.table_out):
        torch.nn.init.normal_(out.weight, generator=random)
    signal = torch.rand(50, 5, 4, len(TINY.context_scales), generator=random)
    visible = (torch.rand(50, 5, 4, generator=random) > 0.4).float()
    celltype, assay = (torch.randint(n, (50, 3), generator=random) for n in (5, 4))
    bins = torch.arange(50)[:, None]
    visible[bins, celltype, assay] = 0
    other = torch.where(visible[..., None] > 0, signal, torch.rand(signal.shape, generator=random) * 9)
    torch.testing.assert_close(
        net.readings(signal, visible, celltype, assay), net.readings(other, visible, celltype, assay)
    )
    seen = torch.where(visible[..., None] > 0, signal + 1, signal)
    changed = net.readings(signal, visible, celltype, assay) != net.readings(seen, visible, celltype, assay)
    assert (changed.float().mean((1, 2)) > 0.9).all()


def test_two_readers_are_trained_each_on_its_own_error_and_averaged(truth: xr.Dataset) -> None:
    sampler, _ = sampler_of(truth)
    net = ContextNet(TINY, Levels.of(sampler.panel, sampler.labels), generator=torch.Generator().manual_seed(0))
    task = Task.draw(sampler, net.spread)
    torch.testing.assert_close(net.eval()(*task.shown), net.readings(*task.shown).mean(0))
    gradients = []
    for offset in (0.0, 5.0):
        # What one reader says does not change what the other learns.
        torch.nn.init.constant_(net.out.bias, offset)
        net.zero_grad()
        task_error(net, task).backward()
        gradients.append(net.table_out.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(("rows", "fails"), [(1, False), (60, False), (60, True)])
def test_a_step_in_pieces_is_the_step(
    truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rows: int, fails: bool
) -> None:
    config = TINY.updated({"context_dropout": 0.0, "context_batch": 40})
    sampler, _ = sampler_of(truth, config)
    net = ContextNet(config, Levels.of(sampler.panel, sampler.labels), generator=torch.Generator().manual_seed(0))
    task = Task.draw(sampler, net.spread)
    expected = task_error(net, task) / task.truth.numel()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    readings, sizes = ContextNet.readings, []

    def small(net: ContextNet, signal: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(signal))
        # Not the first piece of a step, so that some of its gradients are there already.
        if fails and len(sizes) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return readings(net, signal, *rest)

    monkeypatch.setattr(context_training, "ROWS", rows)
    monkeypatch.setattr(ContextNet, "readings", small)
    got = learn(net, task)
    torch.testing.assert_close(got, expected.detach())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert sizes[0] < 40 and (sizes[-2] < sizes[0]) == fails == len(caplog.records)


@pytest.mark.parametrize("members", [1, 2])
def test_a_context_term_that_diverges_stops_with_the_last_good_state(
    truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, members: int
) -> None:
    config = QUICK | FACTORS | {"epochs": 1}
    step, steps = context_training._step, []

    def diverging(net: ContextNet, *args: object) -> tuple[int, torch.Tensor]:
        count, loss = step(net, *args)
        steps.append(net)
        if len({*map(id, steps)}) == members and steps.count(net) > 20:
            for parameter in net.parameters():
                parameter.data *= np.nan
            loss = loss * np.nan
        return count, loss

    fit = lambda **how: truth.avocado.fit(config=config, progress=False, **how)
    with monkeypatch.context() as patch:
        patch.setattr(context_training, "_step", diverging)
        fitted = fit()
        steps.clear()
        stored = fit(store=tmp_path / "fit.zarr").compute()
    assert "no longer finite: lower context_learning_rate, which is" in caplog.text and "kept" in caplog.text
    assert np.isfinite(fitted.context_net).all() and fitted.sizes["context_member"] == 1
    np.testing.assert_array_equal(stored.context_net, fitted.context_net)
    if members == 2:
        np.testing.assert_array_equal(fitted.context_net[0], fit().context_net[0])
    assert np.isfinite(fitted.avocado.impute().imputed).all()


@pytest.mark.parametrize("killed_after", [40, 60])
def test_a_context_term_that_diverges_after_a_kill_keeps_what_it_would_have_kept(
    truth: xr.Dataset, tmp_path: Path, killed_after: int
) -> None:
    config, labels = TINY, (truth.sizes["celltype"], truth.sizes["assay"])
    layout = Layout.of(bins_of(truth), config)
    panel = load_panel(truth, truth.avocado.experiments, layout, config, torch.device("cpu"))
    run, resumed = (context_training._Run(panel, config, labels, torch.Generator().manual_seed(0)) for _ in range(2))
    for _ in range(killed_after):
        run.advance()
    checkpoint = Checkpoint(tmp_path / "context", {}, minutes=0)
    run.save(checkpoint)
    resumed.restore(checkpoint.load())
    assert run.reports and run.least[1], "long enough to have something to keep"
    for each in (run, resumed):
        each.losses = [torch.tensor(np.nan)]
        each._report()
        assert each.stopped
    for name, value in run.members[-1].state_dict().items():
        torch.testing.assert_close(resumed.members[-1].state_dict()[name], value, rtol=0, atol=0)


def test_a_context_term_that_diverges_at_once_says_so(truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    step = context_training._step
    monkeypatch.setattr(context_training, "_step", lambda *args: (step(*args)[0], torch.tensor(np.nan)))
    with pytest.raises(ValueError, match=r"no longer finite: lower context_learning_rate, which is 0\.\d+"):
        truth.avocado.fit(config=QUICK | FACTORS | {"epochs": 1}, progress=False)


def test_out_of_memory_halves_what_the_context_term_predicts_at_once(
    fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = fitted.avocado.sel("chr2")
    whole = part.avocado.impute().imputed.values
    begin, sizes = KnownTracks.__init__, []

    def small(known: KnownTracks, net: ContextEnsemble, signal: torch.Tensor, visible: torch.Tensor) -> None:
        sizes.append(len(signal))
        if len(signal) > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        begin(known, net, signal, visible)

    monkeypatch.setattr(KnownTracks, "__init__", small)
    with caplog.at_level("WARNING"):
        np.testing.assert_allclose(part.avocado.impute().imputed, whole, atol=1e-5)
    assert sizes[0] > 100 >= sizes[-2]
    assert [record.message.split(":")[0] for record in caplog.records] == ["out of memory on the device"]


def test_targets_are_hidden_in_training(truth: xr.Dataset) -> None:
    sampler, _ = sampler_of(truth)
    slots, _ = sampler.draw(200)
    signal, known, cell = sampler.read(slots, sampler.celltypes)
    visible, celltype, assay = sampler.hide(known, cell, 7, 3)
    bins = torch.arange(200)[:, None]
    assert (visible[bins, celltype, assay] == 0).all()
    assert len({(int(c), int(a)) for c, a in zip(celltype[0], assay[0], strict=True)}) == 3
    assert (known.sum((1, 2)) - visible.sum((1, 2)) == 7).all()


def test_a_step_on_a_large_panel_reads_some_cell_types(truth: xr.Dataset, hidden: list) -> None:
    sampler, layout = sampler_of(truth.avocado.hold_out(hidden), TINY.updated({"context_celltypes": 3}))
    slots = torch.from_numpy(layout.slots[0])[::50]
    whole, visible, _ = sampler.read(slots, sampler.celltypes)
    drawn = [sampler.some_celltypes() for _ in range(40)]
    assert {len(rows) for rows in drawn} == {3} and set(torch.cat(drawn).tolist()) == set(range(5))
    for rows in drawn[:3]:
        signal, known, cell = sampler.read(slots, rows)
        torch.testing.assert_close(signal, whole[:, rows])
        torch.testing.assert_close(known, visible[:, rows])
        assert set(known.flatten(1).sum(0).nonzero().squeeze(1).tolist()) == set(cell.tolist())
    # What the step predicts is what the whole net would, were the other cell types not observed.
    net = ContextNet(TINY, Levels.of(sampler.panel, sampler.labels), generator=torch.Generator().manual_seed(0)).eval()
    torch.nn.init.normal_(net.out.weight)
    known[:, 1, 2] = 0
    others = torch.zeros_like(visible)
    others[:, rows] = known
    one, two = torch.ones(len(slots), 1, dtype=torch.long), torch.full((len(slots), 1), 2)
    got = net(signal, known, one, two, rows)
    torch.testing.assert_close(got, net(whole, others, rows[one], two))


def test_scales_are_smooth_windows_of_means_on_the_genomes_grid(truth: xr.Dataset) -> None:
    sampler, layout = sampler_of(truth)
    # Ends of segments and of blocks, what is beside them, and the rest at random; chr1 ends in bin 4,000, a block of its own.
    position = np.unique(
        [0, 99, 100, 101, 3_999, 4_000, 4_001, 6_001, *np.random.default_rng(0).integers(0, 6_002, 60)]
    )
    signal, _, _ = sampler.read(torch.from_numpy(layout.slots[0][position]), sampler.celltypes)
    frame = truth.signal.sel(celltype="C2", assay="DNase")
    table = pd.DataFrame({name: frame[name].values for name in ("chrom", "start")} | {"signal": frame.values})
    for level, bp in enumerate((25, 100, 500, 5_000)):
        means = table.groupby([table.chrom, table.start // bp]).signal.mean()
        for i, p in enumerate(position):
            of = means[table.chrom.iloc[p]]
            block, at = table.start.iloc[p] // bp, (table.start.iloc[p] + 12.5) / bp
            # Past the ends of a chromosome the last block goes on.
            beside = [of.iloc[np.clip(block + step, 0, len(of) - 1)] for step in (-1, 0, 1)]
            weights = BSpline.basis_element([0, 1, 2, 3])(at - block + [2, 1, 0]) if bp > 25 else [0, 1, 0]
            expected = np.dot(weights, beside)
            assert signal[i, 1, 3, level].item() == pytest.approx(expected, abs=5e-3)


def test_windows_go_no_further_than_what_is_joined_and_measured() -> None:
    continues = torch.tensor([False, True, False])
    slots = torch.tensor([0, 4, 5, 9, 10, 14])
    windows = Windows(slots // 5, slots, 5, continues)
    # At 0.4 blocks from the middle: 0.9 ** 2 / 2 of the block on that side, 0.1 ** 2 / 2 of the other.
    near, far = 0.405, 0.005
    means = torch.tensor([[1.0, 2, 5], [np.nan, 3, 6]])
    read = windows.read(means)
    nothing = "the third block goes on from nothing"
    np.testing.assert_allclose(read[0], [1 + far, 1 + near, 2 - near, 2 - far, 5, 5], rtol=1e-6, err_msg=nothing)
    np.testing.assert_allclose(read[1, 2:], [3, 3, 6, 6], err_msg="not measured in the first block")
    np.testing.assert_allclose(windows.at(slice(2, 4)).read(means, torch.tensor([0])), read[:1, 2:4])
    of_one_run = Windows(slots // 5, slots, 5, torch.tensor([False]), 3).read(means)[0, 3:]
    np.testing.assert_allclose(of_one_run, [2 - far + 3 * near, 5 - 3 * near, 5 - 3 * far], rtol=1e-6)
    finest = Windows(torch.arange(3), torch.arange(3), 1, torch.ones(3, dtype=torch.bool))
    np.testing.assert_array_equal(finest.read(means), means)


def test_drawing_bins_with_signal_more_often_leaves_the_expected_loss_alone(truth: xr.Dataset) -> None:
    sampler, layout = sampler_of(truth)
    slots, weight = sampler.draw(60_000)
    per_bin = np.full(sampler.panel.values[0].numel(), np.nan)
    per_bin[layout.slots[0]] = truth.signal.mean(("celltype", "assay")).values
    drawn = per_bin[slots.numpy()]
    assert np.isfinite(drawn).all(), "bins past a segment's end are never drawn"
    assert drawn.mean() > 1.2 * np.nanmean(per_bin)
    assert np.average(drawn, weights=weight.numpy()) == pytest.approx(np.nanmean(per_bin), rel=0.03)
    assert weight.mean() == pytest.approx(1, rel=0.03)


def test_it_imputes_better_than_average_activity(truth: xr.Dataset, hidden: list) -> None:
    sizes = {"context_units": 16, "context_nodes": 48, "context_batch": 1024, "context_members": 1}
    config = {**FACTORS, **sizes, "context_samples": 60_000}
    held = truth.avocado.hold_out(hidden)
    full = held.avocado.fit(config=config, epochs=8, progress=False).avocado.impute(tracks=hidden)
    table = full.avocado.evaluate(truth, tracks=hidden, measures=["mse", "gwcorr"], progress=False)
    mean = table.groupby("method")[["mse", "gwcorr"]].mean()
    assert mean.mse["imputed"] < 0.85 * mean.mse["average"]
    assert mean.gwcorr["imputed"] > mean.gwcorr["average"] + 0.03


def test_imputing_is_the_term_on_what_the_cube_shows(fitted: xr.Dataset, hidden: list) -> None:
    sampler, layout = sampler_of(fitted)
    levels = Levels(fitted.track_mean.values, fitted.track_spread.values)
    members = [ContextNet(TINY, levels) for _ in fitted.context_member]
    for member, values in zip(members, fitted.context_net.values, strict=True):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(values), member.parameters())
    assert not np.array_equal(*fitted.context_net.values[:2]), "each starts elsewhere"
    net = ContextEnsemble(members)
    signal, visible, _ = sampler.read(torch.from_numpy(layout.slots[0]), sampler.celltypes)
    imputed = fitted.avocado.impute().imputed
    for celltype, assay in [(0, 0), (2, 1), (1, 3)]:
        seen = visible.clone()
        seen[:, celltype, assay] = 0
        labels = torch.full((len(signal), 1), celltype), torch.full((len(signal), 1), assay)
        expected = net.eval()(signal, seen, *labels).detach().numpy()[:, 0]
        np.testing.assert_allclose(imputed[celltype, assay], expected, atol=1e-2)


def ensemble(seed: int) -> tuple[ContextEnsemble, torch.Tensor, torch.Tensor]:
    """Two networks with random parameters, and seven bins of four cell types, some tracks not visible."""
    random = torch.Generator().manual_seed(seed)
    signal = 3 * torch.randn(7, 4, 3, len(TINY.context_scales), generator=random)
    visible = (torch.rand(7, 4, 3, generator=random) > 0.3).float()
    # One that is alone in its column and in its row, and bins that lack the target.
    visible[0], visible[0, 2, 1] = 0, 1
    levels = Levels(np.ones((4, 3), np.float32), np.full((4, 3), 2.0, np.float32))
    net = ContextEnsemble([ContextNet(TINY, levels, generator=random) for _ in range(2)]).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=random)
    return net, signal, visible


def plainly(
    target: torch.Tensor, other: torch.Tensor, tracks: torch.Tensor, share: torch.Tensor, *layers: torch.nn.Linear
):
    of_track, weight, told = layers
    read = torch.relu(target[:, :, None] + other + of_track(tracks))
    return weight(read), (share[..., None] * torch.relu(told(read))).sum(2)


@pytest.mark.parametrize("differs", [False, True])
@pytest.mark.parametrize("values", [1, 1 << 20])
def test_a_comparison_in_pieces_has_the_value_and_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, differs: bool, values: int
) -> None:
    monkeypatch.setattr(comparison, "VALUES", values)
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 6, bias=False), torch.nn.Linear(6, 2), torch.nn.Linear(6, 6)
    shapes = (5, 4, 6), (5, 4 if differs else 1, 7, 6), (5, 4, 7, 3)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    asked = [*inputs, *(parameter for layer in layers for parameter in layer.parameters())]
    share, given = torch.rand(5, 4, 7), (torch.randn(5, 4, 7, 2), torch.randn(5, 4, 6))
    found = []
    for method in (comparison.compare, plainly):
        out = method(*inputs, share, *layers)
        found.append([*out, *torch.autograd.grad(out, asked, given)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_track_left_out_is_a_track_that_was_not_there(seed: int) -> None:
    net, signal, visible = ensemble(seed)
    for assay in range(3):
        celltype, of_assay = torch.arange(4).expand(7, -1), torch.full((7, 4), assay)
        with torch.inference_mode():
            got = KnownTracks(net, signal, visible).predict_visible(celltype, of_assay)
        for c in range(4):
            hidden = visible.clone()
            hidden[:, c, assay] = 0
            expected = torch.stack([m(signal, hidden, celltype[:, [c]], of_assay[:, [c]]) for m in net.members]).mean(0)
            torch.testing.assert_close(got[:, [c]], expected.detach(), rtol=1e-4, atol=1e-4)


def test_targets_of_many_assays_at_once_are_predicted_as_one_by_one() -> None:
    net, signal, visible = ensemble(2)
    celltype, assay = torch.tensor([0, 1, 1, 3]).expand(7, -1), torch.tensor([1, 0, 2, 2]).expand(7, -1)
    visible[:, celltype[0], assay[0]] = 0
    known = KnownTracks(net, signal, visible)
    with torch.inference_mode():
        together = known.predict(celltype, assay)
        one_by_one = [known.predict(celltype[:, [k]], assay[:, [k]]) for k in range(4)]
    torch.testing.assert_close(together, torch.cat(one_by_one, 1), rtol=1e-4, atol=1e-4)


def test_no_track_is_read_for_its_own_imputation(fitted: xr.Dataset) -> None:
    pair = {"celltype": "C2", "assay": "DNase"}
    scrambled = fitted.copy(deep=True)
    scrambled.signal.loc[pair] = 5.0
    before, after = (ds.avocado.impute().imputed for ds in (fitted, scrambled))
    np.testing.assert_array_equal(before.sel(pair), after.sel(pair))
    assert not np.array_equal(before.sel(celltype="C2", assay="H3K4me3"), after.sel(celltype="C2", assay="H3K4me3"))


def test_results_do_not_depend_on_how_positions_are_cut(
    fitted: xr.Dataset, whole: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xr_avocado.impute
    import xr_avocado.predictors
    from xr_avocado.model import prediction

    rows = fitted.avocado.bins.rows("chr1", 77_001, 91_000)
    part = fitted.avocado.impute().avocado.sel("chr1:77,001-91,000").imputed
    np.testing.assert_allclose(part, whole[..., rows], atol=1e-5)
    # A region cut out reads nothing of what is beside it, so in its first and last block it differs.
    cut_out = fitted.avocado.sel("chr1:75,000-95,000").avocado.impute().imputed
    np.testing.assert_allclose(cut_out[..., 200:-200], whole[..., 3_200:3_600], atol=1e-5)
    assert not np.allclose(cut_out[..., :200], whole[..., 3_000:3_200], atol=1e-3)
    monkeypatch.setattr(xr_avocado.impute, "POSITIONS", 777)
    monkeypatch.setattr(xr_avocado.predictors, "CONTEXT_VALUES", 4_000)
    monkeypatch.setattr(prediction, "ACTIVATIONS", 100_000)
    np.testing.assert_allclose(fitted.chunk(position=1_000).avocado.impute().imputed, whole, atol=1e-5)


def test_gaps_in_a_track_are_not_read(truth: xr.Dataset) -> None:
    gap = truth.copy(deep=True)
    gap.signal[1, 0, 500:900] = np.nan
    model = gap.avocado.fit(config=QUICK | FACTORS, epochs=1, progress=False)
    assert np.isfinite(model.avocado.impute().imputed.values).all()


def test_a_store_gives_the_same_imputation(fitted: xr.Dataset, whole: xr.DataArray, tmp_path) -> None:
    import xr_avocado as xa

    fitted.avocado.to_zarr(tmp_path / "model.zarr", progress=False)
    again = xa.open_cube(tmp_path / "model.zarr")
    np.testing.assert_allclose(again.avocado.impute().imputed, whole, atol=2e-2)


def test_the_same_seed_gives_the_same_context_term(truth: xr.Dataset, fitted: xr.Dataset, hidden: list) -> None:
    again = truth.avocado.hold_out(hidden).avocado.fit(config=QUICK | FACTORS, epochs=2, progress=False)
    np.testing.assert_array_equal(again["context_net"], fitted["context_net"])
    np.testing.assert_array_equal(again["context_history"], fitted["context_history"])


def test_an_assay_seen_once_and_a_cell_type_never_seen(truth: xr.Dataset) -> None:
    lone = [(str(c), "DNase") for c in truth.celltype.values[1:]]
    lone += [("C5", str(a)) for a in truth.assay.values if a != "DNase"]
    model = truth.avocado.hold_out(lone).avocado.fit(config=QUICK | FACTORS, epochs=1, progress=False)
    assert np.isfinite(model.avocado.impute().imputed.values).all()


def test_labels_in_another_order_give_the_same_imputation(fitted: xr.Dataset, whole: xr.DataArray) -> None:
    turned = fitted.isel(celltype=[3, 0, 4, 2, 1], assay=[1, 3, 0, 2]).avocado.impute().imputed
    np.testing.assert_allclose(turned, whole.sel(celltype=turned.celltype, assay=turned.assay), atol=1e-5)


def test_a_cube_cut_to_some_labels_reads_what_is_left(fitted: xr.Dataset) -> None:
    some = fitted.sel(celltype=["C4", "C2"], assay=["DNase", "H3K4me1"])
    pair = {"celltype": "C4", "assay": "DNase"}
    rest = [
        p for p in fitted.avocado.experiments if p.celltype not in ("C4", "C2") or p.assay not in ("DNase", "H3K4me1")
    ]
    expected = fitted.avocado.hold_out(rest).avocado.impute().imputed.sel(pair)
    np.testing.assert_allclose(some.avocado.impute().imputed.sel(pair), expected, atol=1e-5)


def test_what_the_model_does_not_know_is_told(fitted: xr.Dataset) -> None:
    from xr_avocado.cube import CubeError

    renamed = fitted.assign_coords(celltype=["C1", "C2", "C3", "C4", "K562"])
    with pytest.raises(CubeError, match="does not know celltype K562; it was trained on C1"):
        renamed.avocado.impute()
    short = fitted.isel(context_parameter=slice(100))
    with pytest.raises(ValueError, match="configuration calls for"):
        short.avocado.impute().imputed[0, 0, :5].values  # noqa: B018


def test_a_cube_without_tracks_has_nothing_to_read(fitted: xr.Dataset) -> None:
    from xr_avocado.cube import CubeError

    with pytest.raises(CubeError, match="nothing to read"):
        fitted.avocado.hold_out(fitted.avocado.experiments).avocado.impute()


def test_positions_never_seen_are_imputed_as_if_seen(truth: xr.Dataset, hidden: list) -> None:
    held = truth.avocado.hold_out(hidden)
    first, second = held.avocado.sel("chr1"), held.avocado.sel("chr2")
    model = first.avocado.fit(config=QUICK | FACTORS, epochs=1, progress=False)
    elsewhere = second.avocado.impute(tracks=hidden, model=model)
    assert "context_net" not in elsewhere and "avocado" not in elsewhere.attrs
    # The same model, had the cube it was trained on reached further.
    from xr_avocado.impute import with_model

    whole = with_model(held, model).avocado.impute(tracks=hidden, model=model)
    rows = held.avocado.bins.rows("chr2", 0, 50_007)
    np.testing.assert_allclose(elsewhere.imputed, whole.imputed[..., rows], atol=1e-5)
    turned = second.isel(celltype=[4, 2, 0], assay=[3, 1, 0, 2])
    some = turned.avocado.impute(model=model).imputed
    assert np.isfinite(some.values).all() and some.sizes["celltype"] == 3


def test_a_model_that_does_not_go_with_a_cube_is_refused(truth: xr.Dataset, fitted: xr.Dataset) -> None:
    from xr_avocado.cube import CubeError

    plain = truth.avocado.fit("small", config={"nodes": 8}, epochs=1, progress=False)
    with pytest.raises(CubeError, match="factors alone"):
        truth.avocado.impute(model=plain)
    with pytest.raises(CubeError, match="binsize 25, the cube has 50"):
        truth.avocado.coarsen(2).avocado.impute(model=fitted)
    with pytest.raises(CubeError, match="transform 'arcsinh', the cube has 'none'"):
        truth.assign_attrs(transform="none").avocado.impute(model=fitted)
    with pytest.raises(CubeError, match="does not know assay ATAC; it knows H3K4me3"):
        truth.assign_coords(assay=["ATAC", *truth.assay.values[1:]]).avocado.impute(model=fitted)


@pytest.fixture
def counted(fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> tuple[xr.Dataset, Counter]:
    """The fitted cube as if from a store of chunks of 1,000 positions, and how often each was read."""
    reads: Counter = Counter()

    class Store:
        shape, dtype, ndim = fitted.signal.shape, fitted.signal.dtype, 3

        def __getitem__(self, key: tuple) -> np.ndarray:
            (c, a), p = (int(np.arange(n)[k].min()) for n, k in zip(self.shape, key[:2], strict=False)), key[2]
            reads.update((c, a, chunk) for chunk in range(p.start // 1_000, -(-p.stop // 1_000)))
            return fitted.signal.values[key]

    signal = da.from_array(Store(), chunks=(1, 1, 1_000), asarray=False, meta=np.empty((0, 0, 0), "f4"), name="store")
    monkeypatch.setattr(xr_avocado.track_reader, "LONGEST", 1_000)
    monkeypatch.setattr(xr_avocado.track_reader, "KEPT", 3 * 18 * 1_000)
    monkeypatch.setattr(xr_avocado.io.encoding, "SHORTEST", 1)
    monkeypatch.setattr(xr_avocado.io.zarr, "CHUNK", 1_000)
    monkeypatch.setattr(xr_avocado.impute, "POSITIONS", 250)
    monkeypatch.setattr(xr_avocado.impute, "FEWEST", 250)
    monkeypatch.setattr(xr_avocado.io.export, "_step", lambda _: 512)
    return fitted.assign(signal=(fitted.signal.dims, signal)), reads


@pytest.mark.parametrize("how", ["to_zarr", "to_bigwig", "in groups"])
def test_a_chunk_of_the_observed_tracks_is_read_once_for_all_that_is_imputed(
    counted: tuple[xr.Dataset, Counter], whole: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cube, reads = counted
    if how == "in groups":
        monkeypatch.setattr(xr_avocado.impute, "CHUNK", 2 * 5 * 250)
    full = cube.avocado.impute()
    with dask.config.set(scheduler="synchronous"):
        if how == "to_bigwig":
            full.avocado.to_bigwig(tmp_path, n_jobs=0, progress=False)
        else:
            stored = full.drop_vars("signal").avocado.to_zarr(
                tmp_path / "full.zarr", precision="float32", progress=False
            )
            np.testing.assert_allclose(stored.imputed, whole, atol=1e-5)
    tracks = np.argwhere(cube.observed.values)
    assert reads == {(c, a, chunk): 1 for c, a in tracks.tolist() for chunk in range(7)}


def test_threads_read_the_tracks_that_are_there(counted: tuple[xr.Dataset, Counter], whole: xr.DataArray) -> None:
    cube, _ = counted
    with dask.config.set(scheduler="threads", num_workers=8):
        np.testing.assert_allclose(cube.avocado.impute().imputed, whole, atol=1e-5)


def test_a_small_region_reads_no_more(counted: tuple[xr.Dataset, Counter], monkeypatch: pytest.MonkeyPatch) -> None:
    cube, reads = counted
    monkeypatch.setattr(xr_avocado.track_reader, "SMALL", 2)
    cube.avocado.impute().avocado.sel("chr1:5,100-5,200").imputed.load()
    assert {chunk for *_, chunk in reads} == {0}


@given(
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    most=st.integers(1, 40),
    asked=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=12),
    kept=st.integers(1, 300),
)
def test_what_is_read_is_what_is_there(chunks: list[int], most: int, asked: list, kept: int) -> None:
    values = np.arange(2 * sum(chunks), dtype=np.float32).reshape(1, 2, -1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(xr_avocado.track_reader, "LONGEST", most)
        patched.setattr(xr_avocado.track_reader, "KEPT", kept)
        reader = TrackReader(da.from_array(values, (1, 1, tuple(chunks))), (np.array([0, 0]), np.array([0, 1])))
        for start, length in asked:
            rows = slice(min(start, sum(chunks) - 1), min(start + length, sum(chunks)))
            if rows.stop > rows.start:
                np.testing.assert_array_equal(reader.read(rows), values[0, :, rows])
            assert sum(run.size for run in reader.kept.values()) <= max(kept, 2 * most)
