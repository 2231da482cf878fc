from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyranges
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHROMS

from xr_avocado.genome import GenomeError
from xr_avocado.intervals import as_frame, parse_region, to_pyranges

FRAME = pd.DataFrame(
    {
        "chrom": ["chr2", "chr1", "chr2"],
        "start": [10, 5, 0],
        "end": [20, 6, 4],
        "name": ["a", "NA", 'c "x" d'],
        "strand": list("+-+"),
    }
)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(CHROMS), st.integers(0, 10**9), st.integers(1, 10**6)), min_size=1, max_size=6
        )
    )
    return pd.DataFrame([(c, s, s + n) for c, s, n in rows], columns=["chrom", "start", "end"])


class TestParseRegion:
    @pytest.mark.parametrize(
        ("text", "region"),
        [
            ("chr1:1,000-2,000", ("chr1", 1_000, 2_000)),
            ("chr1:1kb-2.5Mb", ("chr1", 1_000, 2_500_000)),
            ("chr1:5Mb-", ("chr1", 5_000_000, None)),
            (" chr2 ", ("chr2", None, None)),
            ("7:0-1", ("7", 0, 1)),
        ],
    )
    def test_regions(self, text, region):
        assert parse_region(text) == region

    @pytest.mark.parametrize("text", ["chr1:10-10", "chr1:20-10", "chr1:a-b", "", "chr1:"])
    def test_what_is_none_says_what_to_write(self, text):
        with pytest.raises(GenomeError, match="is empty|is not a region: write"):
            parse_region(text)

    @given(st.sampled_from(CHROMS), st.integers(0, 10**9), st.integers(1, 10**9))
    def test_written_and_read(self, chrom, start, length):
        assert parse_region(f"{chrom}:{start:,}-{start + length}") == (chrom, start, start + length)


class TestAsFrame:
    @given(tables())
    def test_every_kind_of_table_reads_alike(self, table):
        upper = table.set_axis(["Chromosome", "Start", "End"], axis=1)
        kinds = [
            table,
            table.astype({"chrom": "category", "start": np.int32, "end": np.float64}),
            table.astype("string"),
            upper,
            list(table.itertuples(index=False, name=None)),
            [f"{row.chrom}:{row.start}-{row.end}" for row in table.itertuples()],
        ]
        for kind in kinds:
            frame = as_frame(kind)
            assert list(frame.columns) == ["chrom", "start", "end"] and frame.start.dtype == frame.end.dtype == np.int64
            assert frame.to_numpy().tolist() == table.to_numpy().tolist()

    @given(tables())
    def test_pyranges_there_and_back(self, table):
        table["name"] = [f"row {i}" for i in range(len(table))]
        back = as_frame(to_pyranges(table))
        assert sorted(back.to_numpy().tolist()) == sorted(table.to_numpy().tolist())
        assert back.start.dtype == np.int64

    def test_other_columns_and_the_order_of_rows_stay(self):
        shuffled = FRAME[["name", "end", "strand", "start", "chrom"]].set_axis([7, 3, 3])
        pd.testing.assert_frame_equal(as_frame(shuffled), FRAME[["chrom", "start", "end", "name", "strand"]])
        assert list(shuffled.columns) == ["name", "end", "strand", "start", "chrom"]

    def test_pyranges_strand_and_columns(self):
        ranges = to_pyranges(FRAME)
        assert isinstance(ranges, pyranges.PyRanges) and ranges.stranded
        assert sorted(ranges.df.columns) == ["Chromosome", "End", "Start", "Strand", "name"]
        assert set(as_frame(ranges).columns) == set(FRAME.columns)

    def test_regions_without_an_end(self):
        assert as_frame(["chr1:5kb-", "chr2"], sizes={"chr1": 6_000, "chr2": 7}).to_numpy().tolist() == [
            ["chr1", 5_000, 6_000],
            ["chr2", 0, 7],
        ]
        assert as_frame("chr2").end[0] > 10**10
        with pytest.raises(GenomeError, match="did you mean 'chr2'"):
            as_frame("2", sizes={"chr2": 7})

    def test_one_interval_as_a_tuple(self):
        assert as_frame(("chr1", 5, 10)).to_numpy().tolist() == [["chr1", 5, 10]]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"start": [10, -5, 0]}, "interval 2 of the table, chr1:-5-6, starts below 0"),
            ({"start": [10, 6, 0]}, "interval 2 of the table, chr1:6-6, does not start below its end"),
            ({"end": [20, 6, 0]}, "interval 3 of the table, chr2:0-0, does not start below its end"),
            ({"start": [10, 5.5, 0]}, "interval 2 of the table, chr1:5.5-6, has no whole number as its start"),
            ({"end": [20, None, 4]}, "has no whole number as its end"),
            ({"end": ["20", "x", "4"]}, "interval 2 of the table, chr1:5-x, has no whole number as its end"),
            ({"chrom": ["chr2", None, "chr2"]}, ":5-6, has no chromosome"),
        ],
    )
    def test_a_bad_row_is_named(self, change, says):
        with pytest.raises(GenomeError, match=re.escape(says)):
            as_frame(FRAME.assign(**change))

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (FRAME.rename(columns={"start": "begin"}), "has no column start; it has chrom, begin, end"),
            (FRAME[:0], "holds no intervals"),
            ([], "holds no intervals"),
            (pyranges.PyRanges(), "holds no intervals"),
            (7, "got int"),
            ([("chr1", 5)], "rows of intervals are (chrom, start, end)"),
            (["chr1", ("chr1", 5, 6)], "rows of intervals are (chrom, start, end)"),
            ("missing.bed", "there is no file 'missing.bed'"),
            (Path("chr1"), "there is no file 'chr1'"),
        ],
    )
    def test_what_holds_no_intervals_says_so(self, given, says):
        with pytest.raises(GenomeError, match=re.escape(says)):
            as_frame(given)


