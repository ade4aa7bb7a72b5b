"""tutorials/explorer.html in a real browser: its matrices and its cache against the package."""

import itertools
import os

import pytest
import torch
from browser import BrowserError, Page, find
from conftest import ROOT, tiny_llama

from minilm_inf.config import LMInfinite
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.fast.cache import Cache
from minilm_inf.lambda_mask import lambda_mask
from minilm_inf.top_k import largest, middle_mask

pytestmark = pytest.mark.slow  # a browser's start
FILE = ROOT / "tutorials" / "explorer.html"
REQUIRED = "EXPLORER_NEEDS_CHROMIUM"  # set by .ci/run, where a skip would hide a failure
NAMES = ("n_local", "n_global", "distance_ceiling")
GRID = [
    dict(zip(NAMES, values))
    for values in itertools.product([None, 1, 2, 5, 8, 24], [0, 1, 3, 7], [None, 0, 3, 8, 30])
]
LENGTHS = [1, 8, 9, 23]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    required, program = os.environ.get(REQUIRED), find()
    if program is None:
        assert not required, "chromium must be there, and is not"
        pytest.skip("no chromium here; Debian's can be had with: apt-get install chromium")
    try:
        page = Page(program, FILE.as_uri(), tmp_path_factory.mktemp("browser"))
    except BrowserError as error:
        assert not required, error
        pytest.skip(f"{program} cannot be driven here: {error}")
    yield page
    page.close()


@pytest.fixture
def page(browser):
    """The page as it opens, on a screen of 1280 x 900."""
    browser.screen(1280, 900)
    browser.go(FILE.as_uri())
    browser.errors.clear()
    return browser


class Ruler:
    """A scheme whose logits are the distances themselves; see capped_logits."""

    def place(self, x, positions):
        return x

    def at(self, positions, dtype, device):
        return lambda x: x

    def bias(self, distance):
        return distance[None]


def felt_distances(length: int, lm: LMInfinite) -> torch.Tensor:
    """The distance that the package computes each logit with, (T, T)."""
    nothing, p = torch.zeros(1, 1, length, 2, dtype=torch.float64), torch.arange(length)
    return capped_logits(nothing, nothing, p, p, Ruler(), lm.distance_ceiling, 1.0)[0, 0]


def mask_of(length: int, lm: LMInfinite) -> torch.Tensor:
    positions = torch.arange(length)
    return lambda_mask(positions, positions, lm)


def slots_of(length: int, lm: LMInfinite) -> tuple[list, list]:
    """What a real Cache holds in each slot of its ring and of its starting keys: positions,
    which are fed to it as values, three at a time."""
    config = tiny_llama().config
    cache = Cache(config, 1, lm, torch.float64, "cpu")
    shape = (1, config.n_kv_head, -1, config.head_dim)
    for start in range(0, length, 3):
        read = torch.arange(start, min(start + 3, length), dtype=torch.float64)
        values = read[:, None].expand(1, config.n_kv_head, -1, config.head_dim).reshape(shape)
        for layer in cache.layers:
            layer.extend(values, values, values, start, [0], 0)
        cache.length += len(read)
    layer = cache.layers[-1]
    in_ring = length if lm.n_local is None else min(length, lm.n_local)
    window, starting = layer.ring[1][:, :, :in_ring], layer.starting[1]
    return window[0, 0, :, 0].tolist(), starting[0, 0, :, 0].tolist()


def test_every_mask_distance_and_slot_is_the_packages(page):
    """Catches a window, a ceiling or a count of starting tokens one off, a starting token seen
    from the future, and a ring that is filled or turns elsewhere than a real cache's."""
    program = """(grid) => grid.map(([n, s]) => ({
      mask: explorer.mask(n, s), ...explorer.cacheSlots(n, s), kept: explorer.keptKeys(n, s),
      felt: Array.from({length: n}, (_, i) =>
        Array.from({length: n}, (_, j) => j > i ? null : explorer.feltDistance(i, j, s))),
    }))"""
    cases = [[length, setting] for setting in GRID for length in LENGTHS]
    for (length, setting), found in zip(cases, page.call(program, cases)):
        lm, here = LMInfinite(**setting), (length, setting)
        felt = felt_distances(length, lm).tolist()
        ring, starting = slots_of(length, lm)
        empty = 0 if lm.n_local is None else max(0, lm.n_local - length)
        assert found["mask"] == mask_of(length, lm).tolist(), here
        for i, row in enumerate(found["felt"]):
            assert row[: i + 1] == felt[i][: i + 1], here
        assert found["kept"] == len(ring) + len(starting), here
        assert found["ring"] == ring + [None] * empty and found["starting"] == starting, here


