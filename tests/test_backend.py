"""xr.open_dataset on a bigWig file."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import xarray as xr

from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import bins_of
from xr_avocado.io.backend import BigWigBackend
from xr_avocado.io.bigwig import BigWigError, read_bins, write_bins

SIZES = {"chr2": 10_013, "chr1": 5_000}


@pytest.fixture(scope="module")
def track(tmp_path_factory):
    path = tmp_path_factory.mktemp("tracks") / "x.bigWig"
    bins = GenomeBins.from_chromsizes(SIZES, 10)
    values = np.random.default_rng(0).random(len(bins))
    values[100:180] = np.nan
    write_bins(path, bins, values, SIZES, progress=False)
    return path


def test_whole_chromosomes_in_the_units_of_the_file(track):
    ds = xr.open_dataset(track, engine="bigwig")
    assert bins_of(ds) == GenomeBins.from_chromsizes(SIZES, 25)
    assert ds.attrs == {"chromsizes": SIZES, "uncovered": "zero", "transform": "none", "binsize": 25}
    assert ds.signal.dtype == np.float32
    np.testing.assert_array_equal(ds.signal, read_bins(track, bins_of(ds)).astype(np.float32))
    np.testing.assert_array_equal(ds.signal.sel(chrom="chr1"), ds.signal[-200:])


def test_the_suffix_is_enough(track, tmp_path):
    assert xr.open_dataset(track).signal.size == 601
    backend = BigWigBackend()
    assert [backend.guess_can_open(name) for name in ("a.bw", "a.BW", "a.bigwig", "a.zarr", "a.bb")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not backend.guess_can_open(None)


def test_its_arguments(track):
    ds = xr.open_dataset(
        track, engine="bigwig", binsize=50, uncovered="ignore", regions=["chr1:1,000-1,990", "chr2:990-1,900"]
    )
    expected = GenomeBins([("chr1", 1000, 2000), ("chr2", 950, 1900)], 50)
    assert bins_of(ds) == expected
    np.testing.assert_array_equal(ds.signal, read_bins(track, expected, uncovered="ignore").astype(np.float32))
    assert np.isnan(ds.signal).any()
    assert "signal" not in xr.open_dataset(track, engine="bigwig", drop_variables="signal")


@pytest.mark.parametrize(
    "key",
    [
        slice(10, 20),
        slice(None, None, 7),
        slice(500, 3, -11),
        5,
        -1,
        [3, 3, 600, 0],
        np.arange(601) % 5 == 2,
        slice(9, 9),
    ],
)
def test_any_index_reads_what_it_says(track, key):
    ds = xr.open_dataset(track, engine="bigwig")
    whole = ds.signal.load().copy()
    lazy = xr.open_dataset(track, engine="bigwig").signal
    np.testing.assert_array_equal(lazy[key], whole[key])


def test_only_what_is_asked_for_is_read(track, monkeypatch):
    asked = []

    def spy(path, bins, **how):
        asked.append(len(bins))
        return read_bins(path, bins, **how)

    monkeypatch.setattr("xr_avocado.io.backend.read_bins", spy)
    ds = xr.open_dataset(track, engine="bigwig")
    assert asked == []
    ds.signal[:40].load()
    ds.sel(chrom="chr1", start=slice(100, 200)).signal.load()
    assert asked == [40, 4]


# xarray's advice for formats with chunks of their own; a bigWig can be cut anywhere.
@pytest.mark.filterwarnings("ignore:The specified chunks separate")
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_reads_it_from_threads_and_processes(track, scheduler):
    ds = xr.open_dataset(track, engine="bigwig", chunks={"position": 97})
    expected = read_bins(track, bins_of(ds)).astype(np.float32)
    np.testing.assert_array_equal(ds.signal.compute(scheduler=scheduler, num_workers=2), expected)


def test_chunks_of_their_own(track):
    assert xr.open_dataset(track, engine="bigwig", chunks={}).signal.chunks == ((601,),)


def test_it_pickles_unread(track):
    ds = pickle.loads(pickle.dumps(xr.open_dataset(track, engine="bigwig")))
    np.testing.assert_array_equal(ds.signal, xr.open_dataset(track, engine="bigwig").signal)


def test_a_path_is_kept_when_the_folder_changes(track, monkeypatch, tmp_path):
    monkeypatch.chdir(track.parent)
    ds = xr.open_dataset(track.name, engine="bigwig")
    monkeypatch.chdir(tmp_path)
    assert ds.signal.sum() > 0


def test_errors_come_on_opening(track, tmp_path):
    with pytest.raises(BigWigError, match="is not there"):
        xr.open_dataset(tmp_path / "absent.bw", engine="bigwig")
    with pytest.raises(ValueError, match="uncovered must be one of"):
        xr.open_dataset(track, engine="bigwig", uncovered="nan")
    with pytest.raises(GenomeError, match="did you mean 'chr1'"):
        xr.open_dataset(track, engine="bigwig", regions="1:10-20")
    with pytest.raises(GenomeError, match="bin size"):
        xr.open_dataset(track, engine="bigwig", binsize=0)
    with pytest.raises(BigWigError, match="by its path; got BytesIO"):
        BigWigBackend().open_dataset(io.BytesIO())


def test_every_file_that_breaks_careless_readers_opens_or_tells(shared):
    for path in sorted((shared / "data" / "bigwig_edge").iterdir()):
        if path.name in ("bigBed_renamed.bw", "truncated_half.bw"):
            with pytest.raises(BigWigError, match=path.name):
                xr.open_dataset(path, engine="bigwig")
        else:
            assert xr.open_dataset(path, engine="bigwig").signal[:4].load().notnull().all()
