"""Pages for people whose browser opened an endpoint that cannot show its own yet. Pure.

One document without picture or anything from elsewhere; its style and its one line of script are allowed by their
digests, everything else is forbidden to it. The page of a wait loads itself again until the backend's own page comes
in its place. What names and texts hold, they show, and nothing else.

The script is for addresses with a fragment (``/#workflow``): to "refresh" those, browsers scroll to the fragment
and load nothing (WHATWG HTML, navigate; seen in Chromium 150). Where scripts do not run, the refresh has to do.
"""

import base64
import hashlib
import math
from html import escape

from juggler.errors import JugglerError, NotLoaded, NotReady
from juggler.proxy.contract import LocalResponse
from juggler.units import format_duration

REFRESH_S = 2
"""Whole seconds after which a page of a wait asks again."""

_RETRY_AFTER_MOST_S = 120

_STYLE = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "body{margin:0;min-height:100vh;display:grid;place-items:center}"
    "main{max-width:40rem;padding:2rem;box-sizing:border-box;width:100%;overflow-wrap:anywhere}"
    "h1{font-size:1.5rem;font-weight:600;margin:0 0 1rem}"
    "progress{width:100%;height:.5rem;accent-color:light-dark(#1a5fb4,#78aeed)}"
    ".small{font-size:.875rem}"
    "a{color:light-dark(#1a5fb4,#99c1f1)}"
    "pre{overflow:auto;max-height:50vh;padding:1rem;border:1px solid;border-radius:.5rem;font-size:.8125rem;"
    "white-space:pre-wrap}"
)
_SCRIPT = f"setTimeout(()=>location.reload(),{REFRESH_S}000)"


def _source(text: str) -> str:
    """What allows exactly this style or script (Content Security Policy Level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

PAGE_TYPE = "text/html; charset=utf-8"
PLAIN_FIELDS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
"""Further fields of every answer of our own to a client of a backend."""
PAGE_POLICY = ("Content-Security-Policy", _POLICY)
"""One more of every page."""


def waiting_page(name: str, why: str, expected_s: float, waited_s: float) -> LocalResponse:
    """The answer to a browser whose page has to wait for its backend.

    Args:
        name: Of the endpoint.
        why: What stands in the way, as a clause; may be empty.
        expected_s: About how many seconds more.
        waited_s: Seconds so far.
    """
    known = math.isfinite(expected_s)
    shown = _bdi(name)
    told = f"<p>{_sentence(why)}</p>" if why else ""
    more = f"About {format_duration(max(1.0, round(expected_s)))} more are expected." if known else ""
    bar = _bar(waited_s, expected_s) if known else ""
    body = (
        f"<h1>{shown} is being loaded</h1>{told}{bar}"
        f"<p>{more} This page asks again by itself, and {shown} appears here when it is ready.</p>"
        f'<p class="small">It has waited for {format_duration(round(waited_s))} so far. <a href="">Ask now</a></p>'
    )
    seconds = min(max(1, math.ceil(expected_s)), _RETRY_AFTER_MOST_S) if known else _RETRY_AFTER_MOST_S
    fields = (("X-Juggler", "waiting"), ("Retry-After", str(seconds)), *PLAIN_FIELDS, PAGE_POLICY)
    return LocalResponse(503, _document(f"{name} is being loaded", body, refreshes=True), PAGE_TYPE, fields)


def error_page(error: JugglerError) -> bytes:
    """The document that tells a person of an error.

    It asks again by itself only while somebody else's request has the backend loaded: anything else would try what
    has just failed, again and again.
    """
    loading = isinstance(error, NotReady) and not isinstance(error, NotLoaded)
    title = f"{error.endpoint} is loading" if loading else f"{error.endpoint or 'This address'} cannot be shown"
    parts = [f"<h1>{_plain(title)}</h1>", f"<p>{_sentence(error.message)}</p>"]
    if error.hint:
        parts.append(f"<p>{_sentence(error.hint)}</p>")
    if error.log_tail:
        lines = "\n".join(error.log_tail)
        parts.append(f'<p class="small">Its last output:</p><pre tabindex="0">{_plain(lines)}</pre>')
    said = f"{error.status} {error.code}"
    if error.exit_status is not None:
        said += f", exit status {error.exit_status}"
    parts.append(f'<p class="small">{escape(said)}. <a href="">Try again</a></p>')
    return _document(title, "".join(parts), refreshes=loading)


def _document(title: str, body: str, *, refreshes: bool) -> bytes:
    again = f'<script>{_SCRIPT}</script><noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>'
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{again if refreshes else ""}'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f'<link rel="icon" href="data:,"><title>{_plain(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )
    return text.encode("utf-8", "replace")


def _bar(waited_s: float, expected_s: float) -> str:
    total = max(1.0, waited_s + expected_s)
    return f'<progress aria-label="Waiting" max="{total:.1f}" value="{min(waited_s, total):.1f}"></progress>'


def _sentence(clause: str) -> str:
    text = clause[:1].upper() + clause[1:]
    return _plain(text if text.endswith((".", "!", "?")) else text + ".")


def _bdi(name: str) -> str:
    """A name whose direction of writing is its own."""
    return f"<bdi>{_plain(name)}</bdi>"


def _plain(text: str) -> str:
    """Text as it is shown: nothing in it is markup, and what no document may hold is left out."""
    return escape("".join(one for one in text if one >= " " or one in "\n\t"))
