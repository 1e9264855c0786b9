"""From a file to a checked configuration: the seed's own file, broken files, and files that are none."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from juggler.config.load import ConfigFileError, LoadedConfig, load_config, load_text
from juggler.config.problems import Position
from juggler.config.resolve import resolve
from juggler.config.schema import MODELS, keys_of
from juggler.config.tree import FILE_BYTES_MAX
from juggler.errors import ConfigError

SEED = Path(__file__).parent / "data" / "seed.json"

BACKENDS = '"backends": {"llamacpp": {"binary": "/x"}}'
SERVERS = '"servers": [{"name": "S", "port": 8021, "endpoints": [{"name": "E", "backend": "llamacpp"}]}]'


def problems_of(text: str, path: str = "c.json") -> list[dict[str, Any]]:
    """What is wrong with a text that must not load."""
    with pytest.raises(ConfigError) as caught:
        load_text(text, path, "yaml" if path.endswith("yaml") else "json")
    problems = caught.value.details["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        word = "" if problem["severity"] == "error" else "warning: "
        line = f"{path}:{problem['line']}:{problem['column']}: {word}{problem['message']}"
        assert line in caught.value.message.splitlines()
    return problems


def test_the_seed_file_loads_byte_for_byte() -> None:
    """The seed's example, trailing commas included, loads without a warning and with everything in it."""
    loaded = load_config(SEED)
    config = loaded.config
    assert loaded.warnings == ()
    assert list(config.backends) == ["llamacpp", "sdwebui", "koboldcpp", "comfyui", "ollama"]
    assert [(server.name, server.host, server.port) for server in config.servers] == [
        ("LLM", "localhost", 8021),
        ("Image generation", "localhost", 8022),
    ]
    assert [endpoint.name for server in config.servers for endpoint in server.endpoints] == [
        "Vision LLM", "Qwen 3 MoE", "Ollama", "Default LLM", "Stable Diffusion", "ComfyUI",
    ]  # fmt: skip
    assert [(entry.server, entry.endpoint) for entry in config.warmup] == [
        ("Image generation", "Stable Diffusion"),
        ("LLM", "Vision LLM"),
    ]
    assert config.temp_dir == "/tmp/ai-model-juggler/"
    assert config.backends["llamacpp"].default_parameters == ["-ngl", "99", "--no-mmap", "-fa"]
    assert config.servers[0].endpoints[0].kv_cache_saving is False
    assert config.servers[0].endpoints[3].kv_cache_saving is True
    assert config.servers[1].endpoints[0].strip_prefix is False


def test_places_are_known_for_every_value() -> None:
    """What comes later (a port in use, a missing program) can point into the file."""
    loaded = load_config(SEED)
    assert loaded.location("servers", 0, "port") == Position(34, 21)
    assert loaded.key_location("servers", 0, "port") == Position(34, 13)
    assert loaded.location("backends", "ollama", "binary") == Position(27, 23)
    assert loaded.is_written("backends", "ollama", "binary")
    assert not loaded.is_written("backends", "ollama", "cwd")


def test_the_seed_file_loads_fast() -> None:
    """Start to listening is promised in half a second; reading takes at most 30 ms of it."""
    load_config(SEED)
    spent_s = []
    for _ in range(5):
        began = time.process_time()
        load_config(SEED)
        spent_s.append(time.process_time() - began)
    assert min(spent_s) < 0.03


def config(top: str = "", *, backends: str = BACKENDS, servers: str = SERVERS) -> str:
    """A configuration in three lines: backends, servers, and whatever else."""
    return "{" + ",\n".join(part for part in (backends, servers, top) if part) + "}"


def backend(keys: str, name: str = "llamacpp") -> str:
    return config(backends=f'"backends": {{"{name}": {{{keys}}}}}', servers=SERVERS.replace("llamacpp", name))


def server(old: str, new: str) -> str:
    assert old in SERVERS
    return config(servers=SERVERS.replace(old, new))


