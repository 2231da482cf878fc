from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

import xr_avocado as xa
from xr_avocado.cube import CubeError
from xr_avocado.io import checkpoint as module
from xr_avocado.io.atomic import fitting
from xr_avocado.io.checkpoint import Checkpoint

CONFIG = {
    "celltype_factors": 2, "assay_factors": 2, "genome_factors": (2, 2, 2), "layers": 1, "nodes": 4, "epochs": 3,
    "tracks_per_position": 2, "batch": 800, "dropout": 0.1, "context_units": 4, "context_nodes": 8,
    "context_heads": 2, "context_assay_factors": 2, "context_samples": 2_000, "context_batch": 64, "context_members": 2,
}  # fmt: skip
"""Small; dropout in both parts, so that torch's global generator has a say."""


class Killed(BaseException):
    """Ends a run where it stands, as a signal would."""


@pytest.fixture(scope="module")
def panel() -> xr.Dataset:
    return xa.datasets.simulate(4, 3, {"chr1": 60_010})


@pytest.fixture(scope="module")
def undisturbed(panel: xr.Dataset) -> xr.Dataset:
    return panel.avocado.fit(config=CONFIG, progress=False)


def refit(panel: xr.Dataset, store: Path, **options: Any) -> xr.Dataset:
    call = {"config": CONFIG, "store": store, "checkpoint_minutes": 0, "progress": False} | options
    return panel.avocado.fit(**call)


def assert_same_model(got: xr.Dataset, expected: xr.Dataset) -> None:
    names = [n for n in expected.data_vars if n not in ("signal", "observed")]
    assert {"context_net", "context_history", "history", "genome_factors_25bp", "network_weight_0"} <= set(names)
    for name in names:
        np.testing.assert_array_equal(got[name].values, expected[name].values, err_msg=str(name))
    assert got.attrs["avocado"] == expected.attrs["avocado"] | {"config": got.attrs["avocado"]["config"]}


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, stop: int) -> list[int]:
    """End the run at the nth call of a function, before it does anything."""
    real, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


@given(
    arrays=st.dictionaries(
        st.text("abc/._0", min_size=1, max_size=8).filter(lambda name: name not in ("header", "file")),
        numpy_st.arrays(st.sampled_from(["f4", "f8", "u1", "i8", "f2"]), numpy_st.array_shapes(min_dims=0, min_side=0)),
        max_size=4,
    ),
    score=st.floats(allow_nan=False),
)
@settings(max_examples=40)
def test_what_is_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, arrays: dict, score: float) -> None:
    work = Checkpoint(tmp_path_factory.mktemp("kept") / "work", {"seed": 0})
    assert work.load() is None
    work.save(arrays, {"score": score})
    saved = work.load()
    assert saved is not None and saved.state == {"score": score} and set(saved.arrays) == set(arrays)
    for name, array in arrays.items():
        assert saved.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(saved.arrays[name], array)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=200)
