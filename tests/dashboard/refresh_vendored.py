"""Brings the dashboard's third-party files in anew: ``python tests/dashboard/refresh_vendored.py`` (needs npm).

Every file is the one its package publishes, with only the replacements that ``VENDORED`` lists: a browser resolves no
bare module names without an import map, and an import map is an inline script, which the dashboard's policy forbids.
Raise a version here, run this, read the difference, run the tests.
"""

import hashlib
import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parents[2] / "src" / "juggler" / "dashboard" / "static"
AXE = Path(__file__).parent / "axe"


@dataclass(frozen=True)
class Vendored:
    """One file of a package on npm."""

    package: str
    version: str
    member: str
    """Path inside the package."""
    target: Path
    replaced: tuple[tuple[str, str], ...] = ()
    """Published text, and what stands here instead; each occurs exactly once or as often as it says."""

    def adapted(self, published: str) -> str:
        for before, after in self.replaced:
            if before not in published:
                raise SystemExit(f"{self.package} {self.version}: {before!r} is no longer in {self.member}")
            published = published.replace(before, after)
        return published

    def published(self, adapted: str) -> str:
        """The text as published, from the adapted one: what makes the adaptation checkable without npm."""
        for before, after in reversed(self.replaced):
            adapted = adapted.replace(after, before)
        return adapted


_VENDOR = STATIC / "vendor"
_PREACT = ('from"preact"', 'from"./preact.js"')
_HOOKS = ('from"preact/hooks"', 'from"./hooks.js"')
_CORE = ('from"@preact/signals-core"', 'from"./signals-core.js"')


def _map(name: str) -> tuple[str, str]:
    """The source map is not shipped, so nobody is sent to look for it."""
    return f"//# sourceMappingURL={name}.map", f"// its source map, {name}.map, is in the package"


VENDORED = (
    Vendored("preact", "11.2.0", "dist/preact.mjs", _VENDOR / "preact.js", (_map("preact.mjs"),)),
    Vendored("preact", "11.2.0", "hooks/dist/hooks.mjs", _VENDOR / "hooks.js", (_PREACT, _map("hooks.mjs"))),
    Vendored("preact", "11.2.0", "LICENSE", _VENDOR / "LICENSE.preact"),
    Vendored("htm", "3.1.1", "dist/htm.module.js", _VENDOR / "htm.js"),
    Vendored("htm", "3.1.1", "LICENSE", _VENDOR / "LICENSE.htm"),
    Vendored(
        "@preact/signals",
        "2.11.4",
        "dist/signals.mjs",
        _VENDOR / "signals.js",
        (_PREACT, _HOOKS, _CORE, _map("signals.mjs")),
    ),
    Vendored("@preact/signals", "2.11.4", "LICENSE", _VENDOR / "LICENSE.signals"),
    Vendored(
        "@preact/signals-core",
        "1.14.5",
        "dist/signals-core.mjs",
        _VENDOR / "signals-core.js",
        (_map("signals-core.mjs"),),
    ),
    Vendored("@preact/signals-core", "1.14.5", "LICENSE", _VENDOR / "LICENSE.signals-core"),
    Vendored("axe-core", "4.14.1", "axe.min.js", AXE / "axe.min.js"),
    Vendored("axe-core", "4.14.1", "LICENSE", AXE / "LICENSE"),
    Vendored("axe-core", "4.14.1", "LICENSE-3RD-PARTY.txt", AXE / "LICENSE-3RD-PARTY.txt"),
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (_VENDOR, AXE):
            folder.mkdir(parents=True, exist_ok=True)
            ours = [one for one in VENDORED if one.target.parent == folder]
            shipped, published = [], []
            for one in ours:
                text = _packed(one, Path(scratch))
                one.target.write_text(one.adapted(text), encoding="utf-8", newline="")
                if one.published(one.adapted(text)) != text:
                    raise SystemExit(f"{one.target.name}: the replacements cannot be undone")
                shipped.append(f"{digest(one.adapted(text))}  {one.target.name}\n")
                published.append(f"{digest(text)}  {one.package}@{one.version}/{one.member}\n")
            (folder / "SHA256SUMS").write_text("".join(shipped), encoding="utf-8")
            (folder / "SHA256SUMS.published").write_text("".join(published), encoding="utf-8")


def _packed(one: Vendored, scratch: Path) -> str:
    """A member of the package as npm delivers it; npm checks its integrity against the registry's."""
    archive = scratch / f"{one.package.replace('@', '').replace('/', '-')}-{one.version}.tgz"
    if not archive.exists():
        wanted = f"{one.package}@{one.version}"
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
        member = files.extractfile(f"package/{one.member}")
        assert member is not None, f"{one.member} is a file"
        return member.read().decode()


if __name__ == "__main__":
    main()
