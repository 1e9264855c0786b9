"""Options that a program does not know, judged by its help."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.doctor.options import Family, KnownOptions, read_help, unknown_options
from juggler.llama_server.options import usage

LLAMA = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-m,    --model FNAME                    model path to load, see also --imaginary
                                        --also-imaginary is not an option either
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-r,    --reverse-prompt PROMPT          halt generation at PROMPT
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
--lora-scaled FNAME SCALE               path to LoRA adapter with user defined scaling
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to
--mlock                                 force system to keep model in RAM
"""
ARGPARSE = """\
usage: koboldcpp.py [-h] [--model [filenames]] [--port PORT] [--in-usage-only]

options:
  -h, --help            show this help message and exit
  --model [filenames ...], -m [filenames ...]
                        Model file to load. Accepts multiple values, e.g. --imaginary
  --port PORT           Port to listen on.
  --contextsize [256-262144], --ctx-size [256-262144], -c [256-262144]
  --gpulayers [GPU layers], --gpu-layers [GPU layers], -ngl [GPU layers]
  --quiet               Enable quiet mode.
  --[no-]mmap           Whether to map.
"""


def known(text: str) -> KnownOptions:
    found = read_help(text)
    assert found is not None
    return found


def test_names_of_llama_server() -> None:
    """All names of a definition, and none that a description mentions."""
    names = known(LLAMA).names
    assert {"-h", "--usage", "-ngl", "--gpu-layers", "--n-gpu-layers", "--control-vector-layer-range"} <= names
    assert not {"--imaginary", "--also-imaginary"} & names


def test_names_of_argparse() -> None:
    """Names on both sides of the values, ``--[no-]x`` as two; not those of the usage line or of a description."""
    names = known(ARGPARSE).names
    assert {"--model", "-m", "--ctx-size", "-c", "-ngl", "--mmap", "--no-mmap", "--quiet"} <= names
    assert not {"--imaginary", "--in-usage-only"} & names


def test_values_follow_their_option() -> None:
    """How many words llama.cpp takes after a name, so that a value which begins with a dash is none."""
    values = known(LLAMA).values
    assert (values["-m"], values["--lora-scaled"], values["--mlock"], values["-ot"]) == (1, 2, 0, 1)


@pytest.mark.parametrize(
    "text", ["", "error: the following arguments are required: --model", "usage: x\n\n  -h  help\n"]
)
def test_what_is_no_list_of_options(text: str) -> None:
    """An error message must not make every option unknown."""
    assert read_help(text) is None


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("-m x.gguf -ngl 99 -fa on --mlock", []),
        ("--n_gpu_layers 99", []),
        ("-m x.gguf --no-mmap -dio", ["--no-mmap", "-dio"]),
        ("--no-mmap -m x --no-mmap", ["--no-mmap"]),
        ("--gpu-lay 3", ["--gpu-lay"]),
        ("--mlock=1", ["--mlock=1"]),
        ("-r --stop-here --mlock", []),
        ("--lora-scaled file -0.5 --gone", ["--gone"]),
        ("--control-vector-layer-range -1 -5", []),
        ("-ngl -1 --mlock", []),
        ("positional - -- 7", []),
    ],
)
def test_exact_names(line: str, unknown: list[str]) -> None:
    """llama.cpp: no abbreviations, no ``=``, underscores as dashes, values whatever they look like."""
    assert unknown_options(line.split(), known(LLAMA), "exact") == unknown


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("--model a.gguf --port=5 --gpul 3", []),
        ("--ctx_size 3 -c4096", []),
        ("--usecublas --port 3", ["--usecublas"]),
        ("--no-mmap", []),
        ("--port -1", []),
        ("--model -- --anything", []),
        ("-x", ["-x"]),
        ("--gone=3 --gone 4", ["--gone"]),
        ("--model.key 3", []),
    ],
)
def test_argparse_names(line: str, unknown: list[str]) -> None:
    """Abbreviations, attached values, ``--`` and the dots of vLLM."""
    assert unknown_options(line.split(), known(ARGPARSE), "argparse") == unknown


def test_words_with_spaces_are_no_options_of_argparse() -> None:
    """As its own parser sees it."""
    assert unknown_options(["--system prompt of mine"], known(ARGPARSE), "argparse") == []


def test_our_own_llama_server_knows_its_options() -> None:
    """The usage text of the drop-in lists what it takes, in a form that is understood."""
    line = ["-m", "x", "-c", "4096", "-ngl", "99", "-fa", "on", "--embedding", "--mmproj", "y", "--jinja"]
    assert unknown_options(line, known(usage()), "exact") == []
    assert unknown_options(["--no-mmap"], known(usage()), "exact") == ["--no-mmap"]


@given(st.text(max_size=300), st.lists(st.text(max_size=12), max_size=8))
def test_any_text_can_be_judged(text: str, words: list[str]) -> None:
    """Whatever a program prints and whatever stands in a command line."""
    found = read_help(LLAMA + text)
    assert found is not None
    families: tuple[Family, ...] = ("exact", "argparse")
    for family in families:
        unknown = unknown_options(words, found, family)
        assert all(any(word.startswith(option) for word in words) for option in unknown)


def test_the_help_of_the_stand_in_program() -> None:
    """The text the other tests use is one that can be read."""
    source = (Path(__file__).parents[2] / "programs" / "fake_version_tool.py").read_text()
    assert "--reverse-prompt" in known(source.partition('HELP = """\\\n')[2]).names
