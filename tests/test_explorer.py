"""tutorials/explorer.html in a real browser: its matrices and its cache against the package."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT, fuzz, tiny_llama

from minilm_inf.config import LMInfinite
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.fast.cache import Cache
from minilm_inf.lambda_mask import lambda_mask
from minilm_inf.top_k import largest, middle_mask

pytestmark = pytest.mark.slow  # a browser's start
TEXT = (ROOT / "tutorials" / "explorer.html").read_text(encoding="utf-8")
REQUIRED = "EXPLORER_NEEDS_CHROMIUM"  # set by .ci/run, where a skip would hide a failure
NAMES = ("n_local", "n_global", "distance_ceiling")
DRAWS = fuzz(
    1, 100, n_local=[None, 1, 2, 5, 8, 24], n_global=[0, 1, 3, 7],
    distance_ceiling=[None, 0, 3, 8, 30], top_k=[0, 0, 0, 1, 5], length=[1, 8, 9, 23, 30],
)  # fmt: skip
CASES = [draw | {"top_k": 0} if draw["n_local"] is None else draw for draw in DRAWS]
CONFIG = tiny_llama().config
WIDTHS = (1280, 768, 375, 320)

# What is asked of the page, in frames of these widths; every answer is found by its name.
ASKED = """async (cases, pages) => {
  const page = pages[0], {explorer, document} = page, {state, change} = explorer;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const put = (x) => ["y", "x"].map((name) => Math.floor(x.getAttribute(name) / 10));
  const cells = (id, of) => all(`#${id} rect:is([class^=c-], [data-felt])`)
    .map((x) => [...put(x), of(x)]);
  const drawn = () => ({
    kinds: cells("mask", (x) => x.className.baseVal.slice(2)),
    far: cells("far", (x) => x.dataset.felt === undefined ? null : +x.dataset.felt),
    bars: all("#query-figure [data-key]").map((x) => [+x.dataset.key, +x.dataset.felt]),
    ring: all("#ring path[data-slot]").map((x) => x.dataset.position)
      .map((position) => position === "none" ? null : +position),
  });
  const rules = ({length, ...s}) => ({
    mask: explorer.mask(length, s), ...explorer.cacheSlots(length, s),
    kept: explorer.keptKeys(length, {...s, top_k: 0}),
    felt: Array.from({length}, (_, i) =>
      Array.from({length: i + 1}, (_, j) => explorer.feltDistance(i, j, s))),
  });
  const now = (...names) => names.map((name) => state[name]);
  const found = {
    scores: Array.from({length: 30}, (_, j) => explorer.madeUpScore(j)),
    rules: cases.map(rules), middle: explorer.middleDistance({n_local: 9}),
    presets: all("#presets button").map((button) => {
      button.click();
      const pressed = all("#presets [aria-pressed=true]");
      return [button.textContent, ...now("n_local", "n_global", "distance_ceiling", "top_k"),
        pressed.length === 1 && pressed[0] === button];
    }),
    drawn: cases.map((one) => {
      change({...one, query: Math.floor(one.length * 2 / 3), tied: false});
      return drawn();
    }),
    tab: all("a, button, input, summary, [tabindex='0']").filter((x) => x.checkVisibility())
      .map((x) => (x.focus(), document.activeElement === x && (x.id || x.textContent))),
  };
  const slide = (name, value) => {
    const slider = document.getElementById(name);
    slider.value = value;
    slider.dispatchEvent(new page.Event("input"));
    return [...now(name), slider.getAttribute("aria-valuetext")];
  };
  found.slid = [slide("distance_ceiling", 10), slide("distance_ceiling", 49)];
  change({length: 24, query: 23, key: 0});
  const keys = "ArrowUp ArrowUp ArrowRight ArrowRight End PageUp Home".split(" ");
  const matrix = document.getElementById("mask");
  found.typed = keys.map((key) => {
    matrix.dispatchEvent(new page.KeyboardEvent("keydown", {key}));
    return now("query", "key");
  });
  found.clicked = all("#mask rect[class^=c-]").map((_, number) => {
    const cell = all("#mask rect[class^=c-]")[number]; // drawn afresh after each click
    const {x, y, width, height} = cell.getBoundingClientRect();
    const where = {clientX: x + width / 2, clientY: y + height / 2};
    matrix.dispatchEvent(new page.MouseEvent("click", where));
    return [put(cell), now("query", "key")];
  });
  page.setInterval = (tick) => { for (let n = 0; n < 99; n++) tick(); };
  document.getElementById("play").click();
  found.played = now("length", "query");
  found.fits = pages.map((page) => {
    page.explorer.change({...cases[0], length: 48, top_k: 5});
    return page.document.documentElement.scrollWidth <= page.innerWidth;
  });
  found.fetched = page.performance.getEntriesByType("resource").map((one) => one.name);
  return {...found, errors: pages.flatMap((page) => page.errors)};
}"""
AROUND = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const open = (width) => new Promise((ready) => {
  const frame = Object.assign(document.createElement("iframe"), {width, height: 900});
  Object.assign(frame, {srcdoc: PAGE, onload: () => ready(frame.contentWindow)});
  document.body.append(frame);
});
const show = (found) => {
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(found);
};
Promise.all(WIDTHS.map(open)).then((pages) => (ASKED)(CASES, pages))
  .then(show, (error) => show({error: error.stack}));
</script>"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The page's answers to what is asked."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for path in map(shutil.which, names) if path), None)
    if program is None:
        assert not os.environ.get(REQUIRED), "chromium must be there, and is not"
        pytest.skip("no chromium here; Debian's can be had with: apt-get install chromium")
    watched = "<script>errors = []; onerror = (error) => errors.push(error);</script>"
    page = TEXT.replace("<script>", f"{watched}<script>", 1)
    parts = {"PAGE": page, "WIDTHS": WIDTHS, "CASES": CASES}
    around = AROUND.replace("ASKED", ASKED)
    for name, value in parts.items():
        around = around.replace(name, json.dumps(value).replace("</", "<\\/"))
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(around, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run(
        [program, *flags, (folder / "page.html").as_uri()], capture_output=True, text=True,
        encoding="utf-8", timeout=300,
    )  # fmt: skip
    shown = re.search("<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert shown, done.stdout[-300:] + done.stderr[-300:]
    answers = json.loads(html.unescape(shown[1]))
    assert "error" not in answers, answers
    return answers


class Ruler:
    """A scheme whose logits are the distances themselves; see capped_logits."""

    def place(self, x, positions):
        return x

    def at(self, positions, dtype, device):
        return lambda x: x

    def bias(self, distance):
        return distance[None]


def setting_of(case) -> LMInfinite:
    return LMInfinite(**{name: case[name] for name in NAMES}, top_k=case["top_k"])


def felt_distances(case) -> list:
    """The distance that the package computes each logit with, a row per query."""
    n, p = case["length"], torch.arange(case["length"])
    nothing, ceiling = torch.zeros(1, 1, n, 2, dtype=torch.float64), case["distance_ceiling"]
    felt = capped_logits(nothing, nothing, p, p, Ruler(), ceiling, 1.0)[0, 0].tolist()
    return [row[: i + 1] for i, row in enumerate(felt)]


def mask_of(case, scores) -> torch.Tensor:
    """What the package sees, where top_k goes by these scores."""
    n, lm, p = case["length"], setting_of(case), torch.arange(case["length"])
    seen = lambda_mask(p, p, lm)
    if not lm.top_k:
        return seen
    logits = torch.tensor(scores[:n], dtype=torch.float64).expand(n, n)
    return seen | largest(logits, middle_mask(p, p, lm) & (p[:, None] >= p), lm.top_k)


def slots_of(case) -> tuple[list, list]:
    """What a real Cache holds in each slot of its ring and of its starting keys: positions,
    which are fed to it as values, three at a time."""
    lm, n = setting_of(case | {"top_k": 0}), case["length"]
    cache = Cache(CONFIG, 1, lm, torch.float64, "cpu")
    for start in range(0, n, 3):
        read = torch.arange(start, min(start + 3, n), dtype=torch.float64)
        values = read[:, None].expand(1, CONFIG.n_kv_head, -1, CONFIG.head_dim)
        for layer in cache.layers:
            layer.extend(values, values, values, start, [0], 0)
        cache.length += len(read)
    ring, starting = cache.layers[-1].ring[1], cache.layers[-1].starting[1]
    in_ring = min(n, lm.n_local or n)
    return ring[0, 0, :in_ring, 0].tolist(), starting[0, 0, :, 0].tolist()


def test_every_mask_distance_and_slot_is_the_packages(found):
    """Catches a window, a ceiling or a count of starting tokens one off, a middle key that is
    none, or the older one of equals, and a ring that turns elsewhere than a real cache's."""
    assert len(set(found["scores"])) < 30  # so that there are equals to be told apart
    assert found["middle"] == LMInfinite(9, 0, 9, top_k=1).middle_distance
    for case, page in zip(CASES, found["rules"]):
        (ring, starting), n_local = slots_of(case), case["n_local"] or 0
        assert page["mask"] == mask_of(case, found["scores"]).tolist(), case
        assert page["felt"] == felt_distances(case), case
        assert page["kept"] == len(ring) + len(starting), case
        empty = [None] * max(0, n_local - len(ring))
        assert page["ring"] == ring + empty and page["starting"] == starting, case


