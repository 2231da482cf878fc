"""Sections of trust.py: disks that fill, two calls at once, and what the tests try, counted by what they came to."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import damage

Row = tuple[str, Counter[str]]
Call = Callable[..., object]
Same = Callable[[Path, Path], bool]
ROOT = Path(__file__).parents[1]


# --- a full disk -------------------------------------------------------------------------------------------------------------


@contextmanager
def disk_of(folder: Path) -> Iterator[Callable[[int], None]]:
    """Mount a disk in memory; what is given back makes it as large as asked, in kB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1G", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(what: str, call: Call, same: Same, count: int, last: str = ".") -> Row:
    """Call on disks of random sizes, where it fails again with room, and compare with what an undisturbed call makes.

    ``last`` is the file that tells that the result is complete.
    """
    rng, results = random.Random(0), Counter()
    with tempfile.TemporaryDirectory() as name, disk_of(Path(name) / "disk") as resize:
        whole, target = Path(name) / "whole.zarr", Path(name) / "disk" / "one.zarr"
        call(store=whole)
        needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
        for _ in range(count):
            resize(rng.randint(16, int(1.3 * needed) + 64))
            try:
                call(store=target)
            except Exception as error:  # noqa: BLE001
                told = str(target.parent) in str(error) and "make room" in str(error) and _is_ours(error)
                absent = not (target / last).exists()
                results[damage.ERROR if told and absent else damage.WRONG] += 1
                if not (told and absent):
                    print(f"WRONG: {what}: {error!r}; it is absent: {absent}", flush=True)
                resize(1 << 20)
                call(store=target)
            results[damage.RIGHT if (equal := same(target, whole)) else damage.WRONG] += 1
            if not equal or os.listdir(target.parent) != [target.name]:
                print(f"WRONG: {what}: equal {equal}, there {os.listdir(target.parent)}", flush=True)
            shutil.rmtree(target)
    return what, results


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.startswith("xr_avocado")


# --- two calls at once -------------------------------------------------------------------------------------------------------


def _outcome(call: Call, store: Path) -> tuple[str, str]:
    try:
        call(store=store)
        return damage.RIGHT, ""
    except Exception as error:  # noqa: BLE001
        told = "another process is writing" in str(error) and store.name in str(error) and _is_ours(error)
        return (damage.ERROR if told else damage.WRONG), repr(error)


def _begin(pipe: Any, call: Call, store: Path) -> None:
    # Once for nothing: until all is imported the second call might come and go.
    with tempfile.TemporaryDirectory() as elsewhere:
        call(store=Path(elsewhere) / "warm.zarr")
    pipe.send("begun")
    pipe.send(_outcome(call, store))


def two(what: str, call: Call, same: Same, count: int) -> Row:
    """Call, and call again at a random moment meanwhile: each does its work or is told, and the store is as if there had been one."""
    rng, results = random.Random(0), Counter()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole.zarr"
        began = time.perf_counter()
        call(store=whole)
        lasts = time.perf_counter() - began
        for i in range(count):
            store = Path(name) / f"{i}.zarr"
            ours, theirs = mp.Pipe(duplex=False)
            first = mp.get_context("spawn").Process(target=_begin, args=(theirs, call, store))
            first.start()
            ours.recv()
            time.sleep(rng.uniform(0, 1.5) * lasts)
            for outcome, word in (_outcome(call, store), ours.recv()):
                results[outcome] += 1
                if outcome == damage.WRONG:
                    print(f"WRONG: {what} {i}: {word}", flush=True)
            first.join()
            call(store=store)
            left = [n for n in os.listdir(name) if n.startswith(".")]
            if left or not same(store, whole):
                results[damage.WRONG] += 1
                print(f"WRONG: {what} {i}: left {left}", flush=True)
            shutil.rmtree(store)
    return what, results


# --- what the tests try ------------------------------------------------------------------------------------------------------

