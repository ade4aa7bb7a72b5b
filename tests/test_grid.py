"""What n_global and n_local buy: the sentences of the page, and a run that is stopped."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "weights" / "pages"))  # programs, and no package
import grid  # noqa: E402


def test_a_sentence_that_the_numbers_do_not_bear_out_fails(tmp_path, monkeypatch):
    """Catches a prose that a later measurement contradicts, and is printed all the same."""
    assert grid.section().startswith("## 2. What do n_global and n_local buy?")
    known = json.loads(grid.RESULT.read_text(encoding="utf-8"))
    cell = grid.cell_of(known, "tiny-gptj", 16, 1, 256)
    cell["less"] = grid.cell_of(known, "tiny-gptj", 16, 0, 256)["less"]  # it is worth nothing
    monkeypatch.setattr(grid, "RESULT", tmp_path / "grid.json")
    grid.RESULT.write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(AssertionError):
        grid.section()


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Catches a setting that is measured twice or never, and differences to another one."""
    text = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")
    plan = grid.Plan(256, (0, 10), (32,), 1, 128, 192, 8, 128, 1, (1, 0))
    monkeypatch.setattr(grid.corpus, "documents", lambda *_: {"text": text})
    monkeypatch.setattr(grid, "PLANS", {"nano-llama": plan})
    monkeypatch.setattr(grid, "RESULT", tmp_path / "grid.json")
    grid.measure()
    whole = json.loads(grid.RESULT.read_text(encoding="utf-8"))
    cells = whole["nano-llama"]["cells"]
    assert len(cells) == 7 and cells[0]["less"] == [0, 0, 0] != cells[1]["less"]
    assert "keys" not in cells[0]  # whose window holds a whole question
    stopped = whole["nano-llama"] | {"cells": [cells[0], {**cells[1]}]}
    del stopped["cells"][1]["pairs"]
    grid.RESULT.write_text(json.dumps({"nano-llama": stopped}), encoding="utf-8")
    grid.measure()
    assert json.loads(grid.RESULT.read_text(encoding="utf-8")) == whole
