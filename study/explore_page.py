"""docs/explore.html anew from the data in it, after the template of `run.py explore` has changed.

    python -m study.explore_page

The data are of `OMP_NUM_THREADS=1 python run.py linear --seed 1 --steps 60 --out runs/linear-s1`
and then `python run.py explore runs/linear-s1`.
"""

import json
import re
from pathlib import Path

from tools.explore import page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explore.html"


def embedded(text: str) -> dict:
    """The data of a page of `run.py explore`."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


if __name__ == "__main__":
    PAGE.write_text(page(embedded(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {PAGE}")
