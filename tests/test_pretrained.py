from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import xr_avocado as xa
from xr_avocado import pilot, pretrained
from xr_avocado.cube import CubeError
from xr_avocado.index import bins_of
from xr_avocado.io import download
from xr_avocado.io.download import DownloadError, Remote, fetch

PIECE = download.PIECE
N = 32 * PIECE + 12_345
HELD = N // 2 // PIECE * PIECE
"""Bytes of N that are kept of its first half."""


class Server(ThreadingHTTPServer):
    """Files over HTTP, with byte ranges; each request may first be spoilt."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.spoilt: list[Callable[[Handler, bytes], bool]] = []
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.split("?")[0]
        self.server.asked.append((name, self.headers.get("Range")))
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        if self.server.spoilt and self.server.spoilt.pop(0)(self, body):
            return
        first = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1]) if self.server.ranges else 0
        if first >= len(body) > 0:
            self.send_error(416)
            return
        self.start(body, first)
        self.wfile.write(body[first:])

    def start(self, body: bytes, first: int) -> None:
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def busy(handler: Handler, body: bytes) -> bool:
    handler.send_error(503)
    return True


def forbidden(handler: Handler, body: bytes) -> bool:
    handler.send_error(403)
    return True


def hang_up(handler: Handler, body: bytes) -> bool:
    handler.close_connection = True
    return True


def half(handler: Handler, body: bytes) -> bool:
    """Break off after half of what was asked for."""
    first = int(handler.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
    handler.start(body, first)
    handler.wfile.write(body[first : (first + len(body)) // 2])
    handler.close_connection = True
    return True


def wrong(handler: Handler, body: bytes) -> bool:
    handler.start(body, 0)
    handler.wfile.write(body[::-1])
    return True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.0)


@pytest.fixture
def body(server) -> bytes:
    server.files["/file"] = np.random.default_rng(0).bytes(N)
    return server.files["/file"]


@pytest.fixture
def remote(server, body) -> Remote:
    return Remote("file", f"{server.url}/file", f"md5:{hashlib.md5(body).hexdigest()}", len(body))


def kept(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


def test_a_file_is_fetched_once(server, remote, body, tmp_path):
    for _ in range(2):
        assert fetch(remote, tmp_path / "new", progress=False).read_bytes() == body
    assert server.asked == [("/file", None)]
    assert kept(tmp_path / "new") == {"file": N}


@pytest.mark.parametrize("fault", [busy, hang_up, half])
def test_a_fault_is_got_over_within_a_call(server, remote, body, tmp_path, fault):
    server.spoilt = [fault, fault, fault]
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body
    assert kept(tmp_path) == {"file": N}


def test_a_broken_connection_goes_on_where_it_stopped(server, remote, body, tmp_path):
    server.spoilt = [half, half]
    fetch(remote, tmp_path, progress=False)
    more = HELD + ((HELD + N) // 2 - HELD) // PIECE * PIECE
    assert [asked for _, asked in server.asked] == [None, f"bytes={HELD}-", f"bytes={more}-"]


def test_a_call_goes_on_where_an_earlier_one_failed(server, remote, body, tmp_path):
    server.spoilt = [half, *[busy] * (download.ATTEMPTS - 1)]
    with pytest.raises(
        DownloadError, match=f"after 5 attempts.*call again: the next call goes on after the {HELD:,} of {N:,} bytes"
    ):
        fetch(remote, tmp_path, progress=False)
    assert kept(tmp_path) == {".file.part": HELD}
    server.asked.clear()
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body
    assert server.asked == [("/file", f"bytes={HELD}-")]


def test_a_server_without_ranges_gives_the_whole_again(server, remote, body, tmp_path):
    server.ranges, server.spoilt = False, [half]
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body


def test_nothing_lies_under_the_name_of_a_file_that_failed(server, remote, tmp_path):
    server.spoilt = [busy] * 99
    with pytest.raises(DownloadError, match="nothing of it came. Or fetch it by other means and put it at .*file"):
        fetch(remote, tmp_path, progress=False)
    assert kept(tmp_path) == {}
    assert len(server.asked) == download.ATTEMPTS


@pytest.mark.parametrize("fault", [forbidden, None])
def test_an_answer_that_no_attempt_changes_ends_at_once(server, remote, tmp_path, fault):
    server.spoilt = [fault] if fault else []
    gone = remote if fault else Remote("gone", f"{server.url}/gone", "md5:0", 3)
    with pytest.raises(DownloadError, match="cannot be fetched: 40[34].*If it has moved, fetch it by other means"):
        fetch(gone, tmp_path, progress=False)
    assert len(server.asked) == 1
    assert kept(tmp_path) == {}


def test_other_bytes_than_the_checksum_s_are_thrown_away(server, remote, body, tmp_path):
    server.spoilt = [wrong]
    with pytest.raises(DownloadError, match="does not have the checksum md5:.*thrown away. Call again"):
        fetch(remote, tmp_path, progress=False)
    assert kept(tmp_path) == {}
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body


def test_a_part_of_another_file_is_thrown_away_and_the_whole_fetched(remote, body, tmp_path):
    (tmp_path / ".file.part").write_bytes(b"x" * 1000)
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body
    (tmp_path / "file").unlink()
    (tmp_path / ".file.part").write_bytes(b"x" * (N + 1))
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body


def test_a_file_without_a_known_size_goes_on_too(server, body, tmp_path):
    remote = Remote("file", f"{server.url}/file", hashlib.sha256(body).hexdigest())
    server.spoilt = [half]
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body
    (tmp_path / "file").rename(tmp_path / ".file.part")
    assert fetch(remote, tmp_path, progress=False).read_bytes() == body


def test_a_file_longer_than_it_should_be_is_not_read_to_its_end(server, remote, tmp_path):
    server.files["/file"] += b"more" * download.PIECE
    with pytest.raises(DownloadError, match="longer than the"):
        fetch(remote, tmp_path, progress=False)
    assert "file" not in kept(tmp_path)


def test_a_disk_without_room_is_told_before_anything_is_asked(server, tmp_path):
    with pytest.raises(DownloadError, match="needs 1,152,921,504,606,846,976 more bytes.*make room"):
        fetch(Remote("file", f"{server.url}/file", "md5:0", 1 << 60), tmp_path, progress=False)
    assert not server.asked


def test_a_folder_that_cannot_be_written_is_told(remote, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DownloadError, match="cannot be written.*cache="):
        fetch(remote, tmp_path / "taken", progress=False)


def test_the_bar_shows_what_came_and_silence_is_silent(server, remote, tmp_path, capfd):
    server.spoilt = [half]
    fetch(remote, tmp_path, progress=True)
    assert "2.11M/2.11M" in capfd.readouterr().err
    (tmp_path / "file").unlink()
    fetch(remote, tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_cache_is_where_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XR_AVOCADO_CACHE", str(tmp_path / "env"))
    assert download.cache_folder(None) == tmp_path / "env"
    assert download.cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("XR_AVOCADO_CACHE")
    assert "xr_avocado" in str(download.cache_folder(None))


# --- pretrained -----------------------------------------------------------------------------------------------------------

SIZES = {"chr1": 30_010, "chr2": 20_000}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A record's files: a small model, a pair of files a chromosome and one of the pilot regions."""
    folder = tmp_path_factory.mktemp("record")
    cube = xa.datasets.simulate(n_celltypes=3, n_assays=3, chromsizes=SIZES)
    fitted = cube.avocado.fit("small", epochs=1, progress=False)
    for chrom in SIZES:
        fitted.avocado.sel(chrom).avocado.to_keras(folder / f"avocado-{chrom}", progress=False)
    fitted.avocado.sel("chr2").avocado.to_keras(folder / "avocado-pilot", progress=False)
    return folder


