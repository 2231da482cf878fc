from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.interpolate import BSpline

import xr_avocado as xa
from xr_avocado.cube import CubeError
from xr_avocado.impute import impute
from xr_avocado.predictors import ContextPredictor, FactorPredictor

SIZES = {"chr1": 60_010, "chr2": 30_003}
REGION = "chr1:20kb-30kb"
TARGET = ("C1", "H3K4me3")
CONFIG = {
    "context_samples": 30_000,
    "context_members": 2,
    "context_nodes": 32,
    "context_units": 8,
    "genome_factors": (4, 5, 6),
    "genome_learning_rate": 0.05,
    "scales": (1, 10, 200),
}


@pytest.fixture(scope="module")
def fitted() -> xr.Dataset:
    cube = xa.datasets.simulate(4, 3, SIZES).avocado.hold_out([TARGET])
    return cube.avocado.fit(config=CONFIG, epochs=3, progress=False, device="cpu")


@pytest.fixture(scope="module")
def averaged() -> xr.Dataset:
    cube = xa.datasets.simulate(4, 3, SIZES).avocado.hold_out([TARGET])
    return cube.avocado.fit("small", config={"average": True}, epochs=3, progress=False, device="cpu")


def captum(model: torch.nn.Module, inputs: tuple, baselines: tuple, steps: int) -> tuple[torch.Tensor, ...]:
    attr = pytest.importorskip("captum.attr", reason="captum, an independent implementation, is not installed")
    explainer = attr.IntegratedGradients(model)
    return explainer.attribute(inputs, baselines, n_steps=steps, method="riemann_middle", internal_batch_size=4_096)


@pytest.mark.parametrize(("of", "baseline"), [("factors", "zero"), ("factors", "mean"), ("context", "mean")])
def test_parts_add_up_to_the_prediction(fitted, of, baseline):
    parts = fitted.avocado.attribute(*TARGET, REGION, of=of, baseline=baseline, device="cpu").compute()
    assert dict(parts.sizes) == {"component": 5, "position": 400}
    total = parts.attribution.sum("component") + parts.baseline - parts.prediction
    assert abs(total).max() < 1e-3 * np.ptp([parts.prediction, parts.baseline])
    assert float(abs(parts.attribution).max()) > 0.02, "there is something to add up"
    np.testing.assert_allclose(parts.completeness_error, total, atol=1e-6)


def test_the_parts_are_of_what_impute_answers(fitted, averaged):
    for model in (fitted, averaged):
        parts = model.avocado.attribute(*TARGET, REGION, device="cpu", steps=1, tolerance=np.inf)
        imputed = impute(model, *TARGET, device="cpu").avocado.sel(REGION).imputed
        np.testing.assert_allclose(parts.prediction, imputed.sel(celltype="C1", assay="H3K4me3"), atol=1e-5)