def test_the_middle_that_comes_back_is_chosen_as_the_package_would(page):
    """Catches candidates that are not middle keys, and the older one of equals."""
    length, positions = 40, torch.arange(40)
    scores = page.call("(n) => Array.from({length: n}, (_, j) => madeUpScore(j))", length)
    assert len(set(scores)) < length  # so that there are equals to be told apart
    for n_local, n_global, top_k in itertools.product([1, 4, 9], [0, 3], [0, 1, 5]):
        lm = LMInfinite(n_local, n_global, n_local, top_k=top_k)
        setting = {name: getattr(lm, name) for name in (*NAMES, "top_k")}
        seen = page.call("(n, s) => explorer.mask(n, s)", length, setting)
        expected = lambda_mask(positions, positions, lm)
        if top_k:
            past = positions[:, None] >= positions
            candidates = middle_mask(positions, positions, lm) & past
            logits = torch.tensor(scores, dtype=torch.float64).expand(length, length)
            expected |= largest(logits, candidates, top_k)
            assert page.call("(s) => explorer.middleDistance(s)", setting) == lm.middle_distance
        assert seen == expected.tolist(), setting


DRAWN = """() => {
  const cells = (id, of) => Array.from(
    document.querySelectorAll(`#${id} rect:is([class^=c-], [data-felt])`),
    (r) => [...["y", "x"].map((name) => Math.floor(+r.getAttribute(name) / 10)), of(r)]);
  const paths = Array.from(document.querySelectorAll("#ring path[data-slot]"));
  return {
    mask: cells("mask", (r) => r.className.baseVal.slice(2)),
    far: cells("far", (r) => r.dataset.felt === undefined ? null : +r.dataset.felt),
    bars: Array.from(document.querySelectorAll("#query-figure [data-key]"),
      (r) => [+r.dataset.key, +r.dataset.felt]),
    ring: paths.map((p) => p.dataset.position === "none" ? null : +p.dataset.position),
    says: document.getElementById("query-says").textContent,
  };
}"""


@pytest.mark.parametrize("length", [1, 12, 30])
def test_what_is_drawn_is_what_the_rules_say(page, length):
    """Catches a drawing that is late, or shows another row, column or slot."""
    for setting in GRID[::7]:
        lm, query = LMInfinite(**setting), length * 2 // 3
        new = setting | {"length": length, "query": query, "tied": False}
        page.call("(s) => explorer.change(s)", new)
        drawn = page.call(DRAWN)
        mask, felt = mask_of(length, lm), felt_distances(length, lm)
        pairs = [(i, j) for i in range(length) for j in range(i + 1)]
        assert [(i, j) for i, j, _ in drawn["mask"]] == pairs
        assert [(i, j) for i, j, _ in drawn["far"]] == pairs
        for (i, j, kind), (_, _, number) in zip(drawn["mask"], drawn["far"]):
            assert (kind != "hidden") == mask[i, j], (setting, i, j)
            assert number == (felt[i, j] if mask[i, j] else None), (setting, i, j)
            if mask[i, j]:
                is_local = lm.n_local is None or i - j < lm.n_local
                assert kind == ("window" if is_local else "starting")
        sees = [[j, felt[query, j]] for j in range(query + 1) if mask[query, j]]
        assert drawn["bars"] == sees and f"sees {len(sees)} of " in drawn["says"]
        if lm.n_local is not None:
            held, _ = slots_of(length, lm)
            assert drawn["ring"] == held + [None] * (lm.n_local - len(held))
    assert page.errors == []


