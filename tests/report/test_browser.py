"""The page in a browser: nothing on its console, figures there, tables sort, it prints."""

import pytest

from numbadsd.report import build_page, write_page
from tests.report.browser import NAMES, Browser, find_browser
from tests.report.results import write_record, write_results

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason=f"none of {', '.join(NAMES)} is installed"
)

# Clicks on a header of the points of 01 again and again; the rows as they then stand.
SORTING = """
const table = document.querySelector("#experiment-01_decode_context_length_sweep table");
const names = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent);
const heads = Array.from(table.tHead.rows[0].cells);
const states = () => heads.map((head) => head.getAttribute("aria-sort"));
const found = { before: names(), after: [], states: [] };
function click(title) {
  const head = heads.find((head) => head.textContent.startsWith(title));
  const button = head.querySelector("button");
  button.focus();
  found.focused = document.activeElement === button;
  button.click();
  found.after.push(names());
  found.states.push(states().filter((state) => state !== "none"));
}
["sparse", "sparse", "sparse", "point", "point", "dense"].forEach(click);
return found;
"""

LOOKS = """
const boxes = Array.from(document.images, function (image) {
  const box = image.getBoundingClientRect();
  return [image.complete, image.naturalWidth, box.width, box.height, image.alt.length];
});
const plate = getComputedStyle(document.querySelector(".plate")).backgroundColor;
const page = document.documentElement;
return {
  boxes, plate, ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
  scrolls: page.scrollWidth - page.clientWidth,
  wide: Array.from(document.querySelectorAll(".scroll"), (b) => b.scrollWidth > b.clientWidth),
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a browser; at the end its console must be empty."""
    started = Browser(find_browser(), tmp_path_factory.mktemp("profile"))
    yield started
    assert started.messages == []


@pytest.fixture
def page(tmp_path):
    """Return the page of a sweep and a single run."""
    folder = write_results(tmp_path / "bench_results")
    write_record(folder, "decode", {"command": "dsd_bench " + "--an-option value " * 20})
    path = tmp_path / "page.html"
    write_page(build_page(folder), path)
    return path


def test_a_table_sorts_up_and_down_and_back(browser, page):
    found = browser.probe(page, SORTING)
    before = found["before"]
    up, down, restored, by_name, by_name_down, dense = found["after"]
    # sparse takes 0.3 ms at batch 1, 1.2 ms at batch 4; equals keep their order, the lost is last
    assert up == before and before[-1] == "batch 4, context_tokens 8192"
    assert down == [*before[3:6], *before[:3], before[-1]]
    assert restored == before
    assert by_name == before and by_name_down == before[::-1]  # numbers in names count as such
    assert dense == [before[i] for i in (0, 1, 3, 2, 4, 5, 6)]  # 0.128 0.512 0.512 2.048 2.048 8.2
    assert found["states"] == [
        ["ascending"], ["descending"], [], ["ascending"], ["descending"], ["ascending"],
    ]  # fmt: skip
    assert found["focused"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_visible_on_white_in_light_and_dark(browser, page, scheme):
    option = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    found = browser.probe(page, LOOKS, option)
    assert len(found["boxes"]) == 4
    for complete, natural_width, width, height, alt_length in found["boxes"]:
        assert complete and natural_width == 640 and width > 500 and height > 250 and alt_length
    assert found["plate"] == "rgb(255, 255, 255)"
    lightness = {name: int(found[name].split("(")[1].split(",")[0]) for name in ("ink", "paper")}
    assert (lightness["ink"] > lightness["paper"]) == (scheme == "dark")


def test_a_phone_scrolls_tables_and_never_the_page(browser, page):
    found = browser.probe(page, LOOKS, size=(420, 800))
    assert found["scrolls"] <= 0 and any(found["wide"])


def test_it_prints_and_shows(browser, page, tmp_path):
    pdf, png = tmp_path / "page.pdf", tmp_path / "page.png"
    browser.run(page, f"--print-to-pdf={pdf}")
    browser.run(page, f"--screenshot={png}")
    assert pdf.read_bytes().startswith(b"%PDF-") and pdf.stat().st_size > 20_000
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
