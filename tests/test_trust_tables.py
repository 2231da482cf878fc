"""Sheets, BED files, GTF and chromosome lengths as people save them: what is meant is read, and what is wrong is named."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.intervals import as_frame
from xr_avocado.io.sheet import SheetError, axis_of, read_sheet
from xr_avocado.task_labels import interactions

ROWS = [("E003", "H3K4me3", "a.bw"), ("E017", "DNase", "sub/b.bw")]
HEADER = ["celltype", "assay", "path"]


def table(sep: str = "\t", end: str = "\n", rows: list = ROWS) -> str:
    return end.join(sep.join(map(str, row)) for row in [HEADER, *rows]) + end


def read(tmp_path: Path, content: bytes | str, name: str = "sheet.tsv") -> list:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_sheet(tmp_path / name)


# --- sheets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(","),
        table(end="\r\n"),
        table(",", "\r\n").encode("utf-8-sig"),
        table().replace("\t", " \t "),
        table().replace("E003", "  E003  ").replace("celltype", " celltype "),
        table() + "\n\n",
        table() + "\t\t\n\t\t\n",
        table(",") + ",,\n",
        "note\t" + table().replace("\nE", "\nmine\tE"),
        table().replace("E003", '"E003"'),
    ],
    ids=[
        "tabs",
        "commas",
        "CRLF",
        "Excel",
        "blanks",
        "more blanks",
        "empty lines",
        "empty rows",
        "empty cells",
        "more",
        "quotes",
    ],
)
def test_a_sheet_is_read_however_it_was_saved(tmp_path, content):
    expected = [(c, a, (str(tmp_path / p),)) for c, a, p in ROWS]
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no TSV or CSV file"),
        (b"\n\n\n", "is no TSV or CSV file"),
        (table(rows=[]), "has no rows"),
        (table(rows=[("", "", "")]), "has no rows"),
        (table(";"), "has no column celltype, assay, path; it has celltype;assay;path"),
        (table().replace("path", "file"), "has no column path; it has celltype, assay, file"),
        (table().replace("path", "path\tpath").replace(".bw", ".bw\tx.bw"), None),
        (table().encode("utf-16"), "is not UTF-8 text"),
        (table().replace("E003", "Bébé").encode("latin-1"), "is not UTF-8 text"),
        (table(rows=[("C", "A", "x.bw", "more")]), "has rows with more cells than its first line has columns"),
        (table(rows=[*ROWS, ("C", "A", "x.bw", "more")]), "is no TSV or CSV file: .*line 4"),
        (table(rows=[("C", "A")]), "row 1 has no path"),
        (table(rows=[*ROWS, ("", "", ""), ("C", "", "x.bw")]), "row 4 has no assay"),
        (table(rows=[ROWS[0], ROWS[0]]), r"E003 H3K4me3 has the same file twice: .*a\.bw"),
        (
            table(rows=[ROWS[0], ("E003", "H3K4me3", "b.bw")]),
            "E003 H3K4me3 has 2 files; average them with replicates='mean'",
        ),
        (table().replace("E003", '"E003'), "is no TSV or CSV file"),
        (bytes(range(256)) * 4, "is not UTF-8 text|is no TSV or CSV file"),
        (b"\x1f\x8b" + table().encode(), "is not UTF-8 text"),
    ],
)
def test_a_sheet_that_cannot_be_meant_is_told_with_its_name(tmp_path, content, says):
    if says is None:
        assert len(read(tmp_path, content)) == 2
        return
    with pytest.raises(SheetError, match=says) as error:
        read(tmp_path, content)
    assert "sheet.tsv" in str(error.value)


def test_labels_that_are_numbers_stay_text(tmp_path):
    tracks = read(tmp_path, table(rows=[("007", "1e5", "a.bw"), ("NA", "True", "b.bw"), ("nan", "0.10", "c.bw")]))
    assert [(t.celltype, t.assay) for t in tracks] == [("007", "1e5"), ("NA", "True"), ("nan", "0.10")]
    frame = pd.DataFrame({"celltype": [7, 8], "assay": [1.5, "x"], "path": [Path("a.bw"), "b.bw"]}, index=[3, 3])
    assert [(t.celltype, t.assay) for t in read_sheet(frame)] == [("7", "1.5"), ("8", "x")]


def test_a_frame_that_is_no_sheet_is_told():
    frame = pd.DataFrame([["C", "C", "A", "x.bw"]], columns=["celltype", "celltype", "assay", "path"])
    with pytest.raises(SheetError, match="the sheet has more than one column celltype"):
        read_sheet(frame)
    with pytest.raises(SheetError, match="row 2 has no celltype"):
        read_sheet(pd.DataFrame({"celltype": ["C", None], "assay": "A", "path": "x.bw"}, index=[9, 9]))


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_sheet_or_an_error_with_its_name(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    for head in (b"", b"celltype\tassay\tpath\n"):
        path.write_bytes(head + content)
        try:
            assert read_sheet(path, replicates="mean")
        except SheetError as error:
            assert "any.tsv" in str(error)


# --- intervals ---------------------------------------------------------------------------------------------------------------

BED = "chr1\t5\t10\nchr2\t0\t7\n"


@pytest.mark.parametrize(
    "content",
    [
        BED.encode(),
        BED.replace("\n", "\r\n").encode(),
        BED.encode("utf-8-sig"),
        BED.replace("\t", " ").encode(),
        b"# made by hand\n\ntrack name=x\n" + BED.encode() + b"\n\n",
        gzip.compress(BED.encode(), mtime=0),
        b"chrom\tstart\tend\n" + BED.encode(),
        BED.rstrip().encode(),
    ],
    ids=["plain", "CRLF", "BOM", "blanks", "comments", "gzip", "header", "no last newline"],
)
def test_a_bed_file_is_read_however_it_was_saved(tmp_path, content):
    (tmp_path / "x.bed").write_bytes(content)
    assert as_frame(tmp_path / "x.bed").to_numpy().tolist() == [["chr1", 5, 10], ["chr2", 0, 7]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no intervals"),
        (b"\n \n# x\n", "holds no intervals"),
        (BED.encode("utf-16"), "cannot be read as text"),
        (b"chr1\t5\t10\tB\xe9b\xe9\n", "cannot be read as text"),
        (gzip.compress(BED.encode() * 99, mtime=0)[:-20], "cannot be read as text"),
        (b"\x1f\x8b\x08" + bytes(30), "cannot be read as text"),
        (b"chr1,5,10\n", "has 1 columns; a BED file has chrom, start, end"),
        (b"chr1\t10\t5\n", "interval 1 of .*, chr1:10-5, does not start below its end: .* subtract 1"),
        (b"chr1\t10\t10\n", "subtract 1"),
        (b"chr1\t-1\t10\n", "starts below 0"),
        (b"chr1\t1.5\t10\n", "no whole number as its start"),
        (b"chr1\t1\t1e300\n", "no whole number as its end"),
        (b"chr1\t1\t" + b"9" * 40 + b"\n", "no whole number as its end"),
        (b"chr1\t1\tinf\n", "no whole number as its end"),
        (b"chr1\t1\t\n", "no whole number as its end"),
        (b"\t1\t2\n", "has no chromosome"),
        (BED.encode() + b"chr3\t1\t2\tname\n", "is not a BED file"),
        (bytes(range(1, 256)) * 4, "cannot be read as text"),
    ],
)
def test_a_bed_file_that_is_none_is_told_with_its_name(tmp_path, content, says):
    (tmp_path / "x.bed").write_bytes(content)
    with pytest.raises(GenomeError, match=says) as error:
        as_frame(tmp_path / "x.bed")
    assert "x.bed" in str(error.value)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_intervals_or_an_error_with_the_file_s_name(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.bed"
    for head in (b"", b"chr1\t5\t10\n", b"\x1f\x8b"):
        path.write_bytes(head + content)
        try:
            frame = as_frame(path)
            assert ((frame.start >= 0) & (frame.end > frame.start)).all()
        except GenomeError as error:
            assert "any.bed" in str(error)


def test_gtf_read_by_pyranges_is_0_based_and_half_open(tmp_path):
    import pyranges

    rows = [
        "##format: gtf",
        'chr1\thand\tgene\t1001\t2000\t.\t-\t.\tgene_id "A";',
        'chr2\thand\tgene\t1\t1\t.\t+\t.\tgene_id "B";',
    ]
    for end in ("\n", "\r\n"):
        (tmp_path / "genes.gtf").write_bytes((end.join(rows) + end).encode())
        frame = as_frame(pyranges.read_gtf(str(tmp_path / "genes.gtf")))
        assert frame[["chrom", "start", "end", "strand"]].values.tolist() == [
            ["chr1", 1_000, 2_000, "-"],
            ["chr2", 0, 1, "+"],
        ]


@pytest.mark.parametrize("pack", [lambda text: gzip.compress(text, mtime=0), bytes])
def test_a_little_file_that_unpacks_to_a_lot_is_told(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("xr_avocado.intervals.LARGEST", 1_000)
    for text in (b"chr1\t5\t10\n" * 101, b"chr1" * 251):
        (tmp_path / "x.bed").write_bytes(pack(text))
        for read_all in (as_frame, interactions):
            with pytest.raises(GenomeError, match=r"x\.bed holds more than 1,000 characters"):
                read_all(tmp_path / "x.bed")
    (tmp_path / "x.bed").write_bytes(pack(b"chr1\t5\t10\n" * 90))
    assert len(as_frame(tmp_path / "x.bed")) == 90


@given(content=st.binary(max_size=200))
def test_any_bytes_are_pairs_or_an_error_with_the_file_s_name(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.bedpe"
    for head in (b"", b"chr1\t5\t10\tchr1\t50\t90\t1\n", b"\x1f\x8b"):
        path.write_bytes(head + content)
        try:
            interactions(path, column="column7")
        except GenomeError as error:
            assert "any.bedpe" in str(error) or "pair" in str(error)


@pytest.mark.parametrize("name", ["genes.gtf", "genes.gff3", "genes.GTF", "genes.gtf.gz"])
def test_gtf_is_told_to_be_1_based(tmp_path, name):
    (tmp_path / name).write_text("chr1\tx\tgene\t1\t10\t.\t+\t.\tgene_id 'x'\n")
    with pytest.raises(GenomeError, match=r"is GTF or GFF, which is 1-based: read it with pyranges\.read_gtf"):
        as_frame(tmp_path / name)


SIZES = {"chr1": 1_000, "chr2": 510}


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        ([("chr1", 0, 1_001)], "chr1 ends at 1,000"),
        ([("chr1", 2_000, 3_000)], "chr1 ends at 1,000"),
        ([("1", 0, 10)], "did you mean 'chr1'"),
        ([("chr9", 0, 10)], "chromosome 'chr9' is not here"),
    ],
)
def test_regions_that_are_not_of_the_assembly_are_told(regions, says):
    with pytest.raises(GenomeError, match=says):
        axis_of(as_frame(regions), 25, SIZES, {}, [])


def test_regions_in_any_order_that_overlap_are_each_bin_once():
    regions = [
        ("chr2", 300, 510),
        ("chr1", 500, 600),
        ("chr1", 0, 100),
        ("chr1", 50, 120),
        ("chr2", 290, 310),
        ("chr1", 0, 100),
    ]
    bins, _ = axis_of(as_frame(regions), 25, SIZES, {}, [])
    assert bins == GenomeBins([("chr1", 0, 125), ("chr1", 500, 600), ("chr2", 275, 510)], 25)


# --- chromosome lengths ------------------------------------------------------------------------------------------------------


def test_chromosome_lengths_are_read_however_they_were_saved(tmp_path):
    for content in (b"chr1\t1000\nchr2\t510\n", b"chr1 1000\r\nchr2 510", b"\xef\xbb\xbfchr1\t1000\nchr2\t510\tmore\n"):
        (tmp_path / "x.sizes").write_bytes(content)
        assert chromosome_sizes(tmp_path / "x.sizes") == SIZES
    assert chromosome_sizes({"chr1": np.int64(1_000), "chr2": 510}) == SIZES


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a chrom.sizes file"),
        (b"chr1\n", "is not a chrom.sizes file"),
        (b"chr1\tlong\n", "is not a chrom.sizes file"),
        (b"chr1\t1.5\n", "is not a chrom.sizes file"),
        (b"chr1\t0\n", "chr1 has the length 0"),
        (b"chr1\t-5\n", "chr1 has the length -5"),
        (b"chr1\t5000000000\n", "chr1 has the length 5000000000"),
        (b"chr1\t5\nchr1\t6\n", "chr1 is there more than once"),
        (b"\xff\xfec\0h\0r\0", "is not a chrom.sizes file"),
        (gzip.compress(b"chr1\t5\n", mtime=0), "is not a chrom.sizes file"),
    ],
)
def test_chromosome_lengths_that_are_none_are_told(tmp_path, content, says):
    (tmp_path / "x.sizes").write_bytes(content)
    with pytest.raises(GenomeError, match=re.escape(says)) as error:
        chromosome_sizes(tmp_path / "x.sizes")
    assert "x.sizes" in str(error.value)


@pytest.mark.parametrize("sizes", [{}, {"chr1": 0}, {"chr1": "long"}, {"chr1": 1.5}, {"chr1": None}, {"chr1": True}])
def test_a_mapping_that_has_no_lengths_is_told(sizes):
    with pytest.raises(GenomeError, match="genome"):
        chromosome_sizes(sizes)
