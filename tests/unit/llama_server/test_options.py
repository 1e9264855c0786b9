"""The command line of juggler-llama-server, against llama.cpp b11434's parser."""

from pathlib import Path

import pytest

from juggler.llama_server.options import OPTIONS, UsageError, parse, usage


def parsed(*arguments: str, **environ: str) -> dict[str, object]:
    return parse(arguments, environ).values


def refusal(*arguments: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(arguments, environ)
    return str(caught.value)


def test_value_is_the_next_word() -> None:
    """Values stand in a word of their own, whatever they look like."""
    assert parsed("-m", "a.gguf", "--port", "8081", "-c", "4096") == {
        "model.path": "a.gguf",
        "port": 8081,
        "n_ctx": 4096,
    }
    assert parsed("-m", "--port") == {"model.path": "--port"}


@pytest.mark.parametrize("word", ["--port=8081", "--po", "-p", "--no-mmap", "--mmap", "--mlock", "-dio", "file.gguf"])
def test_unknown_words_are_refused(word: str) -> None:
    """No equals signs, no abbreviations, no options of older builds, no positional arguments."""
    assert refusal("-m", "a.gguf", word) == f"error: invalid argument: {word}"


def test_underscores_are_dashes_in_long_names_only() -> None:
    """``--ctx_size`` is ``--ctx-size``; the refusal names what was understood."""
    assert parsed("--ctx_size", "1") == {"n_ctx": 1}
    assert refusal("--no_such") == "error: invalid argument: --no-such"
    assert refusal("-n_p") == "error: invalid argument: -n_p"


def test_missing_value() -> None:
    """An option at the end lacks its value."""
    assert refusal("--port").startswith('error while handling argument "--port": expected value for argument')


def test_bare_flash_attention_swallows_the_next_word() -> None:
    """``-fa`` has needed on, off or auto since 2025-08; the next option is taken for its value and refused."""
    assert parsed("-fa", "on") == {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED"}
    assert parsed("-fa", "auto") == {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_AUTO"}
    assert "error: unknown value for --flash-attn: '--ctx-size'" in refusal("-fa", "--ctx-size", "1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--port", "x"), "stoi"),
        (("-c", "99999999999"), "stoi: out of range"),
        (("--temp", "warm"), "stof"),
        (("-ctk", "q3"), "Unsupported cache type: q3"),
        (("-np", "0"), "invalid value for n_parallel"),
        (("--sleep-idle-seconds", "0"), "cannot be 0 or less than -1"),
        (("--load-mode", "fast"), "invalid value"),
        (("--fit", "maybe"), "unknown value for --fit: 'maybe'"),
        (("--slot-save-path", "/nowhere/at/all"), "not a directory: /nowhere/at/all"),
        (("--api-key-file", "/nowhere"), "failed to open file '/nowhere'"),
        (("--lora-scaled", "a"), "FNAME:SCALE"),
    ],
)
def test_bad_values_name_option_and_reason(arguments: tuple[str, ...], text: str) -> None:
    """A value that cannot be read is refused with llama.cpp's own words."""
    message = refusal(*arguments)
    assert message.startswith(f'error while handling argument "{arguments[0]}"')
    assert text in message


def test_numbers_are_read_as_cpp_reads_them() -> None:
    """Leading digits count, what follows is ignored; a negative number is a value, not an option."""
    assert parsed("-c", "12k", "--cache-ram", "-1", "--temp", "0.5x") == {
        "n_ctx": 12,
        "cache_ram_mib": -1,
        "sampling.temp": 0.5,
    }
    assert parsed("-s", "-1") == {"sampling.seed": 2**32 - 1}


def test_gpu_layers_have_words() -> None:
    """``auto`` and ``all`` stand for -1 and -2; 0 stays 0."""
    assert [parsed("-ngl", word)["n_gpu_layers"] for word in ("auto", "all", "99", "0")] == [-1, -2, 99, 0]


def test_last_one_wins_with_a_warning() -> None:
    """A repeated option is accepted, its last value counts, and a warning says so."""
    result = parse(["--port", "1", "--port", "2"], {})
    assert result.values == {"port": 2}
    assert result.warnings[0].startswith("DEPRECATED: argument '--port' specified multiple times")


def test_flags_have_two_sides() -> None:
    """Positive and negative names store opposite values, the last one counts."""
    assert parsed("--no-slots") == {"endpoint_slots": False}
    assert parsed("--no-slots", "--slots") == {"endpoint_slots": True}
    assert parsed("--no-kv-offload") == {"no_kv_offload": True}
    assert parsed("-kvu") == {"kv_unified": True}


def test_keys_add_up(tmp_path: Path) -> None:
    """Keys may come as list, repeated, and from a file with empty lines."""
    file = tmp_path / "keys"
    file.write_text("three\n\n four \n")
    assert parsed("--api-key", "one,two", "--api-key-file", str(file)) == {"api_keys": ["one", "two", "three", "four"]}


def test_lora_forms() -> None:
    """Plain adapters have scale 1, scaled ones their own; a Windows path keeps its colon."""
    assert parsed("--lora", "a,b", "--lora-scaled", "C:\\x:0.5") == {"@lora": [("a", 1.0), ("b", 1.0), ("C:\\x", 0.5)]}


def test_slot_directory_gets_its_separator(tmp_path: Path) -> None:
    """The server puts directory and file name together without one."""
    assert parsed("--slot-save-path", str(tmp_path)) == {"slot_save_path": f"{tmp_path}/"}


def test_environment_counts_and_the_command_line_beats_it() -> None:
    """LLAMA_ARG_* stand for options; the command line wins, with a warning, and replaces lists."""
    assert parsed(LLAMA_ARG_HOST="0.0.0.0", LLAMA_ARG_PORT="1") == {"hostnames": ["0.0.0.0"], "port": 1}
    result = parse(["--port", "2", "--api-key", "mine"], {"LLAMA_ARG_PORT": "1", "LLAMA_API_KEY": "theirs"})
    assert result.values == {"port": 2, "api_keys": ["mine"]}
    assert result.warnings[0].startswith("warn: LLAMA_ARG_PORT environment variable is set")
    assert parsed(LLAMA_ARG_ENDPOINT_SLOTS="0", LLAMA_ARG_JINJA="true") == {"endpoint_slots": False, "use_jinja": True}
    assert 'environment variable "LLAMA_ARG_PORT": stoi' in refusal(LLAMA_ARG_PORT="x")


def test_no_name_is_used_twice() -> None:
    """The table is one namespace."""
    names = [name for option in OPTIONS for name in (*option.names, *option.negative)]
    assert len(names) == len(set(names))


def test_usage_names_every_option() -> None:
    """The help cannot forget an option."""
    text = usage()
    assert all(name in text for option in OPTIONS for name in (*option.names, *option.negative))


def test_every_target_exists_in_the_wheel() -> None:
    """The table writes to attributes that CommonParams has, and names constants that exist."""
    engine = pytest.importorskip("xllamacpp")
    parameters = engine.CommonParams()
    for option in OPTIONS:
        if not option.target.startswith("@"):
            holder = parameters
            for name in option.target.split("."):
                assert hasattr(holder, name), option.target
                holder = getattr(holder, name)
