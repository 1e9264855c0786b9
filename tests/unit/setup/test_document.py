"""Configurations with comments, in both forms."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.config.problems import Source
from juggler.config.reader import read_json
from juggler.config.tree import plain
from juggler.config.yaml_reader import read_yaml
from juggler.setup.document import Block, Entry, Format, Listing, Value, printable, render


def read(text: str, form: Format) -> Any:
    source = Source("x", text)
    result = read_json(source) if form == "json" else read_yaml(source)
    assert result.problems == [], [str(problem) for problem in result.problems]
    assert result.root is not None
    return plain(result.root)


SAMPLE = Block(
    (
        Entry("memory", Block((Entry("gpu0", "1.5GiB"),)), ("First.", "Second " * 40)),
        Entry("empty", Block(())),
        Entry(
            "servers",
            Listing(
                (
                    Block((Entry("name", "A"), Entry("port", 8021, ("Why this port.",)), Entry("on", True))),
                    Block((Entry("words", tuple(f"--option-{n}" for n in range(20))),), comments=("The second.",)),
                    Block((Entry("inner", Listing((Block((Entry("a b", "c: d # e"),), comments=("Deep.",)),))),)),
                ),
                (Block((Entry("name", "example"),), comments=("For example:",)),),
            ),
        ),
    ),
    (Entry("warmup", Listing((Block((Entry("server", "A"),)),))),),
    ("A heading.",),
    "Not used:",
)
SAMPLE_DATA = {
    "memory": {"gpu0": "1.5GiB"},
    "empty": {},
    "servers": [
        {"name": "A", "port": 8021, "on": True},
        {"words": [f"--option-{n}" for n in range(20)]},
        {"inner": [{"a b": "c: d # e"}]},
    ],
}


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_what_is_written_is_what_is_read(form: Format) -> None:
    """Comments and examples change nothing; no line is wider than a screen."""
    text = render(SAMPLE, form)
    assert read(text, form) == SAMPLE_DATA
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[0] == ("// A heading." if form == "json" else "# A heading.")


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_examples_work_once_their_marks_are_taken_off(form: Format) -> None:
    """Which is how the comment above them says to use them."""
    mark = "// " if form == "json" else "# "
    lines = []
    for line in render(SAMPLE, form).splitlines():
        bare = line.lstrip()
        is_code = bare.startswith(mark) and bare[len(mark) :].lstrip()[:1] in ('"', "{", "}", "]", "-", "[")
        is_code = is_code or bare.startswith((mark + "warmup", mark + "  -"))
        lines.append(line.replace(mark, "", 1) if is_code else line)
    data = read("\n".join(lines), form)
    assert data["warmup"] == [{"server": "A"}]
    assert data["servers"][0] == {"name": "example"}
    assert data["servers"][1:] == SAMPLE_DATA["servers"]


texts = st.text(max_size=20).filter(str.isprintable)
anything = st.text(max_size=30)
scalars = texts | st.integers(-10, 10**6) | st.booleans()
keys = texts.filter(bool)


def blocks(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Block]:
    def make(entries: list[tuple[str, Value, str]], remark: str) -> Block:
        unique = {key: Entry(key, value, (comment,)) for key, value, comment in entries}
        return Block(tuple(unique.values()), (Entry("example", 1),), (remark,))

    return st.builds(make, st.lists(st.tuples(keys, values, anything), min_size=1, max_size=3), anything)


values: st.SearchStrategy[Value] = st.recursive(
    scalars | st.lists(scalars, max_size=4).map(tuple),
    lambda inner: blocks(inner) | st.lists(blocks(inner), min_size=1, max_size=2).map(lambda b: Listing(tuple(b))),
    max_leaves=6,
)


def data_of(value: Value) -> Any:
    if isinstance(value, Block):
        return {entry.key: data_of(entry.value) for entry in value.entries}
    if isinstance(value, Listing):
        return [data_of(item) for item in value.items]
    return list(value) if isinstance(value, tuple) else value


@given(blocks(values), st.sampled_from(["json", "yaml"]))
def test_any_document_survives(document: Block, form: Format) -> None:
    """Whatever stands in values and comments: names of files may hold anything that can be printed."""
    assert read(render(document, form), form) == data_of(document)


@given(anything)
def test_comments_cannot_get_out(text: str) -> None:
    """A name with a line end must not add a line to the configuration."""
    clean = printable(text)
    assert clean.splitlines() in ([], [clean])
    document = Block((Entry("a", 1, (text,)),))
    assert json.loads("\n".join(line for line in render(document, "json").splitlines() if "//" not in line)) == {"a": 1}
