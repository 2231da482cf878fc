from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from tqdm.auto import tqdm

import xr_avocado as xa
from xr_avocado.model.config import Config, config_for
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.sampling import Panel
from xr_avocado.model.sharing import Share
from xr_avocado.model.squared_error import squared_error
from xr_avocado.model.training import Trainer


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("piece", [1, 2, 7])
def test_the_error_and_its_gradient_are_those_of_the_network(layers: int, piece: int) -> None:
    random = torch.Generator().manual_seed(layers)
    config = Config(celltype_factors=3, assay_factors=2, genome_factors=(2, 3, 1), layers=layers, nodes=6)
    net = AvocadoNet(config, 4, 3, generator=random).double()
    rows = [
        torch.randn(5, 200 // scale, n, generator=random, dtype=torch.double, requires_grad=True)
        for scale, n in zip(config.scales, config.genome_factors, strict=True)
    ]
    celltype, assay = (torch.randint(n, (5, 2), generator=random) for n in (4, 3))
    truth = torch.randn(5, 200, 2, generator=random, dtype=torch.double)
    truth[3, 150:] = torch.nan
    parameters = [*net.parameters(), *rows]
    plain = torch.where(truth.isnan(), 0.0, net(rows, celltype, assay) - truth.nan_to_num()).square().sum()
    expected = torch.autograd.grad(plain, parameters)
    got = squared_error(
        net.genome_term(rows),
        net.track_term(celltype, assay),
        truth,
        net.weights[1:],
        net.biases[1:],
        piece=piece,
        dtype=torch.double,
    )
    torch.testing.assert_close(got, plain)
    for mine, theirs in zip(torch.autograd.grad(3 * got, parameters), expected, strict=True):
        torch.testing.assert_close(mine, 3 * theirs)


def test_dropout_passes_on_the_gradient_of_what_it_kept() -> None:
    random = torch.Generator().manual_seed(0)
    genome = torch.randn(2, 50, 8, generator=random, dtype=torch.double, requires_grad=True)
    track = torch.randn(2, 3, 8, generator=random, dtype=torch.double)
    truth = torch.randn(2, 50, 3, generator=random, dtype=torch.double)
    layers = [torch.randn(8, 8, generator=random, dtype=torch.double), torch.randn(1, 8, generator=random).double()]
    biases = [torch.zeros(8, dtype=torch.double), torch.zeros(1, dtype=torch.double)]

    def error(at: torch.Tensor) -> torch.Tensor:
        # The same draws each time, so that it is a function of its argument.
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return squared_error(at, track, truth, layers, biases, piece=1, dropout=0.4, dtype=torch.double)

    (gradient,) = torch.autograd.grad(error(genome), genome)
    direction = torch.randn(genome.shape, generator=random, dtype=torch.double)
    step = 1e-6 * direction
    numeric = (error(genome.detach() + step) - error(genome.detach() - step)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), numeric.detach(), rtol=1e-5, atol=0)
    assert error(genome) != squared_error(genome, track, truth, layers, biases, piece=1, dtype=torch.double)


def test_an_error_that_is_not_finite_is_not_taken_for_a_gap() -> None:
    terms = torch.full((1, 4, 2), torch.inf), -torch.full((1, 1, 2), torch.inf)
    layers = [torch.ones(1, 2)], [torch.zeros(1)]
    assert squared_error(*terms, torch.zeros(1, 4, 1), *layers, piece=1).isnan()


def trainer_of(config: Config, **options: Any) -> Trainer:
    random = torch.Generator().manual_seed(0)
    celltype, assay = torch.arange(6) // 3, torch.arange(6) % 3
    panel = Panel(torch.randn(6, 12, 200, generator=random).half(), celltype, assay)
    return Trainer(panel, panel.some(slice(2)), config, (2, 3), seed=0, **options)


CONFIG = Config(
    celltype_factors=2, assay_factors=2, genome_factors=(2, 2, 2), layers=2, nodes=8, tracks_per_position=2, batch=1_600
)


def epoch_of(trainer: Trainer) -> tuple[float, tuple[float, float], list[torch.Tensor]]:
    loss = trainer.epoch(0, tqdm(disable=True))
    return loss, trainer.validate(), [*trainer.net.parameters(), *(table.values for table in trainer.genome)]


