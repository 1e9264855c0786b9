"""What is told of the configuration in effect, and of the last reload. Plain data."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from juggler.backends.secrets import MASK, SECRET_NAME, redacted, secrets_of
from juggler.config.resolve import ResolvedConfig
from juggler.logs.masking import without_keys
from juggler.reload.outcome import ReloadOutcome
from juggler.reload.reloader import Reloader

_WORDS = re.compile(r"[\w-]+")


def outcome_data(outcome: ReloadOutcome, reloader: Reloader, config: ResolvedConfig) -> dict[str, object]:
    """What came of a reload, for others than the operator's own terminal: without lines that may hold secrets."""
    secrets = _secrets_now(reloader, config)
    data = outcome.as_data()
    data["problems"] = problems = [_masked(one, secrets) for one in outcome.problems]
    errors = [one for one in problems if one["severity"] == "error"]
    if not outcome.ok and errors:
        data["message"] = "; ".join(f"{_place(one)}{one['message']}" for one in errors)
    return data


def summary(reloader: Reloader, config: ResolvedConfig) -> dict[str, object]:
    """Where the configuration came from, how many problems it has, what the last reload did."""
    last, running = reloader.last, reloader.running
    return {
        "path": str(reloader.path) if reloader.path is not None else None,
        "loaded_at": round(reloader.loaded_at, 3),
        "digest": running.digest if running is not None else None,
        "problems": len(running.warnings) if running is not None else 0,
        "last_reload": outcome_data(last, reloader, config) if last is not None else None,
    }


def report(reloader: Reloader, config: ResolvedConfig) -> dict[str, object]:
    """The same with the text and the problems of the file, and what is in effect; secrets masked."""
    running, secrets = reloader.running, _secrets_now(reloader, config)
    return {
        **summary(reloader, config),
        "text_masked": _shown(running.text, secrets) if running is not None else None,
        "effective": _plain(config, secrets),
        "problems": [_masked(one.as_dict(), secrets) for one in running.warnings] if running is not None else [],
    }


def _masked(problem: Mapping[str, object], secrets: Sequence[str]) -> dict[str, object]:
    """Without what is known to be secret; without its line, if that names something that may be."""
    told = {key: _shown(one, secrets) if isinstance(one, str) else one for key, one in problem.items()}
    if any(SECRET_NAME.search(word) for word in _WORDS.findall(str(told.get("excerpt", "")))):
        told["excerpt"] = ""
    return told


def _place(problem: Mapping[str, object]) -> str:
    return "" if problem["line"] is None else f"{problem['path']}:{problem['line']}:{problem['column']}: "


def _secrets_now(reloader: Reloader, config: ResolvedConfig) -> list[str]:
    running = reloader.running
    return _secrets([config, *([running.config] if running is not None else [])])


def _secrets(configs: Sequence[ResolvedConfig]) -> list[str]:
    """Every secret, as it is and as it stands in JSON."""
    settings = [one.settings for config in configs for one in config.instances]
    found = {word for one in settings for word in secrets_of(one.parameters, one.env)}
    found |= {config.control.key for config in configs if config.control is not None and config.control.key}
    found |= {json.dumps(word)[1:-1] for word in found} | {json.dumps(word, ensure_ascii=False)[1:-1] for word in found}
    return sorted(found, key=len, reverse=True)


def _plain(value: object, secrets: Sequence[str]) -> object:
    """Data of the program as JSON knows it, its texts masked."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {one.name: _plain(getattr(value, one.name), secrets) if one.repr else MASK for one in fields}
    if isinstance(value, dict):
        return {_shown(str(key), secrets): _plain(one, secrets) for key, one in value.items()}
    if isinstance(value, int | float | bool) or value is None:
        return value
    if isinstance(value, Iterable) and not isinstance(value, str | Path):
        return [_plain(one, secrets) for one in value]
    return _shown(str(value), secrets)


def _shown(text: str, secrets: Sequence[str]) -> str:
    return without_keys(redacted([text], secrets)[0])