def test_what_is_drawn_is_what_the_rules_say(found):
    """Catches a drawing that is late, or shows another row, column or slot."""
    for case, page, rules in zip(CASES, found["drawn"], found["rules"]):
        n, query, n_local = case["length"], case["length"] * 2 // 3, case["n_local"]
        is_global = torch.arange(n) < case["n_global"]
        far = [[i, j, d] for i, row in enumerate(rules["felt"]) for j, d in enumerate(row)]
        if case["top_k"]:  # what came back has a distance of its own
            far = [
                [i, j, n_local // 2 if i - j >= n_local and not is_global[j] else d]
                for i, j, d in far
            ]
        seen = [[i, j, d if rules["mask"][i][j] else None] for i, j, d in far]
        assert page["far"] == seen, case
        for i, j, kind in page["kinds"]:
            local = "window" if n_local is None or i - j < n_local else "middle"
            right = "starting" if local == "middle" and is_global[j] else local
            assert kind == (right if rules["mask"][i][j] else "hidden"), case
        assert page["bars"] == [[j, d] for i, j, d in seen if i == query and d is not None]
        assert page["ring"] == ([] if n_local is None else rules["ring"]), case
    assert found["errors"] == []


def test_presets_are_the_papers_ablations(found):
    """Catches a preset that sets something else than its name says."""
    assert found["presets"] == [
        ["Vanilla", None, 0, None, 0, True],
        ["Sliding window", 8, 0, None, 0, True],
        ["Λ without ceiling", 8, 3, None, 0, True],
        ["Ceiling without Λ", None, 0, 8, 0, True],
        ["LM-Infinite", 8, 3, 8, 0, True],
    ]


def test_keys_sliders_and_clicks_move_it(found):
    """Catches a control that no key reaches, keys that move nothing, a pointer that is off by
    the drawing's margin or scale, and a play button that ends early, or never."""
    sliders = ["length", "query", "n_local", "n_global", "distance_ceiling", "tied", "top_k"]
    names = [preset[0] for preset in found["presets"]]
    assert found["tab"][1:17] == ["play", "fewer", "more", *names, *sliders, "mask"]
    assert found["slid"] == [[10, "10"], [None, "none: true distances"]]
    typed = [[22, 0], [21, 0], [21, 1], [21, 2], [21, 21], [13, 13], [13, 0]]
    assert found["typed"] == typed
    assert len(found["clicked"]) == 24 * 25 / 2
    assert all(cell == chosen for cell, chosen in found["clicked"])
    assert found["played"] == [48, 47]


def test_it_fits_its_screen_and_needs_nothing(found):
    """Catches a page that has to be scrolled sideways, on a phone or anywhere, and a font, a
    script or a picture that is fetched."""
    assert found["fits"] == [True] * len(WIDTHS) and found["fetched"] == []
    assert not re.search("http|@import|<link", TEXT)