def test_a_damaged_file_is_never_taken_for_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool
) -> None:
    work = Checkpoint(tmp_path_factory.mktemp("torn") / "work", {"seed": 0})
    array = np.arange(200, dtype=np.float32)
    work.save({"array": array}, {"step": 3})
    whole = bytearray(work.path.read_bytes())
    at = int(where * len(whole))
    if cut:
        del whole[at:]
    else:
        whole[at] ^= 1 << bit
    work.path.write_bytes(whole)
    try:
        saved = work.load()
    except CubeError as error:
        assert "damaged" in str(error)
    else:
        # Some bytes of a zip, such as its times, say nothing about what is in it.
        assert not cut and saved is not None and saved.state == {"step": 3}
        np.testing.assert_array_equal(saved.arrays["array"], array)


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Checkpoint(tmp_path / "work", {})
    work.save({"a": np.zeros(3)}, {"step": 1})
    count_calls(monkeypatch, module.os, "replace", 1)
    with pytest.raises(Killed):
        work.save({"a": np.ones(3)}, {"step": 2})
    monkeypatch.undo()
    saved = work.load()
    assert saved is not None and saved.state == {"step": 1} and not saved.arrays["a"].any()
    work.save({"a": np.ones(3)}, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_saves_are_as_far_apart_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    work = Checkpoint(tmp_path / "work", {}, minutes=2)
    due = []
    for now[0] in (60.0, 120.0, 200.0, 241.0):
        due.append(work.due)
        if work.due:
            work.save({}, {})
    assert due == [False, True, False, True]


def test_a_fit_with_a_store_is_the_fit_without_one(panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    stored = refit(panel, tmp_path / "model.zarr")
    assert_same_model(stored, undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zarr"]
    assert stored.genome_factors_25bp.chunks is not None, "it comes from the store"


# Checkpoints are saved after every step: 62 of the context term, then 21 of the factors.
@pytest.mark.parametrize("stops", [(1, 2), (33, 34), (62, 1), (70, 5, 9)])
def test_killed_at_a_save_it_goes_on_to_the_same_model(
    panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    for stop in stops:
        with monkeypatch.context() as patch:
            count_calls(patch, module.os, "replace", stop)
            with pytest.raises(Killed):
                refit(panel, tmp_path / "model.zarr")
        assert not (tmp_path / "model.zarr").exists()
    assert_same_model(refit(panel, tmp_path / "model.zarr"), undisturbed)


def test_killed_between_saves_it_goes_on_to_the_same_model(
    panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado.model import context_training
    from xr_avocado.model.training import Trainer

    # One save in three: every run does some steps again that no checkpoint saw.
    asked = [0]

    def third(self: Checkpoint) -> bool:
        asked[0] += 1
        return asked[0] % 3 == 0

    monkeypatch.setattr(Checkpoint, "due", property(third))
    for owner, name, stop in ((context_training, "_step", 50), (Trainer, "step", 12), (Trainer, "validate", 2)):
        with monkeypatch.context() as patch:
            count_calls(patch, owner, name, stop)
            with pytest.raises(Killed):
                refit(panel, tmp_path / "model.zarr")
    assert_same_model(refit(panel, tmp_path / "model.zarr"), undisturbed)


def test_what_was_done_is_not_done_again(panel: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xr_avocado.model.training import Trainer

    with monkeypatch.context() as patch:
        first = count_calls(patch, Trainer, "step", 16)
        with pytest.raises(Killed):
            refit(panel, tmp_path / "model.zarr")
    with monkeypatch.context() as patch:
        from xr_avocado.model import context_training

        context = count_calls(patch, context_training, "_step", -1)
        second = count_calls(patch, Trainer, "step", -1)
        refit(panel, tmp_path / "model.zarr")
    assert (first[0] - 1) + second[0] == 3 * 7 and context[0] == 0


def test_killed_while_the_store_is_written(
    panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xr_avocado import fit_store
    from xr_avocado.model.training import Trainer

    for owner, name in ((fit_store, "write_cube"), (fit_store, "remove")):
        with monkeypatch.context() as patch:
            count_calls(patch, owner, name, 1)
            with pytest.raises(Killed):
                refit(panel, tmp_path / "model.zarr")
    assert (tmp_path / "model.zarr").exists() and fitting(tmp_path / "model.zarr").exists()
    monkeypatch.setattr(Trainer, "step", lambda *_, **__: pytest.fail("trained again"))
    assert_same_model(refit(panel, tmp_path / "model.zarr"), undisturbed)
    assert not fitting(tmp_path / "model.zarr").exists()


def test_a_finished_fit_is_opened(panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    from xr_avocado.model.training import Trainer

    refit(panel, tmp_path / "model.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *_, **__: pytest.fail("trained again"))
        assert_same_model(refit(panel, tmp_path / "model.zarr"), undisturbed)


CHANGES: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], dict[str, Any], str]] = {
    "settings": (lambda ds: ds, {"config": CONFIG | {"nodes": 5}}, "nodes was 4, now 5"),
    "epochs": (lambda ds: ds, {"epochs": 7}, "epochs was 3, now 7"),
    "seed": (lambda ds: ds, {"seed": 3}, "seed was 0, now 3"),
    "validation": (lambda ds: ds, {"validation": None}, "validation was"),
    "region": (lambda ds: ds.avocado.sel("chr1:0-30,000"), {}, "bins was \"2,401 bins of 25 bp"),
    "signal": (lambda ds: ds.assign(signal=ds.signal * 1.01), {}, "signal was"),
    "tracks": (lambda ds: ds.avocado.hold_out([("C1", "H3K4me3")]), {}, "trained_on was"),
    "labels": (lambda ds: ds.assign_coords(celltype=["A", "B", "C", "D"]), {}, "celltypes was"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_call_on_the_same_store_says_what_differs(
    panel: xr.Dataset, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from xr_avocado.model.training import Trainer

    folder = tmp_path_factory.getbasetemp() / "other-calls"
    if not folder.exists():
        refit(panel, folder / "finished.zarr")
        with monkeypatch.context() as patch:
            count_calls(patch, Trainer, "step", 1)
            with pytest.raises(Killed):
                refit(panel, folder / "begun.zarr")
    changed, options, says = CHANGES[change]
    for store in ("finished.zarr", "begun.zarr"):
        with pytest.raises(CubeError, match=says):
            refit(changed(panel), folder / store, **options)
    with pytest.raises(CubeError, match="has not finished: run the same fit again"):
        xa.open_cube(folder / "begun.zarr")


def test_overwrite_starts_anew(panel: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xr_avocado.model.training import Trainer

    store = tmp_path / "model.zarr"
    panel.avocado.to_zarr(store, progress=False)
    with pytest.raises(CubeError, match="holds no model"):
        refit(panel, store)
    with monkeypatch.context() as patch:
        count_calls(patch, Trainer, "step", 3)
        with pytest.raises(Killed):
            refit(panel, store, overwrite=True, seed=1)
    assert "avocado" not in xa.open_cube(store).attrs, "what is there stays until its successor is whole"
    assert refit(panel, store, overwrite=True, epochs=1).sizes["epoch"] == 1
    assert not fitting(store).exists()


def test_something_that_is_no_store_is_told_before_training(panel: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(CubeError, match="no zarr store"):
        refit(panel, tmp_path / "notes", overwrite=True)
    with pytest.raises(ValueError, match="checkpoint_minutes"):
        refit(panel, tmp_path / "model.zarr", checkpoint_minutes=-1)
    with pytest.raises(CubeError, match="a path of this machine"):
        refit(panel, "s3://bucket/model.zarr")


@pytest.mark.parametrize("part", ["context", "factors"])
def test_an_interrupt_stores_what_was_learned_and_the_same_call_goes_on(
    panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path, part: str
) -> None:
    from xr_avocado.model import context_training
    from xr_avocado.model.training import Trainer

    owner, name, stop = {"context": (context_training, "_step", 40), "factors": (Trainer, "step", 10)}[part]
    calls = [0]
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(owner, name)

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        patch.setattr(owner, name, interrupted)
        stored = refit(panel, tmp_path / "model.zarr")
    assert stored.attrs["avocado"]["interrupted"]
    assert stored.sizes["epoch"] == (3 if part == "context" else 1)
    assert stored.sizes["context_member"] == (1 if part == "context" else 2)
    assert np.isfinite(xa.open_cube(tmp_path / "model.zarr").avocado.impute("C1").imputed[0].values).all()
    again = refit(panel, tmp_path / "model.zarr")
    assert_same_model(again, undisturbed)
    assert not fitting(tmp_path / "model.zarr").exists()


CHILD = textwrap.dedent(
    """
    import json, os, signal, sys
    import xr_avocado as xa
    from xr_avocado.io import checkpoint

    store, config, stop = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    flush, calls = os.fsync, 0

    def fsync(handle):
        # Odd calls stand between writing a checkpoint and its renaming, even ones after.
        global calls
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    checkpoint.os.fsync = fsync
    print("ready", flush=True)
    xa.datasets.simulate(4, 3, {"chr1": 60_010}).avocado.fit(
        config=config, store=store, checkpoint_minutes=0, progress=False
    )
    """
)


def child(store: Path, stop: int) -> subprocess.Popen[str]:
    import json

    command = [sys.executable, "-c", CHILD, str(store), json.dumps(CONFIG), str(stop)]
    paths = os.pathsep.join([str(Path(xa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def test_kill_9_and_the_same_call_again_give_the_undisturbed_model(
    panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path
) -> None:
    store = tmp_path / "model.zarr"
    for stop in (41, 60):
        process = child(store, stop)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert_same_model(refit(panel, store), undisturbed)


@pytest.mark.slow
def test_kill_9_at_any_moment(panel: xr.Dataset, undisturbed: xr.Dataset, tmp_path: Path) -> None:
    store, delays = tmp_path / "model.zarr", np.random.default_rng(0).uniform(0.1, 1.5, 6)
    killed = 0
    for delay in delays:
        process = child(store, 0)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    assert_same_model(refit(panel, store), undisturbed)
