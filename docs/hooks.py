"""What the site has beyond GitHub's view of the same Markdown. mkdocs calls these functions.

- README.md is the front page, a notebook is a page, and what leads out of docs/ leads to the
  repository.
- `[name](../../algos/x.py) <!-- code -->` on a line of its own becomes the code of that name,
  `[...](../../algos/x.py) <!-- diff -->` what that script has and linear.py has not, so that a
  page cannot say other code than the script has.
- `$...$` is typeset to MathML.
"""

import json
import os
import re
import sys
import textwrap
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs puts no folder of ours there
from common.errors import UserError  # noqa: E402
from tools.diff import compared  # noqa: E402
from tools.page import typeset  # noqa: E402
from tools.regions import excerpt  # noqa: E402

LINE = re.compile(r"^\[([^\]]+)\]\(([^)\s]+)\) *<!-- (code|diff) -->$", re.M)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files, config):
    """README.md and each notebook as a page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=text))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.replace(".ipynb", ".md")
        files.append(File.generated(config, name, content=cells(Path(notebook.abs_src_path))))
    return files


def on_page_markdown(markdown, page, config, files):
    here = ROOT / "docs" / Path(page.file.src_uri).parent
    markdown = _relinked(markdown, ROOT if page.file.src_uri == "index.md" else here, here, config)
    try:
        return LINE.sub(lambda match: _inserted(*match.groups(), config), markdown)
    except UserError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None


def on_page_content(html, page, config, files):
    try:
        return typeset(html)
    except UserError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None


def on_post_page(output, page, config):
    """Without what would ask GitHub for the number of stars."""
    return output.replace('data-md-component="source"', "")


def _relinked(markdown: str, folder: Path, here: Path, config) -> str:
    """Links of a file in `folder` as they are of a page in `here`; code is left as it is."""

    def lead(match: re.Match) -> str:
        target = Path(os.path.normpath(folder / match[1]))
        if target == ROOT / "README.md":
            target = ROOT / "docs/index.md"
        if target.is_relative_to(ROOT / "docs") and not target.is_dir():
            return Path(os.path.relpath(target, here)).as_posix().replace(".ipynb", ".md")
        kind = "tree" if target.is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{target.relative_to(ROOT).as_posix()}"

    parts = re.split(r"(?ms)(^ *```.*?^ *```)", markdown)
    return "".join(LINK.sub(lead, part) if n % 2 == 0 else part for n, part in enumerate(parts))


def _inserted(name: str, link: str, kind: str, config) -> str:
    file = link.removeprefix(f"{config.repo_url}/blob/main/")
    if kind == "diff":
        linear = ROOT / "algos/linear.py"
        lines = list(compared(linear, ROOT / file))
        code = "\n".join(line for _, line in lines)
        count = sum(style in ("-", "+") for style, _ in lines)
        block = f"```diff\n{code}\n```"
        return f'??? abstract "{name}: {count} lines"\n\n{textwrap.indent(block, "    ")}\n'
    _, first, lines = excerpt(ROOT / file, name.strip("`"))
    code = textwrap.dedent("\n".join(lines))
    last = first + len(lines) - 1
    return (
        f'```python linenums="{first}"\n{code}\n```\n\n'
        f"[{file}, lines {first} to {last}]({link}#L{first}-L{last})\n{{: .source }}\n"
    )


def cells(notebook: Path) -> str:
    """A notebook's cells and outputs as Markdown."""
    told = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        told.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if image := "".join("".join(data.get("image/png", "")).split()):
                told.append(f"![output](data:image/png;base64,{image})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                told.append(f"```text\n{text}\n```")
    return "\n\n".join(told)
