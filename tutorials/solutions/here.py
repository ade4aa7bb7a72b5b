"""Where the solutions stand: importing this makes the package and plot.py importable."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "tutorials" / "text.txt"
for folder in (ROOT / "tutorials", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
