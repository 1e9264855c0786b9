"""Writes what ``ollama pull`` leaves on the disk: manifests, and blobs named by what they hold (``manifest/``)."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from tests.unit.survey.gguf_files import LLAMA, Written, head

KIND = "application/vnd.ollama.image."


def write_model(
    store: Path,
    name: str = "small",
    *,
    tag: str = "latest",
    namespace: str = "library",
    host: str = "registry.ollama.ai",
    layers: Mapping[str, str | bytes] | None = None,
    gguf: Mapping[str, Written] | None = LLAMA,
    config: Mapping[str, object] | None = None,
    modified_ns: int = 1_700_000_000_123_456_789,
) -> Path:
    """One model; returns its manifest.

    Args:
        store: As ``OLLAMA_MODELS``.
        name: Without a tag.
        tag: As in names.
        namespace: As in names.
        host: As in names.
        layers: Kind (``template``, ``params``...) to what it holds.
        gguf: Values of the model file's head; None: there is no such layer.
        config: What the configuration says beyond the usual.
        modified_ns: When the manifest was written.
    """
    usual = {"model_format": "gguf", "model_family": "llama", "model_families": ["llama"]}
    usual |= {"model_type": "1B", "file_type": "Q4_0"}
    listed = [_layer(store, "model", head(gguf), **{"from": "/blobs/parent"})] if gguf is not None else []
    for kind, held in (layers or {}).items():
        listed.append(_layer(store, kind, held if isinstance(held, bytes) else held.encode()))
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _layer(store, "config", json.dumps({**usual, **(config or {})}).encode()),
        "layers": listed,
    }
    path = store / "manifests" / host / namespace / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    os.utime(path, ns=(modified_ns, modified_ns))
    return path


def _layer(store: Path, kind: str, held: bytes, **more: str) -> dict[str, object]:
    digest = hashlib.sha256(held).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(held)
    return {"mediaType": f"{KIND}{kind}", "digest": f"sha256:{digest}", "size": len(held), **more}
