"""The reading site, as a browser shows it: .site/check.py builds it and runs this."""

import importlib
import os
import time
from pathlib import Path

import pooch
import pytest

BUILT = "LLM_COURSE_SITE" in os.environ
SITE = Path(os.environ.get("LLM_COURSE_SITE", "build/site"))
NAMES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if BUILT)
PAGES = [name for name in NAMES if not name.startswith("slides/")]
DECKS = [name for name in NAMES if name.startswith("slides/")]
IN_THE_DARK = ["ch01_intro/ch01_intro", "ch03_attention/ch03_attention"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="needs the built site: python .site/check.py"),
]
# axe-core looks for what people with a screen reader or a keyboard stumble over.
AXE = "https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz"
AXE_HASH = "sha256:e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
RUN_AXE = """
const done = arguments[arguments.length - 1];
const how = {resultTypes: ["violations"], preload: false, ...arguments[0]};
axe.run(document, how).then(found => done(found.violations.map(({id, help, nodes}) =>
  `${id}, ${nodes.length} times: ${help}; first ${nodes[0].html.slice(0, 200)}`)));
"""
# What fades in is measured when it is there.
STILL = """
const style = document.createElement("style");
style.textContent = "*, *::before, *::after { animation: none !important; }";
style.textContent += "* { transition: none !important; }";
document.head.append(style);
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
MEASURE = """
return [...document.querySelectorAll(".slides section")].map(slide => {
  const code = slide.querySelector(".source pre")?.textContent ?? "";
  const boxes = [slide, ...slide.querySelectorAll("pre")];
  const hidden = Math.max(...boxes.map(b => b.scrollWidth - b.clientWidth));
  const more = slide.querySelector(":scope > :not(h1, h2, h3, .head, aside)");
  const draws = /plt\\.show|# fmt/.test(code);
  return [slide.scrollHeight, hidden, code.trim().split("\\n").length, more && !draws];
});
"""
ENTER, RIGHT = "\ue007", "\ue014"  # as WebDriver has them


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    try:
        (file,) = pooch.retrieve(
            AXE,
            AXE_HASH,
            path=tmp_path_factory.mktemp("axe"),
            processor=pooch.Untar(members=["package/axe.min.js"]),
        )
    except OSError:
        pytest.skip("needs axe-core from npm")
    return Path(file).read_text(encoding="utf-8")


def resize(browser, width: int) -> None:
    """Make the window as wide, and as high as a laptop's."""
    sizes = {"width": width, "height": 800, "deviceScaleFactor": 1}
    sizes["mobile"] = width < 500
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)


