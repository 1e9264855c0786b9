"""Certificates as files, and what is said about connections that fail."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from juggler.tls import BadPair, ServerTls, explain, file_state, out_of_date, server_context, trusting_context
from tests.certificates import make_pair, write_authority

SERVER = ServerTls("box", "box:8443")


def test_a_good_pair(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    context = server_context(*pair)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert out_of_date(pair.cert, context) is None


def test_one_file_for_both(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.cert.read_bytes())
    assert out_of_date(both, server_context(both, both)) is None


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is told as what it is, at the file to blame."""
    good, other = make_pair(tmp_path), make_pair(tmp_path, name="other")
    none, text = tmp_path / "none", tmp_path / "text"
    text.write_text("hello")
    cut = tmp_path / "cut.pem"
    cut.write_text("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n")
    cut_key = tmp_path / "cut.key"
    cut_key.write_text("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(good.key.read_bytes(), None)
    form, way = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, way))
    for cert, key_file, part, why in (
        (none, good.key, "cert", "cannot be read: No such file"),
        (good.cert, none, "key", "cannot be read: No such file"),
        (good.cert, tmp_path, "key", "cannot be read: Is a directory"),
        (text, good.key, "cert", "holds no certificate"),
        (good.cert, text, "key", "holds no private key"),
        (good.key, good.cert, "cert", "holds no certificate"),
        (good.cert, locked, "key", "pass phrase"),
        (good.cert, other.key, "key", "does not belong"),
        (cut, good.key, "cert", "cannot be used"),
        (good.cert, cut_key, "key", "cannot be used"),
    ):
        with pytest.raises(BadPair, match=why) as raised:
            server_context(cert, key_file)
        assert raised.value.part == part


@pytest.mark.parametrize(("days", "said"), [(-1, "has expired"), (100, "is not valid yet")])
def test_dates(tmp_path: Path, days: int, said: str) -> None:
    """The certificate is used all the same: whoever made it may know better than our clock."""
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    pair = make_pair(tmp_path, not_after=end)
    assert out_of_date(pair.cert, server_context(*pair)) == said


def test_whom_we_believe(tmp_path: Path) -> None:
    """The system by default, a file alone, or anybody."""
    assert trusting_context(None).check_hostname
    ours = trusting_context(write_authority(tmp_path))
    assert (ours.check_hostname, len(ours.get_ca_certs())) == (True, 1)
    anybody = trusting_context(None, verify=False)
    assert (anybody.check_hostname, anybody.verify_mode) == (False, ssl.CERT_NONE)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "wants a certificate of its clients"),
        ("UNEXPECTED_EOF_WHILE_READING", "closed the connection"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "tlsv1 alert protocol version"),
    ],
)
def test_handshakes_that_fail(reason: str, said: str) -> None:
    error = ssl.SSLError(1, "text")
    error.reason = reason
    assert said in explain(error, SERVER).why


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (10, "has expired"),
        (9, "not valid yet"),
        (18, "signed by itself"),
        (20, "not trusted here"),
        (62, "for another name than box"),
        (64, "for another name than box"),
        (23, "was revoked"),
    ],
)
def test_certificates_that_do_not_verify(code: int, said: str) -> None:
    error = ssl.SSLCertVerificationError(1, "text")
    error.verify_code, error.verify_message = code, "was revoked"
    trouble = explain(error, SERVER)
    assert said in trouble.why
    assert bool(trouble.hint) is (code != 23)


def test_the_state_of_a_file(tmp_path: Path) -> None:
    """Changes with content and with replacement."""
    path = tmp_path / "x"
    assert file_state(path) is None
    path.write_text("1")
    first = file_state(path)
    (tmp_path / "y").write_text("1")
    (tmp_path / "y").replace(path)
    assert file_state(path) != first
