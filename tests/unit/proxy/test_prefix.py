"""Addresses in answers lead back to where they came from."""

import pytest

from juggler.proxy.prefix import Mount, map_cookie, map_location, outer_prefix

BACKEND = b"127.0.0.1:9"
STRIPPED = Mount(BACKEND, b"/p")
BARE = Mount(BACKEND, b"/p", bare=True)
NESTED = Mount(BACKEND, b"/p", b"/o")
PLAIN = Mount(BACKEND)


@pytest.mark.parametrize(
    ("value", "mapped"),
    [
        (b"/a?b", b"/p/a?b"),
        (b"/", b"/p/"),
        (b"/lcpp/", b"/p/lcpp/"),
        (b"http://127.0.0.1:9/lcpp/", b"/p/lcpp/"),
        (b"HTTP://127.0.0.1:9/a", b"/p/a"),
        (b"https://127.0.0.1:9/a", b"/p/a"),
        (b"http://localhost:9/a", b"/p/a"),
        (b"http://0.0.0.0:9/a", b"/p/a"),
        (b"http://[::1]:9/a", b"/p/a"),
        (b"http://127.0.0.1:9", b"/p/"),
        (b"http://127.0.0.1:9?q=1", b"/p/?q=1"),
        (b"http://127.0.0.1:9#f", b"/p/#f"),
        (b"http://127.0.0.1:90/a", b"http://127.0.0.1:90/a"),
        (b"http://localhost/a", b"http://localhost/a"),
        (b"http://other/a", b"http://other/a"),
        (b"http://other:9/a", b"http://other:9/a"),
        (b"//other/a", b"//other/a"),
        (b"mailto:a@b", b"mailto:a@b"),
        (b"a/b", b"a/b"),
        (b"?q", b"?q"),
        (b"", b""),
        (b"/p/a", b"/p/a"),
        (b"/p", b"/p"),
        (b"/p?q", b"/p?q"),
        (b"/pa", b"/p/pa"),
        (b"http://127.0.0.1:9/p/a", b"/p/a"),
    ],
)
def test_locations_below_a_stripped_prefix(value: bytes, mapped: bytes) -> None:
    """Only what points at the backend itself is mapped, and that always."""
    assert map_location(value, STRIPPED) == mapped


@pytest.mark.parametrize(
    ("mount", "value", "mapped"),
    [
        (PLAIN, b"/a", b"/a"),
        (PLAIN, b"http://127.0.0.1:9/a", b"/a"),
        (BARE, b"lcpp/", b"/p/lcpp/"),
        (BARE, b"?q", b"?q"),
        (BARE, b"#f", b"#f"),
        (BARE, b"", b""),
        (NESTED, b"/a", b"/o/p/a"),
        (NESTED, b"/p/a", b"/o/p/a"),
        (NESTED, b"/o/p/a", b"/o/p/a"),
        (Mount(BACKEND, b"", b"/o"), b"/a", b"/o/a"),
        (Mount(BACKEND, b"", b"/o"), b"/o/a", b"/o/a"),
        (Mount(b"box:9", b"/p"), b"http://127.0.0.1:9/a", b"http://127.0.0.1:9/a"),
        (Mount(b"[::1]:9", b"/p"), b"http://localhost:9/a", b"/p/a"),
    ],
)
def test_locations_elsewhere(mount: Mount, value: bytes, mapped: bytes) -> None:
    """Without prefix, at a bare one, behind a proxy that strips one too, and for attached servers."""
    assert map_location(value, mount) == mapped


@pytest.mark.parametrize(
    ("mount", "value", "mapped"),
    [
        (STRIPPED, b"a=b", b"a=b"),
        (STRIPPED, b"a=b; HttpOnly", b"a=b; HttpOnly"),
        (STRIPPED, b"a=b; Path=/; HttpOnly", b"a=b; Path=/p; HttpOnly"),
        (STRIPPED, b"a=b;path = /x ;Secure", b"a=b;path = /p/x;Secure"),
        (STRIPPED, b"a=b; Path=/p/x", b"a=b; Path=/p/x"),
        (STRIPPED, b"a=b; Path=x", b"a=b; Path=x"),
        (STRIPPED, b"__Host-a=b; Secure; Path=/", b"__Host-a=b; Secure; Path=/"),
        (BARE, b"a=b", b"a=b; Path=/p"),
        (BARE, b"a=b; Path=/", b"a=b; Path=/p"),
        (NESTED, b"a=b; Path=/", b"a=b; Path=/o/p"),
        (PLAIN, b"a=b; Path=/", b"a=b; Path=/"),
    ],
)
def test_cookie_paths(mount: Mount, value: bytes, mapped: bytes) -> None:
    """A cookie reaches its own backend and no other; the default path of the client's request is right already."""
    assert map_cookie(value, mount) == mapped


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        ([], b""),
        ([b""], b""),
        ([b"/"], b""),
        ([b"/a/"], b"/a"),
        ([b"/a", b"/b/c"], b"/a/b/c"),
        ([b"/a, /b"], b"/a/b"),
        ([b"a"], b""),
        ([b"//a"], b""),
        ([b"/a//b"], b""),
        ([b"/\\evil"], b""),
        ([b"/a b"], b""),
        ([b"/a?b"], b""),
        ([b"http://a/b"], b""),
    ],
)
def test_prefixes_of_proxies_in_front(values: list[bytes], prefix: bytes) -> None:
    """Only a plain path can end up in addresses that clients follow."""
    assert outer_prefix(values) == prefix


@pytest.mark.parametrize(
    ("location", "authority", "mapped"),
    [
        (b"https://box/x", b"box", b"/p/x"),
        (b"https://box:443/x", b"box", b"/p/x"),
        (b"http://box/x", b"box", b"/p/x"),  # it does not know that TLS ends in front of it
        (b"https://box:8443/x", b"box", b"https://box:8443/x"),
        (b"https://box:8443/x", b"box:8443", b"/p/x"),
        (b"http://box/x", b"box:80", b"/p/x"),
        (b"http://localhost:80/x", b"127.0.0.1:80", b"/p/x"),
        (b"https://box/x", b"box:80", b"https://box/x"),
        (b"https://[::1]/x", b"[::1]", b"/p/x"),
    ],
)
def test_usual_ports(location: bytes, authority: bytes, mapped: bytes) -> None:
    """With and without the port that the scheme has anyway."""
    assert map_location(location, Mount(authority, b"/p")) == mapped