def test_out_of_memory_halves_what_is_computed_at_once_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = epoch_of(trainer_of(CONFIG))
    error, predict, sizes = Trainer._error, Trainer.predict, []

    def small(function: Callable[..., torch.Tensor], which: int) -> Callable[..., torch.Tensor]:
        def called(*args: Any) -> torch.Tensor:
            sizes.append(len(args[which]))
            if sizes[-1] > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return function(*args)

        return called

    monkeypatch.setattr(Trainer, "_error", small(error, 2))
    monkeypatch.setattr(Trainer, "predict", small(predict, 2))
    with caplog.at_level("WARNING"):
        got = epoch_of(trainer_of(CONFIG))
    assert sizes[:4] == [4, 2, 1, 1] and set(sizes[3:]) == {1}, "what failed once is not tried again"
    assert [record.message.split(":")[0] for record in caplog.records] == ["out of memory on cpu"]
    assert got[0] == pytest.approx(expected[0]) and got[1][0] == pytest.approx(expected[1][0])
    for mine, theirs in zip(got[2], expected[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_out_of_memory_with_one_block_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "_error", never)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        epoch_of(trainer_of(CONFIG))


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.gpu
def test_a_panel_that_stays_on_the_host_trains_the_same(monkeypatch: pytest.MonkeyPatch, average: bool) -> None:
    from xr_avocado.model import sampling

    cuda, losses = torch.device("cuda"), []
    for reserve in (0, 1 << 60):
        monkeypatch.setattr(sampling, "RESERVE", reserve)
        panel = trainer_of(CONFIG).panel.on(cuda)
        assert panel.values.is_cuda == (reserve == 0) and panel.device.type == "cuda"
        config = CONFIG.updated({"average": average})
        losses.append(epoch_of(Trainer(panel, panel.some(slice(2)), config, (2, 3), seed=0))[:2])
    np.testing.assert_allclose(*map(np.hstack, losses), rtol=1e-3)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_where_there_is_none(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, script, "--device", "cpu", "--tiny", "--json", tmp_path / "gpu.json"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["tiny"] and all(
        figures[f"{name} samples/s"] > 0 for name in ("train", "context", "train, 8 tracks", "stage 2")
    )
    assert figures["impute bins/s"] * figures["impute: seconds for a genome's track"] == pytest.approx(121e6)


CHILD = """
import sys
import xr_avocado as xa

def peak():
    # Not ru_maxrss, which starts at the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

options = {"config": {"context_samples": 2_000, "context_members": 2}, "epochs": 2, "progress": False}
# Once for what libraries hold.
xa.datasets.simulate(4, 4, {"chr1": 60_010}).avocado.fit(**options)
before = peak()
xa.open_cube(sys.argv[1]).avocado.fit(**options)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux keeps it")
def test_fit_holds_what_its_docstring_says(tmp_path: Path) -> None:
    bins, tracks, fixed = 600_000, 16, 64e6
    cube = xa.datasets.simulate(4, 4, {"chr1": bins * 25})
    cube.avocado.to_zarr(tmp_path / "cube.zarr", progress=False)
    factors = bins * sum(n / s for n, s in zip(config_for(tracks).genome_factors, (1, 10, 200), strict=True))
    bound = 2.6 * tracks * bins + 48 * bins + 16 * factors
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, tmp_path / "cube.zarr"]
    run = subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert 0.5 * bound < int(run.stdout) < bound + fixed


@given(n_blocks=st.integers(1, 20), world=st.integers(1, 5))
def test_the_shares_of_all_processes_are_all_blocks_once(n_blocks: int, world: int) -> None:
    blocks = torch.arange(n_blocks)
    shares = [Share(rank, world) for rank in range(world)]
    assert sorted(torch.cat([share.cut(blocks) for share in shares]).tolist()) == blocks.tolist()
    for share in shares:
        mine = blocks[share.mine(blocks)]
        assert torch.equal(share.cut(blocks)[share.rows(mine)], mine)


TOGETHER = """
import sys
import torch
import xr_avocado as xa
from test_training import SHARED, panel_cube

torch.distributed.init_process_group("gloo")
model = panel_cube().avocado.fit(config=SHARED, progress=False)
model.history.to_dataframe().to_csv(f"{sys.argv[1]}.{torch.distributed.get_rank()}")
if torch.distributed.get_rank() == 0:
    model.avocado.to_zarr(sys.argv[1], progress=False)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
SHARED = {
    "celltype_factors": 4, "assay_factors": 4, "genome_factors": (3, 3, 3), "nodes": 8, "epochs": 3, "batch": 2_000,
    "tracks_per_position": 2, "average": True, "context_samples": 300, "context_members": 1,
}  # fmt: skip


def panel_cube() -> xr.Dataset:
    # 13 blocks: the two processes have shares of unequal length, and some batches lie in one of them alone.
    return xa.datasets.simulate(4, 3, {"chr1": 60_010})


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    script, store = tmp_path / "together.py", tmp_path / "model.zarr"
    script.write_text(TOGETHER)
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, store]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3_000:]
    histories = [Path(f"{store}.{rank}").read_text() for rank in (0, 1)]
    assert histories[0] == histories[1], "both know the same errors"
    together, alone = xa.open_cube(store), panel_cube().avocado.fit(config=SHARED, progress=False)
    for name in ("history", "network_weight_0", "celltype_factors", "genome_factors_25bp", "genome_factors_5kbp"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=2e-4, err_msg=name)