MARK = "\N{BROKEN BAR}"
"""Stands where the problem must be reported; taken out before the text is read."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{" + BACKENDS + MARK + "\n" + SERVERS + "}", 'missing "," between "backends" and the next entry'),
        (MARK + "{" + BACKENDS + "}", 'the key "servers" is missing'),
        (MARK + "{" + SERVERS + "}", 'the key "backends" is missing'),
        (MARK + "[]", "the configuration must be an object: { }, not a list"),
        (config(servers='"servers": ¦{}'), '"servers" must be a list: [ ], not an object'),
        (config(servers='"servers": ¦[]'), '"servers" must not be empty'),
        (config('¦"tmp_dir": 1'), 'unknown key "tmp_dir"'),
        (config('"temp_dir": ¦1'), '"temp_dir" must be a text in double quotes, not the number 1'),
        (config('"temp_dir": ¦""'), '"temp_dir": the path is empty'),
        (server("8021", '¦"8021"'), '"port" must be a whole number, not the text "8021"'),
        (server("8021", "¦80.0"), '"port" must be a whole number, not the number 80.0'),
        (server("8021", "¦0"), '"port" must be at least 1, not the number 0'),
        (server("8021", "¦65536"), '"port" must be at most 65535, not the number 65536'),
        (server('{"name": "S", "port": 8021, ', '¦{"name": "S", '), 'the key "port" is missing in this server'),
        (server('{"name": "E", ', "¦{"), 'the key "name" is missing in this endpoint'),
        (server('"E"', '¦" "'), '"name": a name needs at least one visible character and no control characters'),
        (
            server('"port"', '"host": ¦"[::1]", "port"'),
            '"host": an IPv6 address is written without brackets here: "::1"',
        ),
        (server('"llamacpp"', '¦"lamacpp"'), 'there is no backend "lamacpp"'),
        (server('"backend"', '"concurrency": ¦0, "backend"'), '"concurrency" must be at least 1, not the number 0'),
        (
            server('"backend"', '"priority": ¦"high", "backend"'),
            '"priority" must be "interactive", "batch" or a whole number, not the text "high"',
        ),
        (
            server('"backend"', '"max_priority": ¦"urgent", "backend"'),
            '"max_priority" must be "interactive", "batch" or a whole number, not the text "urgent"',
        ),
        (server('"backend"', '"priority": ¦101, "backend"'), '"priority" must be at most 100, not the number 101'),
        (
            server('"backend"', '"traffic": [{"match": ¦"/x", "class": "light"}], "backend"'),
            '"match": \'/x\' is not a traffic pattern: write "GET /path", "POST|PUT /api/*" or "* /ws"',
        ),
        (
            server('"backend"', '"traffic": [{"match": ¦"get /x", "class": "light"}], "backend"'),
            '"match": \'get /x\': methods are upper-case words joined by "|", or "*"',
        ),
        (
            server('"backend"', '"memory": {"gpu0": ¦true}, "backend"'),
            '"gpu0": expected a size: bytes, or text such as "18GiB"',
        ),
        (config('"control": ¦true'), '"control" must be false or an object, not true'),
        (config('"control": {¦"prot": 1}'), 'unknown key "prot"'),
        (
            config('"memory": {"pools": {"gpu0": ¦"24GX"}}'),
            '"gpu0": \'24GX\' is not a size: give bytes, or text such as "18GiB", "500MB" or "64k"',
        ),
        (config('"memory": {"pools": ¦"all"}'), '"pools" must be "auto" or "exclusive", not the text "all"'),
        (config('"memory": {"pools": ¦{}}'), '"pools" must not be empty'),
        (
            config('"scheduler": {"max_wait": ¦"soon"}'),
            '"max_wait": \'soon\' is not a duration: give seconds, or text such as "90s", "10m" or "1h30m"',
        ),
        (
            config('"scheduler": {"dial": ¦"fast"}'),
            '"dial" must be "fair", "balanced" or "throughput", not the text "fast"',
        ),
        (config('"scheduler": {"queue_limit": ¦true}'), '"queue_limit" must be a whole number, not true'),
        (config('"scheduler": {"beta": ¦-1}'), '"beta" must be at least 0, not the number -1'),
        (
            config('"kv_cache": {"quota": ¦"2000TiB"}'),
            '"quota": the size is larger than 1024 TiB',
        ),
        (
            config(backends='"backends": {¦"mine": {"binary": "/x"}}', servers=SERVERS.replace("llamacpp", "mine")),
            '"mine" is no backend type, and the backend has no "type"',
        ),
        (
            config(backends='"backends": {¦"llamacpp": {}}'),
            'the backend "llamacpp" of type llamacpp needs "binary"',
        ),
        (backend('"binary": ¦["/x"]'), '"binary" must be a text in double quotes, not a list'),
        (
            backend('"binary": "/x", "default_parameters": ["-ngl", ¦99]'),
            'entry 2 of "default_parameters" must be a text in double quotes, not the number 99',
        ),
        (
            backend('"binary": "/x", "env": {¦"A=B": "1"}'),
            'the name of an environment variable must not be empty or hold "="',
        ),
        (backend('"binary": "/x", "start_timeout": ¦0'), '"start_timeout": the duration must be longer than zero'),
        (
            backend('"binary": "/x", "stop_timeout": ¦"9999d"'),
            '"stop_timeout": the duration is longer than 366 days; nothing waits for ever here',
        ),
        (backend('"binary": ¦"a\\u0000b"'), '"binary": the text holds a NUL character'),
        (
            backend('"binary": "/x", "unload": ¦"unload"', "command"),
            '"unload": expected an HTTP call: "POST /path", or an object with "method" and "path"',
        ),
        (
            backend('"binary": "/x", "busy": {"path": "/q", "busy_when": ¦"a b"}', "command"),
            '"busy_when": \'a b\' is not a condition: write "key.path > 0", "state.job != \\"\\"" or "busy"',
        ),
        (backend('"binary": "/x", "wake": {"path": "/q", ¦"busy_when": "a"}', "command"), 'unknown key "busy_when"'),
        (config('"warmup": [¦{"server": "S"}]'), 'the key "endpoint" is missing in this warm-up entry'),
    ],
)
def test_broken_configurations(text: str, message: str) -> None:
    """Each mistake is told in one sentence at its exact place, alone."""
    before = text.partition(MARK)[0]
    assert before != text
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    (problem,) = problems_of(text.replace(MARK, ""))
    assert (problem["line"], problem["column"], problem["message"]) == (*place, message)


@pytest.mark.parametrize(
    ("broken", "hint"),
    [
        ('{"backends": {"llamacpp": {"binry": "/x"}}}', 'did you mean "binary"?'),
        ('{"backends": {"llamacpp": {"defaultParameters": []}}}', 'did you mean "default_parameters"?'),
        ('{"backends": {"llamacpp": {"parameters": []}}}', '"parameters" is a key of an endpoint'),
        ('{"backends": {"llamacpp": {"port": 1}}}', '"port" is a key of "control" and of a server'),
        ('{"backends": {}, "servers": [{"zzzzqq": 1}]}', "known keys here: name, host, port, tls, limits, endpoints"),
        ('{"backends": {"a": {"model_unloading": "yes"}}}', "write true, without quotes"),
        ('{"backends": {"a": {"default_parameters": [7]}}}', 'write "7", in double quotes'),
        ('{"backends": {"a": {"default_parameters": "-x"}}}', 'write ["-x"]'),
        ('{"backends": {}, "servers": {"name": "S"}}', "put it into a list: [ { ... } ]"),
        ('{"backends": {"a": {"type": "lamacpp"}}}', 'did you mean "llamacpp"?'),
        (
            '{"memory": {"pools": {"gpu0": "exclusive"}}}',
            'for all memory together write "pools": "exclusive"',
        ),
        (server('"backend"', '"priority": "-5", "backend"'), "write -5, without quotes"),
    ],
)
def test_hints(broken: str, hint: str) -> None:
    """A near miss is answered with what was meant."""
    assert hint in [problem["hint"] for problem in problems_of(broken)]


def test_all_problems_are_told_at_once() -> None:
    """Form, values and references: one run tells everything, in the order of the file."""
    text = """{
    'temp_dir': "/t",
    "backends": {"llamacpp": {"binary": "/x"} "demo": {}},
    "servers": [
        {"name": "S", "port": 8021, "colour": "red", "endpoints": [
            {"name": "E", "backend": "lamacpp"}
        ]}
    ],
    "warmup": [{"server": "X", "endpoint": "E"}]
}"""
    assert [(p["line"], p["column"], p["code"]) for p in problems_of(text)] == [
        (2, 5, "quotes"),
        (3, 46, "missing-comma"),
        (5, 37, "unknown-key"),
        (6, 38, "unknown-backend"),
        (9, 27, "unknown-warmup"),
    ]


def test_no_follow_on_problems_are_told() -> None:
    """A misspelt "binary" is one problem, not two."""
    text = '{"backends": {"llamacpp": {"binry": "/x"}},' + SERVERS + "}"
    assert [problem["code"] for problem in problems_of(text)] == ["unknown-key"]


@pytest.mark.parametrize("written", ['"$schema": "x"', '"_note": [1]', '"x-y": {"a": null}', '"_a": 1, "_a": 2'])
def test_remarks_are_ignored_everywhere(written: str) -> None:
    """``$schema``, ``_...`` and ``x-...`` in every object, and whole backends and pools named so."""
    text = (
        '{%s, "memory": {%s, "pools": {"gpu0": 8, %s}}, "backends": {"_old": 5, "llamacpp": {"binary": "/x", %s}},'
        ' "servers": [{"name": "S", "port": 1, %s, "endpoints": [{"name": "E", "backend": "llamacpp", %s}]}]}'
    ) % ((written,) * 6)
    loaded = load_text(text)
    assert (list(loaded.config.backends), loaded.config.memory.pools, loaded.warnings) == (
        ["llamacpp"],
        {"gpu0": 8},
        (),
    )


def test_environment_names_are_no_remarks() -> None:
    """``_JAVA_OPTIONS`` is a real variable."""
    text = '{"backends": {"demo": {"env": {"_A": "1", "x-b": "2"}}},' + SERVERS.replace("llamacpp", "demo") + "}"
    assert load_text(text).config.backends["demo"].env == {"_A": "1", "x-b": "2"}


def test_null_is_left_out() -> None:
    """A key without a value, as YAML makes them, has its default; a backend without settings is one."""
    text = "backends:\n  demo:\nservers:\n  - name: S\n    port: 1\n    host:\n    endpoints:\n" \
        "      - {name: E, backend: demo, memory: }\n"  # fmt: skip
    loaded = load_text(text, "c.yaml", "yaml")
    assert loaded.config.servers[0].host == "127.0.0.1"
    assert loaded.config.backends["demo"].type is None


def test_path_warnings_survive_a_good_load() -> None:
    """A tab inside a Windows path loads, with a warning."""
    loaded = load_text(r'{"backends": {"llamacpp": {"binary": "C:\tools\new.exe"}},' + SERVERS + "}")
    assert [problem.code for problem in loaded.warnings] == ["path-escape"]


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        (b'{\n"a": "\xff"}', "2:7", "the byte 0xff is not UTF-8"),
        ("{}".encode("utf-16"), "1:1", "the file is UTF-16, not UTF-8"),
        (b"", "1:1", "the file is empty"),
        (b" " * (FILE_BYTES_MAX + 1), "1:1", f"the file is larger than {FILE_BYTES_MAX} bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, place: str, message: str) -> None:
    """Wrong encodings and sizes are the content's fault: an ordinary problem with a place."""
    file = tmp_path / "c.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert not isinstance(caught.value, ConfigFileError)
    assert caught.value.message.startswith(f"{file}:{place}: {message}")


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    """Files from Windows editors load, and columns do not count the mark."""
    file = tmp_path / "c.json"
    file.write_bytes(b"\xef\xbb\xbf" + SEED.read_bytes().replace(b"\n", b"\r\n"))
    loaded = load_config(file)
    assert loaded.config == load_config(SEED).config
    assert loaded.location() == Position(1, 1)
    assert loaded.location("servers", 0, "port") == Position(34, 21)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".YML"])
