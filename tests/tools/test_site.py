"""The site: it builds without a warning, every page fits a phone and a desk in light and dark, asks
nothing of another host, and has its mathematics typeset."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from support.browser import Browser, needs_driver
from support.running import ROOT

pytest.importorskip("material", reason="no mkdocs-material: pip install -r requirements-docs.txt")
from docs import hooks  # noqa: E402: needs mkdocs

CONFIG = SimpleNamespace(repo_url="https://here/it")
PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="algos/x.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning would have been an error: mkdocs.yml is strict."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-d", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def served(site):
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pages(site):
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def test_the_site_builds_and_loads_nothing_from_elsewhere(site):
    names = [path.relative_to(site).as_posix() for path in pages(site)]
    scripts = {path.stem for path in ROOT.glob("algos/[a-z]*.py")}
    assert {f"algos/{name}.html" for name in scripts} | {"index.html", "explore.html"} <= {*names}
    for path in pages(site):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]* src="?(?:https?:)?//', text), (
            path
        )
        assert not re.findall(r'<link[^>]*rel="?(?:stylesheet|pre\w+)"?[^>]*//', text), path
        assert "<!-- code" not in text, path


LOOK = """(() => { const origin = location.origin + '/';
return [document.documentElement.scrollWidth <= innerWidth ? '' : 'runs out sideways',
 ...performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(origin)),
 ...[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
 ...[...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().width
   && !m.closest('details')).map(m => m.outerHTML),
 document.querySelector('.arithmatex, merror') ? 'raw TeX' : '',
].filter(Boolean); })()"""


@needs_driver
def test_every_page_fits_in_light_and_dark(site, served, tmp_path):
    formulas = 0
    with closing(Browser(tmp_path / "profile")) as browser:

        def emulate(what: str, **params) -> None:
            command = {"cmd": f"Emulation.{what}", "params": params}
            browser.send("/goog/cdp/execute", command)

        for path in pages(site):
            name = path.relative_to(site).as_posix()
            for width, scheme, themed in ((420, "light", "default"), (1280, "dark", "slate")):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                emulate("setDeviceMetricsOverride", **size)
                media = [{"name": "prefers-color-scheme", "value": scheme}]
                emulate("setEmulatedMedia", features=media)
                if width == 420:
                    browser.send("/url", {"url": f"{served}/{name}"})
                own = "(document.body.dataset.mdColorScheme ?? null)"  # explore has none
                browser.until(f"[null, '{themed}'].includes({own})")
                assert browser.ask(LOOK) == [], (name, width, scheme)
            formulas += browser.ask("document.querySelectorAll('math').length")
    assert formulas > 100


# --- the hook ---


def test_code_is_taken_from_the_script_and_an_unknown_name_is_an_error():
    def made(line: str) -> str:
        return hooks.on_page_markdown(line, PAGE, CONFIG, None)

    text = made("[CTWA.weights](../../algos/ctwa.py) <!-- code -->")
    assert "    def weights(self, rewards: Tensor) -> Tensor:\n" not in text  # dedented
    assert "\ndef weights(self, rewards: Tensor) -> Tensor:\n" in text
    assert re.search(r"\(https://here/it/blob/main/algos/ctwa.py#L\d+-L\d+\)", text)
    assert "+def update_log_weights(" in made("[More](../../algos/ctwa.py) <!-- diff -->")
    with pytest.raises(hooks.PluginError, match="algos/x.md: ctwa.py has no 'gone'"):
        made("[gone](../../algos/ctwa.py) <!-- code -->")


def test_what_leads_out_of_the_site_leads_to_the_repository():
    given = "[a](../../algos/) [b](../data.md#x) [c](../../README.md) [d](https://e) [e](#f)\n"
    block = "```\n[a](../../algos/)\n```"
    assert hooks.on_page_markdown(given + block, PAGE, CONFIG, None) == (
        "[a](https://here/it/tree/main/algos) [b](../data.md#x) [c](../index.md) [d](https://e) "
        f"[e](#f)\n{block}"
    )
    front = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    given = "[a](docs/data.md) ![b](docs/figures/law.png) [c](docs/tour.ipynb) [d](LICENSE)"
    assert hooks.on_page_markdown(given, front, CONFIG, None) == (
        "[a](data.md) ![b](figures/law.png) [c](tour.md) [d](https://here/it/blob/main/LICENSE)"
    )


def test_a_notebook_is_a_page(tmp_path):
    outputs = [{"text": ["2\n"]}, {"data": {"image/png": "iVBO\n", "text/plain": ["<Figure>"]}}]
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": outputs},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    image = "![output](data:image/png;base64,iVBO)"
    told = ["# A\nb", "```python\n1 + 1\n```", "```text\n2\n```", image]
    assert hooks.cells(tmp_path / "a.ipynb") == "\n\n".join(told)