@pytest.fixture
def zenodo(server, models, monkeypatch) -> Server:
    """A record of these files, as Zenodo lists it."""
    listed = []
    for path in sorted(models.iterdir()):
        server.files[f"/records/7/files/{path.name}"] = body = path.read_bytes()
        listed.append({"key": path.name, "size": len(body), "checksum": f"md5:{hashlib.md5(body).hexdigest()}"})
    server.files["/api/records/7"] = json.dumps({"id": 7, "files": listed}).encode()
    monkeypatch.setattr(pretrained, "ZENODO", server.url)
    monkeypatch.setattr(pretrained, "MODELS", {"small": pretrained.Published(7, "tiny")})
    monkeypatch.setattr("xr_avocado.weights.chromosome_sizes", lambda genome: {"tiny": SIZES}[genome])
    return server


def open_small(folder: Path, chrom="chr1", **options):
    return xa.datasets.pretrained("small", chrom=chrom, cache=folder, progress=False, **options)


def test_a_published_model_opens_as_a_fitted_cube(zenodo, models, tmp_path):
    cube = open_small(tmp_path)
    assert cube.attrs["genome"] == "tiny"
    assert int(cube.end[-1]) == SIZES["chr1"]
    own = xa.read_keras(models / "avocado-chr1").avocado.impute("C1", "H3K4me3").imputed
    np.testing.assert_array_equal(cube.avocado.impute("C1", "H3K4me3").imputed, own)
    assert not [name for name, _ in zenodo.asked if "chr2" in name]