def test_the_parts_are_of_what_impute_answers_after_an_extension():
    """Of an old pair, `impute` reads what the model knew before."""
    cube = xa.datasets.simulate(5, 3, {"chr1": 40_010}).avocado.hold_out([TARGET])
    config = {"context_samples": 6_000, "context_members": 1, "context_nodes": 16, "context_units": 8}
    old = cube.isel(celltype=slice(4)).avocado.fit(config=config, epochs=2, progress=False, device="cpu")
    more = old.avocado.extend(cube, epochs=1, progress=False, device="cpu")
    options = {"steps": 1, "tolerance": np.inf, "device": "cpu"}
    for celltype in ("C1", "C5"):
        parts = more.avocado.attribute(celltype, "H3K4me3", REGION, **options)
        imputed = impute(more, celltype, "H3K4me3", device="cpu").avocado.sel(REGION).imputed
        np.testing.assert_allclose(parts.prediction, imputed.sel(celltype=celltype, assay="H3K4me3"), atol=1e-5)
    with pytest.raises(CubeError, match="not all learnt at one time"):
        more.avocado.attribute(["C1", "C5"], "H3K4me3", REGION, **options)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_attributions_of_factors_are_those_of_captum(fitted, baseline):
    """On the concatenated factors, as the paper has them, factor by factor."""
    parts = fitted.avocado.attribute(
        *TARGET, REGION, of="factors", baseline=baseline, steps=20, tolerance=np.inf, device="cpu"
    )
    asked = np.zeros((4, 3), bool)
    predictor = FactorPredictor(fitted, asked, _config(fitted), "cpu")
    net, bins = predictor.net, fitted.avocado.bins
    rows = bins.rows("chr1", 20_000, 30_000)
    names = [f"genome_factors_{name}" for name in ("25bp", "250bp", "5kbp")]
    tables = [fitted[name].values for name in ("celltype_factors", "assay_factors", *names)]
    at = [np.zeros(400, int), np.zeros(400, int)]
    at += [bins.coarsen(scale).rows_of(bins)[rows] for scale in (1, 10, 200)]
    inputs = [torch.from_numpy(table[row]) for table, row in zip(tables, at, strict=True)]
    bases = [torch.from_numpy(t.mean(0) if baseline == "mean" else 0 * t[0]).expand(400, -1) for t in tables]
    concatenated = _Concatenated(net)
    (found,) = captum(concatenated, (torch.cat(inputs, 1),), (torch.cat(bases, 1).contiguous(),), steps=20)
    expected = [part.sum(1).detach().numpy() for part in found.split([t.shape[1] for t in tables], 1)]
    np.testing.assert_allclose(parts.attribution, np.stack(expected), atol=2e-5)


