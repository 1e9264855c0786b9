"""The report as text and as data."""

from juggler.doctor.findings import Finding, Grade, Section, count, healthy, note, ok, problem, warning
from juggler.doctor.report import document, section_text, summary

SECTION = Section(
    "Backend x", (ok("fine"), problem("first line\n    second line", "do " + "this " * 40), note("n"), warning("w"))
)


def test_text() -> None:
    """A word for the grade, further lines under the first, the hint wrapped under an arrow."""
    lines = section_text(SECTION).splitlines()
    assert lines[:4] == [
        "Backend x",
        "  ok       fine",
        "  problem  first line",
        "               second line",
    ]
    assert lines[4].startswith("           -> do this this")
    assert lines[5].startswith("              this")
    assert max(map(len, lines)) <= 100
    assert lines[-2:] == ["  note     n", "  warning  w"]


def test_colours_change_the_word_alone() -> None:
    """Whoever paints sees the grade."""

    def paint(word: str, grade: Grade) -> str:
        return f"<{grade.name}:{word}>"

    assert "  <OK:ok     >  fine" in section_text(SECTION, paint)


def test_counting() -> None:
    """Problems decide; warnings are counted."""
    assert count([SECTION], Grade.PROBLEM) == 1
    assert not healthy([SECTION])
    assert summary([SECTION]) == "1 problem, 1 warning."
    good = Section("s", (warning("w"), warning("v")))
    assert healthy([good])
    assert summary([good]) == "2 warnings."
    assert summary([Section("s", (ok("x"), note("y")))]) == "Nothing is wrong."


def test_data() -> None:
    """Everything that the text says."""
    data = document([SECTION])
    assert (data["ok"], data["problems"], data["warnings"]) == (False, 1, 1)
    assert data["sections"] == [
        {
            "title": "Backend x",
            "findings": [
                {"grade": one.grade.value, "message": one.message, "hint": one.hint} for one in SECTION.findings
            ],
        }
    ]


def test_an_empty_message_is_printed() -> None:
    """Nothing to say is no crash."""
    assert section_text(Section("t", (Finding(Grade.OK, ""),))) == "t\n  ok       "
