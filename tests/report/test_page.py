"""The report's page in a real Chromium, used as by a reader."""

import json

import pytest

from tests.browser import browser

CHART = "document.querySelector('[data-chart=val_cross_entropy]')"
PLACE = f"{CHART}.querySelector('[role=img]')"
CELLS = "[...document.querySelectorAll('table')].find((table) => table.textContent.includes('folder'))"


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def page(chromium, tricks):
    """The page after opening, with one figure drawn. Asserts that a test causes no errors in the console."""
    chromium.show("about:blank")
    chromium.show((tricks / "report" / "index.html").as_uri())
    see(chromium, CHART)
    yield chromium
    assert chromium.errors == []


def see(page, figure):
    page.run(f"{figure}.scrollIntoView()")
    page.until(f"{figure}.dataset.drawn")


def lines(page):
    """The cells whose lines are shown in the figure."""
    return page.run(f"{PLACE}.data.filter((trace) => trace.cell).map((trace) => trace.name)")


def test_a_mode_a_seed_and_the_settings_are_chosen_for_all_figures(page):
    assert len(lines(page)) == 16
    page.run("document.querySelector('input[value=unrolled]').click()")
    page.until(f"{PLACE}.data.filter((trace) => trace.cell).length === 8")
    assert all(name.startswith("implicit") for name in lines(page))
    page.run("document.querySelector('input[name=Seed][value=\"1\"]').click()")
    page.until(f"{PLACE}.data.filter((trace) => trace.cell).length === 4")
    page.run("const s = document.getElementById('setting'); s.value = 'no decay'; s.onchange()")
    page.until(f"{PLACE}.data.filter((trace) => trace.cell).length === 1")
    assert lines(page) == ["implicit, no decay, seed 0"]


def test_the_arrow_keys_point_at_a_value_and_name_its_cell(page):
    page.run(f"{PLACE}.focus()")
    page.press("ArrowRight")
    shown = page.until(f"{CHART}.querySelector('.hoverlayer').textContent")
    assert "implicit, all tricks, seed 0" in shown and "step 10" in shown and "Validation cross-entropy 110" in shown


def test_a_sweep_of_single_seeds_has_its_line_and_a_cross_where_a_cell_diverged(chromium, grid):
    for n in (1, 7, 11):
        grid.cell(iterations=n, loss=80.0 + n, status="diverged" if n == 11 else "complete")
    grid.report()
    figure = "document.querySelector('[data-chart=over_iterations]')"
    chromium.show("about:blank")
    chromium.show((grid.path / "report" / "index.html").as_uri())
    see(chromium, figure)
    shown = f"{figure}.querySelector('[role=img]')"
    traces = chromium.run(f"{shown}.data.filter((trace) => trace.mode === 'lines').map((trace) => [...trace.x])")
    assert traces == [[1, 7]] * 3
    crosses = chromium.run(f"{shown}.layout.annotations.filter((note) => note.text === '✖').map((note) => note.x)")
    assert crosses == [11] * 3 and chromium.errors == []


def test_the_scale_changes_and_a_figure_is_saved_as_it_is_shown(page):
    assert page.run(f"{PLACE}.layout.yaxis.type") == "linear"
    page.run(f"{CHART}.querySelector('.bar button').click()")
    page.until(f"{PLACE}.layout.yaxis.type === 'log'")
    page.run("saved = {}; HTMLAnchorElement.prototype.click = function () { saved[this.download] = this.href }")
    for kind in ("png", "svg", "csv"):
        page.run(f"{CHART}.querySelector('[data-format={kind}]').click()")
        page.until(f"saved['val_cross_entropy.{kind}']")
    saved = page.run("saved")
    assert saved["val_cross_entropy.png"].startswith("data:image/png") and "svg" in saved["val_cross_entropy.svg"]
    rows = page.run("fetch(saved['val_cross_entropy.csv']).then((answer) => answer.text())").splitlines()
    assert rows[0] == "method,setting,seed,status,measure,step,value" and len(rows) == 1 + 15 * 5 + 3
    assert '"unrolled","no clipping","1","diverged","val/cross_entropy","20","121"' in rows


def test_the_table_of_cells_sorts_and_filters(page):
    column = f"[...{CELLS}.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith('validation cross'))"
    values = f"[...{CELLS}.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[{column}].textContent)"
    before = page.run(values)
    for order, reverse in (("ascending", False), ("descending", True)):
        page.run(f"{CELLS}.tHead.rows[0].cells[{column}].querySelector('button').click()")
        assert page.run(f"{CELLS}.tHead.rows[0].cells[{column}].ariaSort") == order
        assert page.run(values) == sorted(before, key=float, reverse=reverse) != before
    page.run(f"const f = {CELLS}.previousElementSibling.querySelector('input'); f.value = 'implicit off'; f.oninput()")
    assert len(page.run(values)) == 6 and "6 of 16 rows" in page.run(f"{CELLS}.previousElementSibling.textContent")


def test_a_slider_shows_the_masks_at_each_step(page):
    pictures = "[...document.querySelectorAll('#forming img')].map((image) => [image.src.length, image.alt])"
    last = page.run(pictures)
    assert len(last) == 2 and all("step 40" in alt for _, alt in last) and "unrolled, all tricks" in last[0][1]
    page.run("document.getElementById('step').focus()")
    page.press("ArrowLeft")
    page.until("document.querySelector('#forming output').textContent === 'step 0'")
    first = page.run(pictures)
    assert all("step 0" in alt for _, alt in first) and first[0][0] != last[0][0]
    page.until("[...document.querySelectorAll('#forming img')].every((image) => image.complete && image.naturalWidth)")


def test_light_and_dark(page, tricks):
    address = (tricks / "report" / "index.html").as_uri()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.show("about:blank")
    page.show(address, dark=True)
    see(page, CHART)
    dark = page.run(paper)
    ink = page.run(f"{PLACE}.layout.font.color")
    assert sum(json.loads(f"[{light[4:-1]}]")) > 600 and sum(json.loads(f"[{dark[4:-1]}]")) < 200
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == light
    page.until(f"{PLACE}.layout.font.color !== {json.dumps(ink)}")
    page.run("localStorage.clear()")


def test_a_phone_shows_all_without_scrolling_sideways(page, tricks):
    page.show("about:blank")
    page.show((tricks / "report" / "index.html").as_uri(), width=390, height=844)
    see(page, CHART)
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.run(f"{PLACE}.layout.annotations.length") == 1, "all settings in one panel"
    see(page, "document.querySelector('[data-chart=overview]')")
    assert page.run("document.querySelector('[data-chart=overview] [role=img]').layout.grid.columns") == 1


def test_every_picture_has_words_and_every_control_a_name(page):
    assert page.run(
        "[...document.images, ...document.querySelectorAll('[role=img]')].every((e) => e.alt || e.ariaLabel)"
    )
    nameless = "(e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)"
    assert page.run(f"[...document.querySelectorAll('button, select, input')].filter({nameless}).length") == 0
    assert "unrolled" in page.run(f"{PLACE}.ariaLabel") and "100 to 121" in page.run(f"{PLACE}.ariaLabel")