def test_several_chromosomes_open_as_one_cube(zenodo, tmp_path):
    cube = open_small(tmp_path, ["chr1", "chr2"])
    assert bins_of(cube).chroms == ("chr1", "chr2")
    assert np.isfinite(cube.avocado.impute("C1", "H3K4me3").imputed.sel(celltype="C1", assay="H3K4me3").values).all()


def test_what_was_fetched_opens_without_a_network(zenodo, tmp_path):
    open_small(tmp_path)
    zenodo.asked.clear()
    zenodo.files.clear()
    assert open_small(tmp_path).sizes["position"] == 1201
    assert not zenodo.asked


def test_the_pilot_model_lies_on_rows_or_on_the_regions_given(zenodo, tmp_path):
    rows = open_small(tmp_path, "pilot")
    assert rows.chrom.values[0] == "pilot"
    there = open_small(tmp_path, "pilot", regions=[("chr1", 25, 10_025), ("chr2", 50, 10_050)])
    assert bins_of(there).segments.values.tolist() == [["chr1", 25, 10_025], ["chr2", 50, 10_050]]
    np.testing.assert_allclose(
        there.avocado.impute().imputed.values, rows.avocado.impute().imputed.values, rtol=0, atol=1e-5
    )


def test_a_listing_of_the_older_interface_is_read_too(zenodo, tmp_path):
    entries = json.loads(zenodo.files["/api/records/7"])["files"]
    older = [{"filename": e["key"], "filesize": e["size"], "checksum": e["checksum"][len("md5:") :]} for e in entries]
    zenodo.files["/api/records/7"] = json.dumps({"files": older}).encode()
    assert open_small(tmp_path).sizes["position"] == 1201


def test_a_record_that_is_busy_is_asked_again(zenodo, tmp_path):
    zenodo.spoilt = [busy, hang_up, half]
    assert open_small(tmp_path).sizes["position"] == 1201


def test_a_model_whose_second_file_failed_is_completed_by_the_next_call(zenodo, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PIECE", 1000)
    zenodo.spoilt = [lambda *_: False, lambda *_: False, half, *[busy] * 4]
    with pytest.raises(DownloadError, match=r"avocado-chr1\.h5.*call again: the next call goes on"):
        open_small(tmp_path)
    assert set(kept(tmp_path / "small")) == {"record-7.json", "avocado-chr1.json", ".avocado-chr1.h5.part"}
    zenodo.asked.clear()
    assert open_small(tmp_path).sizes["position"] == 1201
    assert len(zenodo.asked) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chrom": "chr9"}, r"has no avocado-chr9\.json; chrom= is one of chr1, chr2, pilot"),
        ({"chrom": "21"}, "'21' is not a chromosome as the published models name them"),
        ({"chrom": "../x"}, "is not a chromosome"),
        ({"chrom": []}, "got none"),
        ({"chrom": ["chr1", "pilot"]}, "or 'pilot' alone"),
        ({"chrom": "chr1", "regions": "chr1"}, "which regions= goes with"),
    ],
)
def test_a_chromosome_that_is_not_there_is_told(zenodo, tmp_path, options, said):
    with pytest.raises(CubeError, match=said):
        open_small(tmp_path, **options)


def test_an_unknown_model_names_the_known():
    with pytest.raises(
        CubeError, match="'avocado' is not a published model; there are 'roadmap-hg19', 'encode2018core-hg38'"
    ):
        xa.datasets.pretrained("avocado", chrom="chr1")


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"files": [{"key": "a"}]}'])
def test_a_listing_that_makes_no_sense_is_an_error_and_not_kept(zenodo, tmp_path, answer):
    zenodo.files["/api/records/7"] = answer
    with pytest.raises(DownloadError, match="cannot be understood.*read_keras"):
        open_small(tmp_path)
    assert kept(tmp_path) == {}


