from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeError

HELD = ("C2", "H3K27ac")
SETTINGS = {"context_samples": 2_000, "context_members": 1, "context_nodes": 16, "context_units": 8, "epochs": 1}
STRIPPED = re.compile(r"base64,[^']*'")
SECTIONS = ["panel", "checks", "training", "scores", "loci", "embeddings", "model"]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, closed in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return xa.datasets.simulate(4, 3, {"chr1": 120_010, "chr2": 40_000})


@pytest.fixture(scope="module")
def fitted(truth) -> xr.Dataset:
    return truth.avocado.hold_out([HELD]).avocado.fit(config=SETTINGS, progress=False, device="cpu")


@pytest.fixture(scope="module")
def page(fitted, truth, tmp_path_factory) -> str:
    genes = pd.DataFrame({"chrom": ["chr1"], "start": [5_000], "end": [9_000], "strand": ["+"], "name": ["<GENE>"]})
    out = tmp_path_factory.mktemp("report") / "report.html"
    made = fitted.avocado.report(out, truth=truth, genes=genes, title="A <b>title</b>", device="cpu", progress=False)
    assert made == out and [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text()


def test_a_page_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert not parsed.all("script") and not parsed.all("link") and "http" not in STRIPPED.sub("", page)
    assert all(re.match("#", a["href"]) for a in parsed.all("a"))
    pictures = [img["src"] for img in parsed.all("img")]
    assert len(pictures) == 9, "panel, checks, training, scores, three loci, two embeddings"
    for source in pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert all(img["alt"] for img in parsed.all("img"))
    assert not plt.get_fignums(), "no figure is left open"


def test_a_page_has_all_sections_and_says_what_is_there(page):
    parsed = Page(page)
    assert [h["id"] for h in parsed.all("h2")] == SECTIONS
    assert "11 of 12 were run" in parsed.text and "A <b>title</b>" in parsed.text
    assert "The model did not see C2 H3K27ac." in parsed.text
    assert "Means over 1 tracks, in arcsinh space" in parsed.text and "Some of them were seen" not in parsed.text


def test_scores_are_those_of_evaluate(page, fitted, truth):
    table = fitted.avocado.impute(tracks=[HELD], device="cpu").avocado.evaluate(truth, measures=["mse"], progress=False)
    cells = re.findall(r"<tr><td>(imputed|average)</td><td class='n'>([\d.]+)</td>", page)
    assert {name: float(value) for name, value in cells} == pytest.approx(
        table.set_index("method").mse.to_dict(), abs=6e-4
    )


def test_a_bare_cube_says_what_it_lacks(truth, tmp_path):
    out = truth.avocado.report(tmp_path / "bare.html", regions="chr2:10kb-30kb", progress=False)
    parsed = Page(out.read_text())
    assert "No scores" in parsed.text and "This cube has no model." in parsed.text and "chr2:10kb-30kb" in parsed.text
    assert len(parsed.all("img")) == 3


def test_a_model_without_signal_has_a_page(tmp_path):
    few = (
        xa.datasets.simulate(3, 3, {"chr1": 20_000}).avocado.fit("small", epochs=1, progress=False).drop_vars("signal")
    )
    parsed = Page(few.avocado.report(tmp_path / "few.html", regions="chr1:1kb-9kb", progress=False).read_text())
    assert "This cube has no signal to check." in parsed.text and "Assays, likewise." in parsed.text


def test_scores_may_be_given(truth, tmp_path):
    table = pd.DataFrame(
        [("C1", "DNase", "mine", "signal", 0.5), ("C1", "DNase", "average", "signal", 0.25)],
        columns=["celltype", "assay", "method", "space", "mse"],
    )
    page = truth.avocado.report(tmp_path / "r.html", scores=table, regions=[], progress=False).read_text()
    assert "in signal space" in page and "<td>mine</td><td class='n'>0.500</td>" in page


def test_mistakes_are_told_before_anything_is_written(truth, tmp_path):
    with pytest.raises(GenomeError, match="chr9"):
        truth.avocado.report(tmp_path / "x.html", regions=["chr9:1-100"])
    with pytest.raises(CubeError, match="no cube"):
        xr.Dataset().avocado.report(tmp_path / "x.html")
    assert not list(Path(tmp_path).iterdir())