def test_presets_are_the_papers_ablations(page):
    """Catches a preset that sets something else than its name says."""
    expected = {
        "Full attention": (None, 0, None),
        "Sliding window": (8, 0, None),
        "Λ without ceiling": (8, 3, None),
        "Ceiling without Λ": (None, 0, 8),
        "LM-Infinite": (8, 3, 8),
    }
    press = """(k) => {
      const button = document.querySelectorAll("#presets button")[k];
      button.click();
      const pressed = document.querySelectorAll("#presets [aria-pressed=true]");
      const {n_local, n_global, distance_ceiling} = explorer.state;
      return [button.textContent, [n_local, n_global, distance_ceiling],
        pressed.length === 1 && pressed[0] === button];
    }"""
    for number, (name, values) in enumerate(expected.items()):
        assert page.call(press, number) == [name, list(values), True]


def state(page, *names) -> list:
    return page.call("(names) => names.map((name) => explorer.state[name])", names)


def focus(page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.textContent")


def test_it_is_driven_by_the_keyboard_alone(page):
    """Catches a control that Tab does not reach, one without a visible focus, and arrow keys
    that move nothing, or scroll instead."""
    order = []
    for _ in range(18):
        page.press("Tab")
        order.append(focus(page))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", order[-1]
    sliders = ["length", "query", "n_local", "n_global", "distance_ceiling", "tied", "top_k"]
    assert order[1:4] == ["play", "fewer", "more"]
    assert order[4:9] == [
        "Full attention", "Sliding window", "Λ without ceiling", "Ceiling without Λ",
        "LM-Infinite",
    ]  # fmt: skip
    assert order[9:17] == [*sliders, "mask"]

    page.call("() => document.getElementById('distance_ceiling').focus()")
    page.press("ArrowRight", 2)
    assert state(page, "distance_ceiling", "tied") == [10, False]
    page.press("End")
    assert state(page, "distance_ceiling") == [None]
    text = "document.activeElement.getAttribute('aria-valuetext')"
    assert page.evaluate(text) == "none: true distances"

    page.call("() => document.getElementById('mask').focus()")
    page.press("ArrowUp", 3)
    page.press("ArrowRight", 2)
    assert state(page, "query", "key") == [20, 2]
    says = "document.getElementById('readout').textContent"
    assert page.evaluate(says).startswith("Query 20, key 2: a starting token")
    page.press("End")
    assert state(page, "query", "key") == [20, 20]
    page.press("PageUp")
    page.press("Home")
    assert state(page, "query", "key") == [12, 0]


@pytest.mark.parametrize("length", [9, 24, 48])
def test_a_click_chooses_the_cell_under_it(page, length):
    """Catches a pointer that is off by the margin, or by the scale, of the drawing."""
    page.call("(length) => explorer.change({length})", length)
    centre = """(id, place) => {
      const cell = document.querySelectorAll(`#${id} rect:is([class^=c-], [data-felt])`)[place];
      const {x, y, width, height} = cell.getBoundingClientRect();
      return {x: x + width / 2, y: y + height / 2};
    }"""
    for name, (i, j) in itertools.product(("mask", "far"), [(length - 1, 0), (7, 7), (6, 2)]):
        where = page.call(centre, name, i * (i + 1) // 2 + j)
        for kind in ("mousePressed", "mouseReleased"):
            page.send(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where
            )
        assert state(page, "query", "key") == [i, j]


def test_play_lets_the_text_grow_to_its_end(page):
    """Catches a play button that stops early or never, or does not move the query."""
    page.call("() => explorer.change({length: 45, query: 44})")
    page.evaluate("globalThis.ticking = setInterval")
    page.evaluate("globalThis.setInterval = (f, ms) => ticking(f, ms / 50); 0")
    page.call("() => document.getElementById('play').focus()")
    page.press("Enter")
    page.wait_for("document.getElementById('play').textContent === 'Play'")
    assert state(page, "length", "query") == [48, 47]


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_it_fits_its_screen(page, width):
    """Catches a page that has to be scrolled sideways, on a phone or anywhere."""
    page.screen(width, 800)
    for setting in (GRID[0], GRID[-1]):
        page.call("(s) => explorer.change(s)", setting | {"length": 48, "top_k": 5})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []


def test_it_needs_nothing_from_anywhere(page):
    """Catches a font, a script or a picture that is fetched."""
    loaded = page.evaluate("performance.getEntriesByType('resource').map((r) => r.name)")
    assert loaded == []
    text = FILE.read_text(encoding="utf-8")
    assert "http" not in text and "@import" not in text and "<link" not in text