def test_yaml_by_file_ending(tmp_path: Path, suffix: str) -> None:
    """The ending decides; the seed's file is also YAML."""
    file = tmp_path / f"c{suffix}"
    file.write_bytes(SEED.read_bytes())
    assert load_config(file).config == load_config(SEED).config
    file.write_text("backends: {demo: }\nservers:\n- {name: S, port: x, endpoints: []}\n")
    with pytest.raises(ConfigError, match=r":3:19: \"port\" must be a whole number"):
        load_config(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing or unreadable file is told apart from a wrong one: another exit status."""
    with pytest.raises(ConfigFileError, match="there is no such file"):
        load_config(tmp_path / "none.json")
    with pytest.raises(ConfigFileError, match="is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigFileError, match="cannot be read"):
        load_config("a\x00b")
    locked = tmp_path / "locked.json"
    locked.write_text("{}")
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        with pytest.raises(ConfigFileError, match="cannot be read"):
            load_config(locked)


def test_surrogates_in_a_text_given_by_a_program() -> None:
    """Text that cannot be encoded is refused before it reaches anything that encodes."""
    assert [problem["code"] for problem in problems_of('{"a": "\ud800"}')] == ["encoding"]


def load_or_refuse(text: str, form: str) -> LoadedConfig | None:
    try:
        return load_text(text, f"c.{form}", "yaml" if form == "yaml" else "json")
    except ConfigError as error:
        problems = error.details["problems"]
        if not problems or not error.message:
            pytest.fail("refused without a reason")
        return None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from(["json", "yaml"]))
def test_mutated_configurations_load_or_are_refused(seed: int, mutations: int, form: str) -> None:
    """Cut, doubled and overwritten pieces of the seed's file never raise anything but ConfigError."""
    rng = random.Random(seed)
    text = SEED.read_text()
    for _ in range(mutations):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice((0, 1, 3, 40, 400)))
        pieces = (
            "",
            '"',
            "}",
            "]",
            ",",
            "{",
            "\\",
            "null",
            "1e400",
            '"\\ud800"',
            "\x00",
            "é",
            text[start:end] * 2,
            "'",
            "#",
        )
        text = text[:start] + rng.choice(pieces) + text[end:]
    load_or_refuse(text, form)


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([10**400, -1, "9" * 400 + "GiB", "9" * 400 + "h", "auto", "GET /x", "llamacpp", "/"]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(["name", "path", "gpu0", "pools", "port", "method", "body", "match", "class", "_x"]), inner
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_value_anywhere_loads_or_is_refused(data: st.DataObject) -> None:
    """Any JSON value in the place of any other never raises anything but ConfigError."""
    place = data.draw(st.sampled_from(sorted(MODELS)))
    key = data.draw(st.sampled_from(keys_of(MODELS[place])))
    document: Any = {
        "backends": {"command": {"binary": "/x"}},
        "servers": [{"name": "S", "port": 1, "endpoints": [{"name": "E", "backend": "command"}]}],
    }
    node = document
    for part in place:
        if part == "*":
            if isinstance(node, list):
                if not node:
                    node.append({})
                node = node[0]
            else:
                node = node["command"]
        else:
            node = node.setdefault(part, [] if part in ("traffic", "warmup") else {})
    node[key] = data.draw(_json_values)
    loaded = load_or_refuse(json.dumps(document), "json") if "Infinity" not in json.dumps(document) else None
    if loaded is not None:
        resolve(loaded)
