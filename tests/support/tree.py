"""The files of the repository, as tests of the whole tree see them."""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

from support.running import ROOT


def _names() -> list[str]:
    """Relative to the root. Where git does not know the folder, as after unpacking an archive: all
    but what is hidden."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
            "\0"
        )
        return sorted(name for name in told if name and (ROOT / name).is_file())
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return sorted(
            path.as_posix()
            for path in paths
            if not any(part.startswith(".") for part in path.parts)
        )


def own_files(pattern: str) -> list[Path]:
    """Files that git knows, those just added among them, whose path from the root matches: `*.py`
    anywhere, `docs/*.md` at any depth. AssertionError if there is none.

    What else lies in the folder is the user's, and no test of the whole tree judges it.
    """
    found = [ROOT / name for name in _names() if fnmatch(name, pattern)]
    assert found, pattern
    return found