@pytest.fixture
def show(chromium):
    """Return a function that opens a page in a window of some size and colours."""

    def open_page(page: str, width: int = 1280, scheme: str = "light"):
        resize(chromium, width)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.get(f"{SITE.resolve().as_uri()}/{page}")
        chromium.execute_script(STILL)
        return chromium

    yield open_page
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def until(condition, seconds: float = 20):
    """Wait until a condition holds; return what it returns."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


@pytest.mark.parametrize("page", PAGES or ["index.html"])
def test_a_page_is_quiet_and_can_be_read_by_all(show, axe, page):
    browser = show(page)
    assert browser.get_log("browser") == []
    loads = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert all(name.startswith("file:") for name in browser.execute_script(loads))
    browser.execute_script(OPEN_ALL)
    browser.execute_script(axe)
    browser.set_script_timeout(120)
    assert browser.execute_async_script(RUN_AXE, {}) == []


@pytest.mark.parametrize("page", ["index", "symbols", *IN_THE_DARK])
def test_a_dark_page_has_contrast(show, axe, page):
    browser = show(f"{page}.html", width=390, scheme="dark")
    browser.execute_script(OPEN_ALL)
    browser.execute_script(axe)
    contrast = {"runOnly": ["color-contrast", "scrollable-region-focusable"]}
    assert browser.execute_async_script(RUN_AXE, contrast) == []


@pytest.mark.parametrize("page", PAGES or ["index.html"])
def test_a_page_fits_its_window(show, page):
    browser = show(page)
    for width in 1280, 1100, 768, 390:
        resize(browser, width)
        wide = "return document.documentElement.scrollWidth"
        assert browser.execute_script(wide) <= width, width


def test_an_output_that_gives_a_prediction_away_is_folded(show):
    browser = show("ch01_intro/ch01_intro.html")
    folds = browser.find_elements("css selector", "details.below-input")
    assert len(folds) > 10
    inside = folds[0].find_element("css selector", ".cell_output")
    assert not inside.is_displayed()
    folds[0].find_element("tag name", "summary").send_keys(ENTER)
    until(lambda: inside.is_displayed() and inside.text)
    compare = browser.find_element("xpath", "//summary[text()='Compare']")
    compare.send_keys(ENTER)
    assert compare.find_element("xpath", "..").get_attribute("open")


def test_search_finds_rotary(show):
    browser = show("index.html")
    browser.find_element("name", "q").send_keys("rotary" + ENTER)
    results = until(
        lambda: browser.find_elements("css selector", "#search-results li a")
    )
    assert "Chapter 4, second part" in results[0].text
    results[0].click()
    assert "Rotary position embedding" in browser.find_element("tag name", "body").text
    assert browser.get_log("browser") == []


def test_an_explorer_answers_to_mouse_and_keyboard(show):
    from selenium.webdriver import ActionChains

    browser = show("ch03_attention/ch03_attention.html")
    box = browser.find_element("css selector", ".explorer[data-kind=attention]")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", box
    )
    told = box.find_element("class name", "told")
    words = box.find_elements("css selector", ".words .c")
    ActionChains(browser).move_to_element(words[5]).perform()
    until(lambda: told.text.startswith("it looks at clock"))
    words[5].send_keys(RIGHT)
    until(lambda: told.text.startswith("had looks at"))
    assert browser.get_log("browser") == []


def test_notebooks_lead_to_each_other(show):
    browser = show("ch01_intro/ch01_intro.html")
    link = browser.find_element("css selector", "article a[href*='ch02_text_data']")
    browser.execute_script("arguments[0].click()", link)
    until(lambda: browser.title.startswith("Chapter 2"))
    assert browser.current_url.endswith("ch02_text_data/ch02_text_data.html")


@pytest.mark.parametrize("deck", DECKS or ["slides/ch01_intro.html"])
def test_no_slide_is_higher_than_the_screen(show, deck):
    browser = show(deck)
    until(lambda: browser.execute_script("return document.body.dataset.ready"))
    browser.execute_script(OPEN_ALL)
    slides = browser.execute_script(MEASURE)
    assert len(slides) > 20
    for number, (height, hidden, lines, has_point) in enumerate(slides, 1):
        assert height <= 700 and hidden <= 0 and lines <= 15 and has_point, number
    assert browser.get_log("browser") == []


def test_a_slide_shows_what_a_cell_is_about(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / ".site")
    slides = importlib.import_module("slides")
    cell = "import torch\nx = f(2)\nassert x\nfor i in x:\n    plt.plot(i)\nplt.show()"
    assert slides.point(f"{cell}\nshow(x)  # fmt: skip") == "x = f(2)\nshow(x)"
    body = ['    """Say what', "    it does.", '    """', ""]
    body += ["    x = x + 1"] * 15 + ["    x = 2 * x  # new", "    return x"]
    longer = ["def f(", "    x: int,", ") -> int:", *body, "print(f(1))"]
    outlined = 'def f(x: int) -> int:\n    """Say what"""\n'
    outlined += "    …\n    x = 2 * x  # new\n    …\nprint(f(1))"
    assert slides.short("\n".join(longer)) == outlined


def test_a_deck_goes_on_and_folds_what_was_asked(show):
    browser = show("slides/ch03_attention.html")
    until(lambda: browser.execute_script("return document.body.dataset.ready"))
    body = browser.find_element("tag name", "body")
    body.send_keys(RIGHT)
    until(lambda: browser.current_url.endswith("#/1"))
    go = "Reveal.slide([...document.querySelectorAll('.slides > section')]"
    browser.execute_script(go + ".findIndex(s => s.className.includes('prediction')))")
    fold = browser.find_element("css selector", "section.present details")
    assert not fold.get_attribute("open")
    slides = browser.find_elements("css selector", ".slides > section")
    folds = [len(s.find_elements("css selector", "summary")) for s in slides]
    assert [n for n in folds if n > 1] == 5 * [4], "the quiz, a slide a question"


def test_formulas_are_typeset_without_a_script(show):
    browser = show("symbols.html")
    assert len(browser.find_elements("tag name", "math")) > 30
    assert "$" not in browser.find_element("tag name", "article").text
