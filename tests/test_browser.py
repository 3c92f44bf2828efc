"""The report in a real browser: light and dark, on a phone, by keyboard, without its script."""

import io

import numpy as np
import pyro
import pyro.distributions as dist
import pytest

from inference import HMC, arviz_bridge, fit
from inference.report import write_report
from tests import chromium

pytestmark = [
    pytest.mark.filterwarnings("ignore::inference.InferenceWarning"),
    pytest.mark.skipif(chromium.found() is None, reason="there is no Chromium here"),
]

SCALARS = 40

CONTRAST = """(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]);
  };
  const behind = one => {
    const layers = [];
    for (let e = one; e; e = e.parentElement)
      layers.push(numbers(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const texts = "h1, h2, h3, p, li, em, a, .badge, .figure, th, td, summary, dt, dd, label";
  return [...document.querySelectorAll(texts)]
    .filter(e => e.getClientRects().length && e.textContent.trim())
    .map(e => {
      const paper = behind(e), style = getComputedStyle(e);
      const ink = over([...numbers(style.color).slice(0, 3), Number(style.opacity)], paper);
      const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), e.tagName + ": " + e.textContent.trim().slice(0, 40)];
    })
    .filter(([ratio]) => ratio < 4.5);
})()"""


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a fit, with its model, and of many scalars, one of whose chains is elsewhere."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 60, SCALARS))
    draws[0, :, 7] += 3
    posterior = arviz_bridge.dataset({"a_rather_long_name": draws}, {}, ("chain", "draw"), {})
    engine = HMC(chains=2, warmup=20, draws=30, steps=3, tier="traced")
    fits = {
        "hmc": fit(normal_mean, {"y": rng.normal(size=6)}, engine),
        "many": arviz_bridge.build({"posterior": posterior}, {}),
    }
    return write_report(fits, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_page_is_whole_and_asks_for_nothing(browser, report, scheme, width):
    browser.open(report, width=width, scheme=scheme)
    assert browser.complaints() == []
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert asked == [report.resolve().as_uri()]
    assert browser.run("document.images.length") >= 30
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("document.querySelector('svg.graph').getBoundingClientRect().width") > 100
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')"
    wide += f" && e.getBoundingClientRect().right > {width}).length"
    assert (
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })") is None
    )
    assert browser.run(wide) == 0
    verdict = browser.run("document.querySelector('.verdict').getBoundingClientRect().bottom")
    assert 0 < verdict < 900


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(browser, report, scheme):
    browser.open(report, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run(CONTRAST) == []
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_take_the_colours_of_the_page(browser, report, scheme, tmp_path):
    image = pytest.importorskip("PIL.Image")
    browser.open(report, scheme=scheme)
    browser.run("document.images[0].scrollIntoView({block: 'center'})")
    box = browser.run("document.images[0].getBoundingClientRect().toJSON()")
    browser.screenshot(tmp_path / "window.png")
    window = image.open(io.BytesIO((tmp_path / "window.png").read_bytes())).convert("L")
    corners = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    pixels = np.asarray(window.crop(tuple(int(v) for v in corners)))
    paper, ink = np.median(pixels), (pixels.max() if scheme == "dark" else pixels.min())
    assert (paper < 60) == (scheme == "dark")
    assert abs(float(paper) - float(ink)) > 150


def test_keyboard_reaches_folds_search_and_tables(browser, report):
    browser.open(report)
    focused = "(e => e.tagName + '.' + e.className + '#' + (e.type || ''))(document.activeElement)"
    row = f"document.querySelectorAll('#parameters-1 tbody tr').length === {SCALARS}"
    assert browser.run(row)
    seen = []
    for _ in range(120):
        browser.press("Tab")
        seen.append(browser.run(focused))
        if seen[-1].startswith("SUMMARY") and "All" in browser.run(
            "document.activeElement.textContent"
        ):
            browser.press("Enter", "\r")
        if seen[-1].startswith("INPUT"):
            break
    assert seen[-1] == "INPUT.#search"
    assert any(one.startswith("DIV.scroll") for one in seen)
    assert any(one.startswith("A.") for one in seen)
    for letter in "[7]":
        browser.press(letter, letter)
    shown = "[...document.querySelectorAll('#parameters-1 tbody tr')]"
    shown += ".filter(r => r.getClientRects().length).map(r => r.cells[0].textContent)"
    assert browser.run(shown) == ["a_rather_long_name[7]"]
    assert browser.run("document.querySelector('.search output').textContent") == "1 of 40 rows"


def test_page_serves_without_its_script(browser, report):
    browser.open(report, scripts=False)
    document = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]

    def visible(selector):
        node = browser.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        try:
            return browser.call("DOM.getBoxModel", nodeId=node)["model"]["height"] > 0
        except RuntimeError:  # it has no box
            return False

    assert visible(".verdict")
    assert visible("ul.findings li.error")
    assert visible(".scroll table")
    assert not visible(".search")


def test_paper_gets_what_is_folded(browser, report):
    browser.open(report, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    height = "document.querySelector('details:not([open]) img').getBoundingClientRect().height"
    assert browser.run(height) > 50
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="")
    pdf = browser.call("Page.printToPDF")["data"]
    assert pdf.startswith("JVBERi")  # %PDF