class _Concatenated(torch.nn.Module):
    """The network as the paper draws it, of plain layers."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        *hidden, (weight, bias) = zip(self.net.weights, self.net.biases, strict=True)
        for w, b in hidden:
            read = torch.relu(read @ w.T + b)
        return (read @ weight.T + bias)[:, 0]


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_attributions_of_the_context_are_those_of_captum(fitted, baseline):
    parts = fitted.avocado.attribute(
        *TARGET, "chr1:20kb-21kb", baseline=baseline, steps=20, tolerance=np.inf, device="cpu"
    ).compute()
    predictor = ContextPredictor(fitted, np.zeros((4, 3), bool), _config(fitted), "cpu")
    signal = torch.from_numpy(_at_scales(fitted, 20_000, 21_000))
    visible = torch.ones(40, 4, 3)
    visible[:, 0, 0] = 0
    own = torch.zeros(40, 1, dtype=torch.long)

    def model(read: torch.Tensor) -> torch.Tensor:
        return predictor.net(read, visible.repeat(len(read) // 40, 1, 1), *[own.repeat(len(read) // 40, 1)] * 2)[:, 0]

    base = predictor.net.first.mean[..., None].expand_as(signal) if baseline == "mean" else torch.zeros_like(signal)
    (found,) = captum(model, (signal,), (base.contiguous(),), steps=20)
    cells = found.sum(-1).detach().numpy()
    of = parts.attribution.to_dataset("component")
    np.testing.assert_allclose(of.average + of.same_assay, cells[:, 1:, 0].sum(1), atol=2e-5)
    np.testing.assert_allclose(of.elsewhere, cells[:, 1:, 1:].sum((1, 2)), atol=2e-5)
    np.testing.assert_allclose(of.own_H3K27ac, cells[:, 0, 1], atol=2e-5)
    np.testing.assert_allclose(of.own_H3K4me1, cells[:, 0, 2], atol=2e-5)


def _at_scales(fitted: xr.Dataset, start: int, end: int) -> np.ndarray:
    """What the context term reads, spelled out: bins x cell types x assays x scales."""
    signal = fitted.signal.transpose("celltype", "assay", "position").values
    rows = np.arange(start // 25, end // 25)
    means = []
    for scale in (1, 4, 20, 200):
        block = signal[..., : signal.shape[2] // 200 * 200].reshape(4, 3, -1, scale).mean(-1)
        weights = BSpline.basis_element([0, 1, 2, 3])((rows % scale + 0.5) / scale + np.array([[2], [1], [0]]))
        beside = [block[..., rows // scale + step] for step in (-1, 0, 1)] if scale > 1 else [0, block[..., rows], 0]
        means.append(sum(w * of for w, of in zip(weights if scale > 1 else (0, 1, 0), beside, strict=True)))
    return np.nan_to_num(np.stack(means, -1)).transpose(2, 0, 1, 3).astype(np.float32)


def test_average_activity_is_known_exactly(averaged):
    here = averaged.avocado.average().avocado.sel(REGION)
    parts = averaged.avocado.attribute(*TARGET, REGION, device="cpu").attribution.sel(component="average")
    np.testing.assert_allclose(parts, here.average.sel(celltype="C1", assay="H3K4me3"), atol=1e-5)


def _config(fitted: xr.Dataset):
    from xr_avocado.model.config import Config

    return Config.from_attrs(fitted.attrs["avocado"]["config"])


def test_a_region_is_cut_from_the_whole(fitted):
    whole = fitted.avocado.attribute(*TARGET, steps=4, tolerance=np.inf, device="cpu").avocado.sel(REGION)
    part = fitted.avocado.attribute(*TARGET, REGION, steps=4, tolerance=np.inf, device="cpu")
    xr.testing.assert_allclose(whole.attribution, part.attribution, atol=1e-5)
    assert part.start.values[[0, -1]].tolist() == [20_000, 29_975]


def test_several_regions_and_labels_keep_their_order(fitted):
    regions = ["chr1:5,000-5,100", "chr2:1,000-1,050"]
    several = fitted.avocado.attribute(
        ["C2", "C1"], ["H3K4me1", "H3K4me3"], regions, of="factors", steps=4, tolerance=np.inf, device="cpu"
    ).compute()
    assert several.attribution.dims == ("celltype", "assay", "component", "position")
    one = fitted.avocado.attribute(
        "C1", "H3K4me3", regions[1], of="factors", steps=4, tolerance=np.inf, device="cpu"
    ).compute()
    there = several.sel(celltype="C1", assay="H3K4me3").isel(position=slice(4, None))
    xr.testing.assert_allclose(there.attribution, one.attribution, atol=1e-6)
    assert several.chrom.values.tolist() == ["chr1"] * 4 + ["chr2"] * 2


def test_nothing_is_computed_until_asked_and_then_once(fitted, monkeypatch):
    calls = []
    predict = FactorPredictor.factors_at
    monkeypatch.setattr(FactorPredictor, "factors_at", lambda self, rows: calls.append(rows) or predict(self, rows))
    parts = fitted.avocado.attribute(*TARGET, REGION, of="factors", steps=2, tolerance=np.inf, device="cpu")
    assert not calls
    parts.compute()
    assert len(calls) == 1, "attribution, prediction and error come of one pass"


def test_cuts_and_orders_of_labels_do_not_change_what_is_explained(fitted):
    cut = fitted.isel(celltype=[2, 0, 1], assay=[1, 0])
    few = cut.avocado.attribute(*TARGET, "chr1:20kb-21kb", steps=2, tolerance=np.inf, device="cpu").compute()
    assert few.component.values.tolist() == ["average", "same_assay", "elsewhere", "own_H3K27ac"]
    imputed = impute(cut, *TARGET, device="cpu").avocado.sel("chr1:20kb-21kb").imputed
    np.testing.assert_allclose(few.prediction, imputed.sel(celltype="C1", assay="H3K4me3"), atol=1e-5)


def test_components_can_be_variables(fitted):
    parts = fitted.avocado.attribute(*TARGET, REGION, of="factors", device="cpu")
    wide = parts.attribution.to_dataset("component")
    assert list(wide.data_vars)[:2] == ["celltype_factors", "assay_factors"]
    assert wide.genome_factors_250bp.dims == ("position",)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(fitted):
    for of in ("factors", "context"):
        one, other = (
            fitted.avocado.attribute(*TARGET, REGION, of=of, tolerance=np.inf, device=device).compute()
            for device in ("cpu", "cuda")
        )
        xr.testing.assert_allclose(one.attribution, other.attribution, atol=1e-3)


def test_what_cannot_be_explained_is_refused(fitted, averaged, simulated):
    with pytest.raises(CubeError, match="no context term"):
        averaged.avocado.attribute(*TARGET, of="context")
    with pytest.raises(ValueError, match="'factors' or 'context'; got 'all'"):
        fitted.avocado.attribute(*TARGET, of="all")
    with pytest.raises(ValueError, match="'zero' or 'mean'"):
        fitted.avocado.attribute(*TARGET, baseline="median")
    with pytest.raises(ValueError, match="at least 1"):
        fitted.avocado.attribute(*TARGET, steps=0)
    with pytest.raises(ValueError, match="tolerance"):
        fitted.avocado.attribute(*TARGET, tolerance=0)
    with pytest.raises(CubeError, match="'C9' is not a celltype"):
        fitted.avocado.attribute("C9", "H3K4me3")
    with pytest.raises(CubeError, match="fit"):
        simulated.avocado.attribute(*TARGET)


PEAKS = pd.DataFrame(
    [
        ("chr1", 20_000, 22_000, "C1", "H3K4me3"),
        ("chr1", 21_000, 23_000, "C2", "H3K4me3"),
        ("chr1", 21_000, 22_000, "C3", "H3K4me3"),
        ("chr2", 1_000, 1_500, "C3", "H3K4me3"),
        ("chr2", 1_000, 1_500, "C1", "DNase"),
    ],
    columns=["chrom", "start", "end", "celltype", "assay"],
)


def test_means_by_peaks_are_those_of_the_bins(fitted):
    table = fitted.avocado.attribution_by_peaks(
        "H3K4me3", peaks=PEAKS, of="factors", steps=4, device="cpu", progress=False
    )
    at = table[table.component == "genome_factors_250bp"].set_index(["celltypes", "peak"])
    # chr1:20-21k has 1 peak, 21-22k has 3, 22-23k 1; chr2:1000-1500 has 1; of three cell types each.
    assert at.bins.to_dict() == {(1, False): 200, (1, True): 100, (3, True): 120}
    parts = fitted.avocado.attribute(
        ["C1", "C2", "C3"], "H3K4me3", "chr1:21kb-22kb", of="factors", steps=4, tolerance=np.inf, device="cpu"
    ).compute()
    expected = float(parts.attribution.sel(component="genome_factors_250bp").mean())
    assert at.attribution[3, True] == pytest.approx(expected, abs=1e-6)
    shared = table[(table.celltypes == 3) & table.peak].set_index("component").attribution
    assert shared.prediction == pytest.approx(float(parts.prediction.mean()), abs=1e-5)
    observed = parts.signal.sel(celltype=["C2", "C3"])
    assert shared.signal == pytest.approx(float(observed.mean()), abs=1e-5), "C1 was held out"
    assert shared.drop(["prediction", "signal"]).sum() == pytest.approx(shared.prediction, abs=0.02)


def test_blocks_are_drawn_by_the_seed(fitted):
    options = {"peaks": PEAKS, "of": "factors", "steps": 2, "device": "cpu", "progress": False}
    one, again = (fitted.avocado.attribution_by_peaks("H3K4me3", blocks=1, seed=3, **options) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    assert one.bins.max() < 200
    with pytest.raises(CubeError, match="no cell type of this cube has peaks of 'CTCF'"):
        fitted.avocado.attribution_by_peaks("CTCF", **options)
    with pytest.raises(CubeError, match="C4 has no peaks"):
        fitted.avocado.attribution_by_peaks("H3K4me3", celltype="C4", **options)
    with pytest.raises(CubeError, match="no peak lies on this cube"):
        fitted.avocado.sel("chr1:0-5kb").avocado.attribution_by_peaks("H3K4me3", **options)