class TestBed:
    def write(self, path: Path, text: str) -> Path:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as file:
            file.write(text)
        return path

    @pytest.mark.parametrize("name", ["a.bed", "a.bed.gz", "peaks"])
    def test_bed_files(self, tmp_path, name):
        text = (
            'track name="x"\n#chrom start\nbrowser position chr1\nchr2\t10\t20\ta b\t0\t+\n\nchr1\t5\t6\tNA\t.\t-\r\n'
        )
        for path in (self.write(tmp_path / name, text), str(tmp_path / name)):
            frame = as_frame(path)
            assert list(frame.columns) == ["chrom", "start", "end", "name", "score", "strand"]
            assert frame[["chrom", "start", "end", "name", "strand"]].to_numpy().tolist() == [
                ["chr2", 10, 20, "a b", "+"],
                ["chr1", 5, 6, "NA", "-"],
            ]

    def test_three_columns_by_spaces_and_chromosomes_that_are_numbers(self, tmp_path):
        frame = as_frame(self.write(tmp_path / "a.bed", "1 0 100\n2   7 9\n"))
        assert frame.to_numpy().tolist() == [["1", 0, 100], ["2", 7, 9]]

    def test_more_columns_are_kept(self, tmp_path):
        frame = as_frame(self.write(tmp_path / "a.narrowPeak", "chr1\t0\t100\tp\t5\t.\t1.5\t2\t3\t50\n"))
        assert list(frame.columns[6:]) == ["column7", "column8", "column9", "column10"] and frame.column10[0] == 50

    def test_a_table_with_a_header_is_read_by_it(self, tmp_path):
        frame = as_frame(self.write(tmp_path / "genes.tsv", "gene\tchrom\tstart\tend\nA\t1\t5\t10\n"))
        assert list(frame.columns) == ["chrom", "start", "end", "gene"] and frame.to_numpy().tolist() == [
            ["1", 5, 10, "A"]
        ]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "holds no intervals"),
            ("# nothing\n", "holds no intervals"),
            ("chr1\t5\n", "has 2 columns"),
            ("chr1\t0\t5\nchr1\t9\t5\n", "interval 2 of"),
            ("chr1\t0\t5\nchr1\tx\t5\n", "has no whole number as its start"),
            ("chr1\t0\t5\nchr1\t0\t5\tname\n", "is not a BED file"),
        ],
    )
    def test_a_bad_file_says_why(self, tmp_path, text, says):
        with pytest.raises(GenomeError, match=re.escape(says)):
            as_frame(self.write(tmp_path / "a.bed", text))

    def test_the_genes_of_the_pilot_regions(self, shared):
        genes = as_frame(shared / "data" / "roadmap_pilot" / "genes.hg19.pilot.tsv")
        assert len(genes) == 935 and {"gene_name", "strand"} <= set(genes.columns)
        assert len(as_frame(shared / "data" / "roadmap_pilot" / "pilot_regions.hg19.bed")) == 42