TESTED: Mapping[str, list[tuple[str, str, list[str], str]]] = {
    "tables": [
        ("sheets, BED, GTF and chromosome lengths as people save them", damage.RIGHT, ["tests/test_trust_tables.py"], "read or numbers or order"),
        ("sheets, BED, GTF and chromosome lengths that are none", damage.ERROR, ["tests/test_trust_tables.py"], "told"),
    ],
    "arguments": [
        ("a verb with an argument that is unknown, empty, out of range or of another kind", damage.ERROR, ["tests/test_trust_arguments.py"], "told or nothing or without_a_model"),
        ("a function beside the verbs with such an argument", damage.ERROR, ["tests/test_trust_functions.py"], "told and not edge"),
        ("every verb and figure on cubes at the edge: NaN, no track, one track, one bin, a constant; a result or a clear error", damage.RIGHT, ["tests/test_trust_functions.py"], "edge"),
        ("training at the edge: one track, no track of a cell type, a huge rate, an error that is no number", damage.RIGHT, ["tests/test_trust_arguments.py", "tests/test_fit.py", "tests/test_context.py"], "one_track or cell_type_without or far_too_high or diverge"),
    ],
    "commands": [
        ("a command with a file, label, region, number, option or output that is wrong", damage.ERROR, ["tests/test_trust_cli.py"], "mistake or usage or one_line"),
    ],
    "paths": [
        ("a path that cannot be written to, for every function that writes", damage.ERROR, ["tests/test_trust_paths.py"], "written"),
        ("a path that cannot be read, or holds something else, for every function that reads", damage.ERROR, ["tests/test_trust_paths.py"], "read"),
        ("a piece of an export, or of an extension, that was damaged in between: told, and done anew", damage.RIGHT, ["tests/test_export.py", "tests/test_trust_training.py"], "was_damaged"),
    ],
    "read-only": [
        ("a disk that is read-only, a folder that is not ours, a name that is taken", damage.ERROR, ["tests/test_trust_training.py", "tests/test_trust_stores.py"], "read_only or replaced_by or may_not_be_written"),
    ],
    "memory": [
        ("out of memory on a device (simulated), in training and in imputing", damage.RIGHT, ["tests/test_training.py", "tests/test_context.py", "tests/test_impute.py"], "out_of_memory_halves"),
        ("out of memory on a device (simulated), where not even one position fits", damage.ERROR, ["tests/test_impute.py", "tests/test_training.py"], "out_of_memory and told"),
    ],
    "numbers": [
        ("index algebra against a plain model, bin by bin", damage.RIGHT, ["tests/test_index.py", "tests/test_genome.py"], ""),
        ("bin means against the bases, what is written against what is read", damage.RIGHT, ["tests/test_bigwig.py", "tests/test_trust_numbers.py"], "bases or read_back or last_bin or other_readers"),
        ("transforms and their inverses, the error of float16", damage.RIGHT, ["tests/test_trust_numbers.py"], "inverse or odd or float16"),
        ("measures against scipy, scikit-learn, ChromImpute and the challenge, and by hand", damage.RIGHT, ["tests/test_measures.py"], ""),
        ("extend leaves every earlier parameter and prediction as it is", damage.RIGHT, ["tests/test_extend.py"], "bit_for_bit or changes_nothing or belong or alone"),
        ("slices of what is imputed are what is imputed of slices; dask is numpy; chunks, blocks, schedulers, workers change nothing", damage.RIGHT, ["tests/test_trust_numbers.py", "tests/test_impute.py", "tests/test_context.py", "tests/test_export.py"], "slic or numpy or chunks or scheduler or workers or region_of or cluster or cut or threads or processes_write"),
    ],
    "security": [
        ("files that are read for code, labels for paths, the repository for secrets", damage.RIGHT, ["tests/test_trust_code.py"], ""),
    ],
}  # fmt: skip
"""For each section: what is tried, what a test that passes comes to, its files, and which of their tests by name."""


def tested(section: str) -> Iterator[Row]:
    """Run tests, and count each by what it is that it asserts; those that are skipped were not tried."""
    for what, passes, files, names in TESTED[section]:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            options = ["-q", "-m", "not gpu", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", names]
            subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
            cases = list(ElementTree.parse(report).getroot().iter("testcase"))
        results: Counter[str] = Counter()
        for case in cases:
            tags = {part.tag for part in case}
            if "skipped" not in tags:
                results[damage.WRONG if tags & {"failure", "error"} else passes] += 1
        yield what, results