@pytest.mark.parametrize("answer", [b"<html>", b""])
def test_a_listing_that_is_no_json_is_an_error(zenodo, tmp_path, answer):
    zenodo.files["/api/records/7"] = answer
    with pytest.raises(DownloadError, match="cannot be read.*XR_AVOCADO_CACHE"):
        open_small(tmp_path)


def test_the_published_models_are_those_of_the_papers():
    assert pretrained.MODELS == {"roadmap-hg19": (4774412, "hg19"), "encode2018core-hg38": (4774521, "hg38")}


# --- roadmap_pilot --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tracks(server, monkeypatch) -> dict[tuple[str, str], np.ndarray]:
    """Tracks of the right length under the original names, few of them, with checksums of their own."""
    random = np.random.default_rng(0)
    found = {pair: random.random(1_126_469, dtype=np.float32) for pair in [("E003", "H3K4me1"), ("E065", "H3K9me3")]}
    sums = {}
    for (celltype, assay), track in found.items():
        file = io.BytesIO()
        np.savez_compressed(file, track)
        server.files[f"/{celltype}.{assay}.pilot.arcsinh.npz"] = file.getvalue()
        sums[celltype, assay] = hashlib.sha256(file.getvalue()).hexdigest()
    monkeypatch.setattr(pretrained, "ORIGINAL", server.url)
    monkeypatch.setattr(pretrained, "CHECKSUMS", sums)
    return found


def test_pilot_tracks_make_a_cube(server, tracks, tmp_path):
    cube = xa.datasets.roadmap_pilot(cache=tmp_path, progress=False)
    for (celltype, assay), track in tracks.items():
        np.testing.assert_array_equal(cube.signal.sel(celltype=celltype, assay=assay), track)
    assert cube.observed.values.tolist() == [[True, False], [False, True]]
    assert cube.attrs["transform"] == "arcsinh"
    assert cube.avocado.sel("chr22:31,803,925-31,803,950").sizes["position"] == 1
    xa.datasets.roadmap_pilot(cache=tmp_path, progress=False)
    assert len(server.asked) == 2


def test_a_pilot_track_that_was_changed_is_refused(server, tracks, tmp_path):
    server.files["/E003.H3K4me1.pilot.arcsinh.npz"] = server.files["/E065.H3K9me3.pilot.arcsinh.npz"]
    with pytest.raises(DownloadError, match="does not have the checksum"):
        xa.datasets.roadmap_pilot(cache=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": np.zeros(3)}, r"has the shape \(3,\), but the pilot regions have 1,126,469 bins"),
        ({"other": np.zeros(3)}, "holds no track"),
        ({"arr_0": np.array([{}], object)}, "holds no track"),
    ],
)
def test_a_pilot_file_that_holds_no_track_is_refused(server, tracks, tmp_path, monkeypatch, arrays, said):
    file = io.BytesIO()
    np.savez(file, **arrays)
    server.files["/E003.H3K4me1.pilot.arcsinh.npz"] = file.getvalue()
    monkeypatch.setattr(pretrained, "CHECKSUMS", {("E003", "H3K4me1"): hashlib.sha256(file.getvalue()).hexdigest()})
    with pytest.raises(CubeError, match=said):
        xa.datasets.roadmap_pilot(cache=tmp_path, progress=False)


def test_regions_and_checksums_are_those_of_the_original(shared):
    folder = shared / "data" / "roadmap_pilot"
    lines = [line.split() for line in (folder / "original_npz.sha256").read_text().splitlines()]
    assert {".".join(pair) + ".pilot.arcsinh.npz": h for pair, h in pilot.CHECKSUMS.items()} == {n: h for h, n in lines}
    bed = [line.split()[:3] for line in (folder / "pilot_regions.hg19.bed").read_text().splitlines()]
    assert [(c, str(a), str(b)) for c, a, b in pilot.REGIONS] == [tuple(row) for row in bed]


def test_the_regions_hold_as_many_bins_as_the_arrays():
    assert sum((end - start) // 25 for _, start, end in pilot.REGIONS) == 1_126_469
    assert len(pilot.CHECKSUMS) == 25
