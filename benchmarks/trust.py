"""What was tried to break the package, how often, and what came of it: the table of docs/trust.md.

    python benchmarks/trust.py [SECTION ...] [--scale 1.0] [--out docs/trust.md]

Sections: files, cuts, chunks, kills, and what they were is in the table. Mutants are read in processes of their own, so that a crash
or a hang is a row of the table. ``--scale 0.01`` is a quick look. Each section keeps its rows in the page until it is run again.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import damage  # noqa: E402

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


def _send(pipe: object, work: Callable[..., Iterator[tuple[str, str]]], *args: object) -> None:
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


SECTIONS: dict[str, Callable[[float], Iterator[Row]]] = {"files": files, "cuts": cuts}


# --- the page ----------------------------------------------------------------------------------------------------------------


def row_of(section: str, what: str, results: Counter[str]) -> str:
    numbers = " | ".join(f"{n:,}" for n in (sum(results.values()), *(results[o] for o in OUTCOMES)))
    return f"| {section} | {what} | {numbers} |"


def update(page: Path, section: str, rows: list[str]) -> None:
    """Put a section's rows in the page's table, in place of those it has."""
    text = page.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(f"| {section} |")]
    end = max(i for i, line in enumerate(lines) if line.startswith("|"))
    page.write_text("\n".join([*lines[: end + 1], *rows, *lines[end + 1 :]]) + "\n")


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
            rows.append(row_of(section, what, results))
            wrong += results[damage.WRONG]
            print(rows[-1], flush=True)
        print(f"{section}: {time.perf_counter() - began:,.0f} s", flush=True)
        if given.out:
            update(given.out, section, rows)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
