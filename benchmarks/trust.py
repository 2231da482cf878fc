"""What was tried to break the package, how often, and what came of it: the table of docs/trust.md.

    python benchmarks/trust.py [SECTION ...] [--scale 1.0] [--out docs/trust.md]

What each section does is in the table; a row of one that was run at another scale than 1 says so. Mutants are read in processes of their
own, so that a crash or a hang is a row of the table. ``--scale 0.01`` is a quick look. Each section keeps its rows in the page until it is
run again.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import damage  # noqa: E402
import trust_load  # noqa: E402

EDGE = HERE.parents[1] / "shared" / "data" / "bigwig_edge"
PILOT = HERE.parents[1] / "shared" / "data" / "roadmap_pilot" / "bigwig"
OUTCOMES = (damage.RIGHT, damage.ERROR, damage.UNDETECTABLE, damage.WRONG)
PATIENCE = 120
"""Seconds after which a mutant counts as a hang, on a machine that does other work as well."""
Row = tuple[str, Counter[str]]


def in_process(work: Callable[..., Iterator[tuple[str, str]]], *args: object) -> Iterator[tuple[str, str]]:
    """Run a generator in another process; where that crashes or hangs, this is the last outcome."""
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_send, args=(theirs, work, *args), daemon=True)
    process.start()
    theirs.close()
    while True:
        try:
            if not ours.poll(PATIENCE):
                yield damage.WRONG, "it hangs"
                break
            message = ours.recv()
        except EOFError:
            process.join()
            yield damage.WRONG, f"it crashed with {process.exitcode}"
            break
        if message is None:
            break
        yield message
    process.kill()


def _send(pipe: Any, work: Callable[..., Iterator[tuple[str, str]]], *args: object) -> None:
    for result in work(*args):
        pipe.send(result)
    pipe.send(None)


# --- bigWigs -----------------------------------------------------------------------------------------------------------------


def read_mutants(source: str, count: int, seed: int, first: int) -> Iterator[tuple[str, str]]:
    one = damage.whole(Path(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.bw"
        for i, (kind, content, changed) in enumerate(damage.mutants(one, count, seed)):
            if i >= first:
                path.write_bytes(content)
                result, word = damage.outcome(one, path, changed)
                yield result, f"{one.name} {kind} {sorted(changed)[:1]} {word}"


def files(scale: float) -> Iterator[Row]:
    """Bits and bytes flipped, fields overwritten, pages zeroed or swapped, files cut."""
    with tempfile.TemporaryDirectory() as folder:
        sources = damage.write_samples(Path(folder))
        sources += [EDGE / name for name in ("mini_nozoom.bw", "nan_inf_values.bw", "header_only.bw") if EDGE.is_dir()]
        count = max(int(2_600 * scale), 1)
        for source in sources:
            done, results = 0, Counter()
            while done < count:
                for result, word in in_process(read_mutants, str(source), count, 0, done):
                    results[result] += 1
                    done += 1
                    if result == damage.WRONG:
                        print(f"WRONG: {word}", flush=True)
            yield f"mutants of a bigWig: {source.stem}", results


def read_cuts(source: str) -> Iterator[tuple[str, str]]:
    from xr_avocado.genome import GenomeBins
    from xr_avocado.io.bigwig import BigWigError, chromosomes, read_bins
    from xr_avocado.io.header import read_header, read_index

    sizes = chromosomes(source)
    with open(source, "rb") as file:
        blocks = read_index(source, file, read_header(source, file), np.array(list(sizes.values())))
    chrom = list(sizes)[int(blocks["chrom"][0])]
    start = int(blocks["start"][0])
    bins = GenomeBins([(chrom, start, min(start + 500_000, sizes[chrom]))], 1000)
    expected = read_bins(source, bins)
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copyfile(source, f"{folder}/cut.bw")
        os.chmod(path, 0o600)
        for keep in range(os.path.getsize(path) // 4096 * 4096, -1, -4096):
            os.truncate(path, keep)
            try:
                same = np.array_equal(read_bins(path, bins), expected, equal_nan=True)
                yield (damage.RIGHT if same else damage.WRONG), f"{source} cut at {keep}"
            except BigWigError as error:
                yield (damage.ERROR if path in str(error) else damage.WRONG), str(error)
            except Exception as error:  # noqa: BLE001
                yield damage.WRONG, f"{source} cut at {keep}: {error!r}"


def cuts(scale: float) -> Iterator[Row]:
    """Real files cut at every 4 KiB."""
    there = [EDGE / "fixedStep_negative.bw", EDGE / "pyBigWig_test.bw", *sorted(PILOT.glob("*.bw"))[:2]]
    for source in [path for path in there if path.is_file()][: max(int(4 * scale), 1)]:
        results: Counter[str] = Counter()
        for result, word in in_process(read_cuts, str(source)):
            results[result] += 1
            if result == damage.WRONG:
                print(f"WRONG: {word}", flush=True)
        yield f"cut at every 4 KiB: {source.name}", results


# --- stores ------------------------------------------------------------------------------------------------------------------


def chunks(scale: float) -> Iterator[Row]:
    """Bits flipped in the files of a store; a chunk cut, a chunk gone."""
    from xr_avocado import datasets
    from xr_avocado.cube import CubeError
    from xr_avocado.io.zarr import open_cube, to_zarr

    rng, count = np.random.default_rng(0), max(int(1_000 * scale), 1)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "cube.zarr"
        expected = to_zarr(datasets.simulate().isel(position=slice(0, 20_000)), store, progress=False).compute()
        paths = sorted(path for path in store.rglob("*") if path.is_file())
        metadata = [path for path in paths if path.name == "zarr.json"]
        data = [path for path in paths if path.name != "zarr.json"]
        for what, among in (("a bit of a chunk flipped", data), ("a chunk cut", data), ("a chunk gone", data)):
            results: Counter[str] = Counter()
            for path in rng.choice(np.array(among, object), count):
                content = path.read_bytes()
                _harm(path, content, what, rng)
                try:
                    same = open_cube(store).compute().identical(expected)
                    results[damage.RIGHT if same else damage.WRONG] += 1
                except CubeError as error:
                    results[damage.ERROR if str(store) in str(error) else damage.WRONG] += 1
                except Exception as error:  # noqa: BLE001
                    print(f"WRONG: {path}: {error!r}", flush=True)
                    results[damage.WRONG] += 1
                path.write_bytes(content)
            yield what, results
        results = Counter()
        for path in rng.choice(np.array(metadata, object), count):
            content = path.read_bytes()
            _harm(path, content, "a bit flipped", rng)
            try:
                # What is other and still a store is text that any editor could have written.
                same = open_cube(store).compute().identical(expected)
                results[damage.RIGHT if same else damage.UNDETECTABLE] += 1
            except CubeError:
                results[damage.ERROR] += 1
            except Exception as error:  # noqa: BLE001
                print(f"WRONG: {path}: {error!r}", flush=True)
                results[damage.WRONG] += 1
            path.write_bytes(content)
        yield "a bit of the metadata (JSON text) flipped", results


def _harm(path: Path, content: bytes, what: str, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(content)))
    if "flipped" in what:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
    elif "cut" in what:
        path.write_bytes(content[:at])
    else:
        path.unlink()


# --- kill -9 -----------------------------------------------------------------------------------------------------------------


def killed(call: Callable[..., object], store: Path, seconds: float) -> float:
    """Run a call in a process of its own, killed with its children some time after it began; return how long it ran."""
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_begin, args=(theirs, call, store))
    process.start()
    ours.recv()
    began = time.perf_counter()
    process.join(seconds)
    lasted = time.perf_counter() - began
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return lasted


def _begin(pipe: Any, call: Callable[..., object], store: Path) -> None:
    os.setsid()
    pipe.send("begun")
    call(store=store)


def kill_and_call_again(
    what: str, call: Callable[..., object], same: Callable[[Path, Path], bool], scale: float
) -> Row:
    """Kill a call at random moments, call it again, and compare what it ends with to what an undisturbed one does."""
    from xr_avocado.cube import CubeError
    from xr_avocado.io.build import SheetError

    rng, results, count = np.random.default_rng(0), Counter(), max(int(50 * scale), 1)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole.zarr"
        lasts = killed(call, whole, 3_600)
        for i in range(count):
            store = Path(name) / f"{i}.zarr"
            killed(call, store, float(rng.uniform(0.02, 1.1)) * lasts)
            try:
                call(store=store)
                left, equal = [n for n in os.listdir(name) if n.startswith(f".{store.name}")], same(store, whole)
                results[damage.RIGHT if equal and not left else damage.WRONG] += 1
                if left or not equal:
                    print(f"WRONG: {what} {i}: equal {equal}, left beside it {left}", flush=True)
            except (CubeError, SheetError) as error:
                print(f"ERROR after a kill: {error}", flush=True)
                results[damage.WRONG] += 1
            shutil.rmtree(store, ignore_errors=True)
    return what, results


def same_bytes(one: Path, other: Path) -> bool:
    files = [
        {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()} for store in (one, other)
    ]
    return files[0] == files[1]


def same_values(one: Path, other: Path) -> bool:
    from xr_avocado.io.zarr import open_cube

    return bool(open_cube(one).compute().equals(open_cube(other).compute()))


@contextmanager
def build_call() -> Iterator[Callable[..., object]]:
    """A call of build_cube that takes a few seconds."""
    import pandas as pd

    from xr_avocado.genome import GenomeBins
    from xr_avocado.io.bigwig import write_bins
    from xr_avocado.io.build import build_cube

    sizes = {"chr1": 3_000_010}
    with tempfile.TemporaryDirectory() as folder:
        bins = GenomeBins.from_chromsizes(sizes)
        paths = [f"{folder}/{i}.bw" for i in range(8)]
        for i, path in enumerate(paths):
            write_bins(path, bins, np.random.default_rng(i).gamma(0.5, 4, len(bins)), sizes, progress=False)
        sheet = pd.DataFrame({"celltype": [f"C{i}" for i in range(8)], "assay": "A", "path": paths})
        yield partial(build_cube, sheet, genome=sizes, n_jobs=2, progress=False)


@contextmanager
def fit_call() -> Iterator[Callable[..., object]]:
    """A call of fit that keeps a checkpoint at every step."""
    from xr_avocado.fit import fit as train

    cube = _small_panel().isel(celltype=slice(4))
    yield partial(train, cube, config=CONFIG, epochs=4, checkpoint_minutes=0, progress=False)


@contextmanager
def extend_call() -> Iterator[Callable[..., object]]:
    """A call of extend that learns two cell types."""
    from xr_avocado.extend import extend as learn
    from xr_avocado.fit import fit as train

    cube = _small_panel()
    fitted = train(cube.isel(celltype=slice(4)), config=CONFIG, epochs=4, progress=False)
    yield partial(learn, fitted, cube.isel(celltype=slice(4, None)), epochs=4, progress=False)


@contextmanager
def extend_positions_call() -> Iterator[Callable[..., object]]:
    """A call of extend that learns a chromosome."""
    from xr_avocado import datasets
    from xr_avocado.extend import extend as learn
    from xr_avocado.fit import fit as train

    cube = _small_panel()
    fitted = train(cube, config=CONFIG, epochs=4, progress=False)
    new = datasets.simulate(n_celltypes=6, n_assays=5, chromsizes={"chr2": 400_010})
    yield partial(learn, fitted, new, epochs=4, progress=False)


CALLS = {
    "build_cube": (build_call, same_bytes),
    "fit(store=)": (fit_call, same_values),
    "extend(store=)": (extend_call, same_values),
    "extend(store=), new positions": (extend_positions_call, same_values),
}
"""Long work that ends in a store, and when two of its stores are the same."""


def kills(scale: float, *names: str) -> Iterator[Row]:
    """Long work killed at random moments and called again."""
    for name in names:
        make, same = CALLS[name]
        with make() as call:
            yield kill_and_call_again(f"{name} killed at a random moment, called again", call, same, scale)


def disks(scale: float) -> Iterator[Row]:
    """Long work on disks that are too small, mostly; called again where there is room."""
    calls = CALLS | {"to_zarr": (to_zarr_call, same_values), "to_bigwig": (to_bigwig_call, same_tracks)}
    for name, (make, same) in calls.items():
        with make() as call:
            last = "samples.tsv" if name == "to_bigwig" else "."
            what = f"{name} on a disk that fills, called again with room"
            yield trust_load.fill(what, call, same, max(int(30 * scale), 1), last)


@contextmanager
def to_zarr_call() -> Iterator[Callable[..., object]]:
    """A call of to_zarr."""
    from xr_avocado.io.zarr import to_zarr

    cube = _small_panel()
    yield lambda store: to_zarr(cube, store, progress=False)


@contextmanager
def to_bigwig_call() -> Iterator[Callable[..., object]]:
    """A call of to_bigwig."""
    from xr_avocado.io.export import to_bigwig

    cube = _small_panel().isel(celltype=slice(2))
    yield lambda store: to_bigwig(cube, store, variable="signal", progress=False)


def same_tracks(one: Path, other: Path) -> bool:
    """Compare bigWigs, which samples.tsv names with the folder they are in."""
    tracks = [{path.name: path.read_bytes() for path in folder.glob("*.bw")} for folder in (one, other)]
    return tracks[0] == tracks[1] and (one / "samples.tsv").exists()


def two(scale: float) -> Iterator[Row]:
    """The same call twice at once."""
    for name, (make, same) in CALLS.items():
        with make() as call:
            yield trust_load.two(f"{name} twice at once", call, same, max(int(25 * scale), 1))


CONFIG = {
    "nodes": 16,
    "layers": 1,
    "context_members": 1,
    "context_units": 8,
    "context_nodes": 16,
    "context_heads": 2,
    "context_samples": 20_000,
}


def _small_panel() -> Any:
    import torch

    from xr_avocado import datasets

    torch.set_num_threads(1)
    return datasets.simulate(n_celltypes=6, n_assays=5, chromsizes={"chr1": 400_010})


SECTIONS: dict[str, Callable[[float], Iterator[Row]]] = {
    "files": files,
    "cuts": cuts,
    "chunks": chunks,
    "build": lambda scale: kills(scale, "build_cube"),
    "fit": lambda scale: kills(scale, "fit(store=)"),
    "extend": lambda scale: kills(scale, "extend(store=)"),
    "positions": lambda scale: kills(scale, "extend(store=), new positions"),
    "disks": disks,
    "two": two,
    **{name: lambda scale, name=name: trust_load.tested(name) for name in trust_load.TESTED},
}


# --- the page ----------------------------------------------------------------------------------------------------------------


def row_of(section: str, what: str, results: Counter[str]) -> str:
    numbers = " | ".join(f"{n:,}" for n in (sum(results.values()), *(results[o] for o in OUTCOMES)))
    return f"| {section} | {what} | {numbers} |"


def update(page: Path, section: str, rows: list[str]) -> None:
    """Put a section's rows in the page's table, in place of those it has; sections in their order."""
    lines = page.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    kept = [line for line in lines[first:last] if not line.startswith(f"| {section} |")]
    order = [f"| {name} |" for name in SECTIONS]
    table = sorted([*kept, *rows], key=lambda line: next(i for i, name in enumerate(order) if line.startswith(name)))
    page.write_text("\n".join([*lines[:first], *table, *lines[last:]]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="the page whose table is brought up to date")
    given = parser.parse_args()
    wrong = 0
    for section in given.sections or SECTIONS:
        began, rows = time.perf_counter(), []
        for what, results in SECTIONS[section](given.scale):
            # Tests are counted, and all are run.
            reduced = given.scale != 1 and section not in trust_load.TESTED
            rows.append(row_of(section, f"{what} (scale {given.scale:g})" if reduced else what, results))
            wrong += results[damage.WRONG]
            print(rows[-1], flush=True)
        print(f"{section}: {time.perf_counter() - began:,.0f} s", flush=True)
        if given.out:
            update(given.out, section, rows)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
