"""What the dashboard ships: other people's files unchanged, little of it, nothing from elsewhere, nothing inline."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from juggler.scheduler.transitions import Residency
from tests.dashboard.fake_api import MEDIA_TYPES
from tests.dashboard.refresh_vendored import AXE, STATIC, VENDORED, digest

BUDGET_BYTES = 70_000
VENDOR = STATIC / "vendor"


def sums(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {name: value for value, name in (line.split("  ", 1) for line in lines)}


def shipped() -> list[Path]:
    """All files that a browser may ask for."""
    return sorted(file for file in STATIC.rglob("*") if file.suffix in MEDIA_TYPES)


def scripts() -> list[Path]:
    return sorted((STATIC / "app").rglob("*.js"))


@pytest.mark.parametrize("folder", [VENDOR, AXE], ids=["vendor", "axe"])
def test_other_peoples_files_are_the_published_ones(folder: Path) -> None:
    """Each has its checksum, and undoing the listed replacements gives the checksum of the package's own file."""
    recorded, published = sums(folder / "SHA256SUMS"), sums(folder / "SHA256SUMS.published")
    ours = [one for one in VENDORED if one.target.parent == folder]
    for one in ours:
        text = one.target.read_bytes().decode()
        assert recorded[one.target.name] == digest(text)
        assert published[f"{one.package}@{one.version}/{one.member}"] == digest(one.published(text))
    described = {"SHA256SUMS", "SHA256SUMS.published", "README.md"}
    assert {file.name for file in folder.iterdir()} - described == {one.target.name for one in ours}


def test_versions_and_licences_are_told() -> None:
    text = (VENDOR / "README.md").read_text(encoding="utf-8")
    told = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    for one in VENDORED:
        if one.target.parent == VENDOR:
            lines = [line for line in told.splitlines() if f"`{one.target.name}`" in line]
            assert len(lines) == 1, one.target.name
            assert one.version in lines[0], one.target.name


def test_everything_together_is_small() -> None:
    """At most 70 KB compressed, file by file."""
    sizes = {file: len(gzip.compress(file.read_bytes(), 9, mtime=0)) for file in shipped()}
    listed = "\n".join(f"{size:6} {file.relative_to(STATIC)}" for file, size in sizes.items())
    assert sum(sizes.values()) <= BUDGET_BYTES, f"{sum(sizes.values())} bytes:\n{listed}"


def test_nothing_is_fetched_from_elsewhere() -> None:
    for file in shipped():
        if file.parent != VENDOR:
            found = re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z][^\s'\"]*", file.read_text(encoding="utf-8"))
            assert [url for url in found if "www.w3.org" not in url] == [], file.name


def test_the_page_has_nothing_inline() -> None:
    """The policy would stop it: scripts and styles come as files, and no attribute holds either."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", page) == []
    for file in scripts():
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"\sstyle=|innerHTML|dangerouslySet|\beval\(|new Function", text) == [], file.name


def test_the_page_names_the_modules_it_needs_at_once() -> None:
    """Shell, first view and all that they import are preloaded: else a browser finds them one after the other."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    preloaded = {STATIC / name for name in re.findall(r'modulepreload" href="([^"]+)"', page)}
    needed: set[Path] = set()
    ahead = [STATIC / "app" / "shell.js", STATIC / "app" / "views" / "board.js"]
    while ahead:
        file = ahead.pop()
        if file not in needed:
            needed.add(file)
            imports = re.findall(r"""\bfrom ?["'](\.[^"']+)["']""", file.read_text(encoding="utf-8"))
            ahead += [(file.parent / name).resolve() for name in imports]
    assert preloaded == needed


def test_every_import_is_there() -> None:
    for file in scripts():
        for name in re.findall(r"""(?:\bfrom |\bimport\()["']([^"']+)["']""", file.read_text(encoding="utf-8")):
            assert name.startswith("."), f"{file.name}: {name}"
            assert (file.parent / name).resolve().is_file(), f"{file.name}: {name}"


def test_every_state_has_a_word_and_an_icon() -> None:
    looks = (STATIC / "app" / "store.js").read_text(encoding="utf-8")
    icons = (STATIC / "app" / "parts.js").read_text(encoding="utf-8")
    told = dict(re.findall(r"^  (\w+): \['\w+', '(\w+)'", looks, re.MULTILINE))
    assert {one.value for one in Residency} | {"busy", "down", "loading"} <= told.keys()
    for icon in told.values():
        assert re.search(rf"^  {icon}: '", icons, re.MULTILINE), icon


NODE = shutil.which("node")

FORMATS = """
import { amounts, counter, duration, exact, percent, size } from %s;
console.log(JSON.stringify([
  size(0), size(1023), size(1536), size(5 * 2 ** 30), size(null),
  duration(0), duration(119), duration(120), duration(7200), duration(400000), duration(null),
  exact(0.31), exact(12), counter(5.9), counter(725), counter(3725), percent(0.001), percent(0.11), percent(null),
  amounts({ gpu0: 2 ** 30 }), amounts({ gpu0: 2 ** 30, ram: 2 ** 31 }), amounts({ exclusive: 1 }), amounts({}),
]));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_numbers_read_as_on_the_command_line() -> None:
    module = json.dumps((STATIC / "app" / "format.js").as_uri())
    done = subprocess.run(
        [str(NODE), "--input-type=module", "-e", FORMATS % module], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [
        *("0 B", "1023 B", "1.5 KiB", "5.0 GiB", "-"),
        *("0 s", "119 s", "2 min", "2.0 h", "5 days", "-"),
        *("0.3 s", "12 s", "0:05", "12:05", "1:02:05", "<1 %", "11 %", "-"),
        *("1.0 GiB", "1.0 GiB gpu0, 2.0 GiB ram", "the only place", ""),
    ]
