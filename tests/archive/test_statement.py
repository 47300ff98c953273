"""The statement of a run: in-toto's form, signatures that an independent program accepts, keys refused in time."""

import base64
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import make_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined] # it has no __all__

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.evidence.record import RECORD, STARTED, Record
from abathur_nb.evidence.run import write_record, write_started
from abathur_nb.evidence.statement import Checked, check_signers, check_statement, envelope, public_keys, signer
from abathur_nb.report import Check, Report

CHECKS = tuple(Check(f"is {status}", status) for status in ("pass", "warn", "fail", "error", "skip"))
HASHES = {name: sha256(name.encode()) for name in (RECORD, STARTED, "notebook.ipynb", "page.html")}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key.pem")


@pytest.fixture
def signing(settings: Settings, key: Path) -> Settings:
    return replace(settings, signing_key=str(key))


def made(settings: Settings, *checks: Check, verdict: Any = "pass") -> Record:
    report = Report("validate", checks)
    folder = write_started(settings, "validate", {"env": "development"})
    return write_record(folder, settings, verdict, reports=(report,))


def said(content: bytes) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(content)["payload"]))
    return statement


def test_it_names_every_file_by_its_hash_and_every_check_by_what_became_of_it(settings: Settings) -> None:
    record = made(settings, *CHECKS, verdict="fail")
    content = envelope(settings, record, HASHES)
    assert json.loads(content)["payloadType"] == "application/vnd.in-toto+json"
    assert json.loads(content)["signatures"] == []
    statement = said(content)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert {one["name"]: one["digest"] for one in statement["subject"]} == {
        name: {"sha256": digest} for name, digest in HASHES.items()
    }
    predicate = statement["predicate"]
    assert predicate["passedTests"] == ["validate: is pass"]
    assert predicate["warnedTests"] == ["validate: is warn"]
    assert predicate["failedTests"] == ["validate: is fail", "validate: is error"]
    assert "is skip" not in json.dumps(statement)
    by_name = {one["name"]: one for one in predicate["configuration"]}
    assert by_name["validate.ipynb"]["digest"] == {"sha256": record.template["sha256"]}
    run = json.loads(base64.b64decode(by_name["run"]["content"]))
    assert (run["notebook"], run["env"], run["as_template"]) == ("validate", "development", False)


@pytest.fixture(params=["plain", "encrypted"])
def signed(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> tuple[bytes, Record, Path]:
    phrase = "open sesame äöü"
    options = ("-algorithm", "ed25519", "-aes-256-cbc", "-pass", f"pass:{phrase}") if request.param != "plain" else ()
    key = make_key(tmp_path / "key.pem", *options)
    settings = replace(settings, signing_key=str(key), signing_key_passphrase=phrase if options else "")
    record = made(settings, *CHECKS)
    return envelope(settings, record, HASHES), record, key.with_suffix(".pub")


@pytest.mark.needs("openssl")
def test_securesystemslib_accepts_it_and_nothing_else(signed: tuple[bytes, Record, Path]) -> None:
    content, _, public = signed
    ((keyid, public_key),) = public_keys([str(public)]).items()
    key = SSlibKey.from_crypto(public_key)
    assert key.keyid == keyid, "the id that earlier versions wrote"
    assert Envelope.from_dict(json.loads(content)).verify([key], 1) == {key.keyid: key}
    forged = json.loads(content)
    forged["payload"] = base64.b64encode(base64.b64decode(forged["payload"]).replace(b"is pass", b"is_pass")).decode()
    with pytest.raises(VerificationError):
        Envelope.from_dict(forged).verify([key], 1)


@pytest.mark.needs("openssl")
def test_a_statement_is_checked_against_the_record_and_the_hashes(signed: tuple[bytes, Record, Path]) -> None:
    content, record, public = signed
    keys = public_keys([str(public)])
    assert check_statement(content, HASHES, record, keys) == Checked((), tuple(keys), ())
    unlike = ("it does not say, in canonical form, what the record and the hashes of the files say",)
    for hashes, other in (
        ({**HASHES, RECORD: "0" * 64}, record),
        ({**HASHES, "more.txt": "0" * 64}, record),
        ({RECORD: HASHES[RECORD]}, record),
        (HASHES, replace(record, verdict="fail")),
        (HASHES, replace(record, parameters={"env": "production"})),
        (HASHES, replace(record, reports=())),
    ):
        assert check_statement(content, hashes, other, keys).faults == unlike


@pytest.mark.needs("openssl")
def test_no_byte_of_it_can_be_another(signed: tuple[bytes, Record, Path]) -> None:
    content, record, public = signed
    keys = public_keys([str(public)])
    trusted = [("a", check_statement(content, HASHES, record, keys))]
    for place in range(len(content)):
        forged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        checked = check_statement(forged, HASHES, record, keys)
        assert checked.faults or check_signers([*trusted, ("b", checked)], keys).failed, forged


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"payload":1,"signatures":[]}\n',
     b'{"payload":"","payloadType":1,"signatures":[1]}\n', b'{"payload":"!","payloadType":"","signatures":[]}\n'],
)  # fmt: skip
def test_what_is_no_envelope_is_told_without_a_traceback(content: bytes, settings: Settings) -> None:
    assert check_statement(content, HASHES, made(settings), {}).faults


@pytest.mark.needs("openssl")
def test_a_signature_by_another_key_under_its_name_is_a_fault(signing: Settings, tmp_path: Path) -> None:
    record = made(signing)
    ours = public_keys([str(tmp_path / "key.pub")])
    theirs = replace(signing, signing_key=str(make_key(tmp_path / "other.pem")))
    forged = json.loads(envelope(theirs, record, HASHES))
    (forged["signatures"][0]["keyid"],) = ours
    checked = check_statement(canonical(forged), HASHES, record, ours)
    assert checked == Checked((f"its signature is not by key {next(iter(ours))}, which it names",), (), tuple(ours))
    twice = json.loads(envelope(signing, record, HASHES))
    twice["signatures"] *= 2
    assert check_statement(canonical(twice), HASHES, record, ours).faults == ("it names a key twice",)


@pytest.mark.needs("openssl")
def test_from_the_first_run_signed_by_the_key_on_each_must_be(signing: Settings, tmp_path: Path) -> None:
    record = made(signing)
    keys = public_keys([str(tmp_path / "key.pub")])
    (name,) = keys
    theirs = replace(signing, signing_key=str(make_key(tmp_path / "other.pem")))
    unsigned = check_statement(envelope(replace(signing, signing_key=""), record, HASHES), HASHES, record, keys)
    signed = check_statement(envelope(signing, record, HASHES), HASHES, record, keys)
    other = check_statement(envelope(theirs, record, HASHES), HASHES, record, keys)
    assert not (*unsigned.faults, *signed.faults, *other.faults)

    check = check_signers([("a", unsigned), ("b", signed), ("c", signed)], keys)
    assert (check.status, check.observed) == ("pass", "2 of 3 runs are signed by a given key")
    for late in (unsigned, other):
        check = check_signers([("a", unsigned), ("b", signed), ("c", late), ("d", signed)], keys)
        assert check.failed
        assert check.observed == "run c is not signed by a given key, but run b before it is"
    for all_of_them in ([], [("a", unsigned)], [("a", other), ("b", unsigned)]):
        assert check_signers(all_of_them, keys).observed == f"no run is signed by key {name}"
    both = {**keys, **public_keys([str(tmp_path / "other.pub")])}
    turned = check_statement(envelope(theirs, record, HASHES), HASHES, record, both)
    assert check_signers([("a", signed), ("b", turned)], both).status == "pass"


BAD_KEYS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.with_name("absent"), "cannot be read: No such file or directory"),
    (lambda path: path.mkdir(), "not a regular file"),
    (os.mkfifo, "not a regular file"),
    (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    (lambda path: make_key(path).chmod(0o640), "with mode 0640: chmod 600 "),
    (lambda path: path.write_bytes(b"\xff" * 70_000), "found none in"),
    (lambda path: make_key(path, "-algorithm", "RSA"), "found none in"),
    (lambda path: make_key(path).write_bytes(path.with_suffix(".pub").read_bytes()), "found none in"),
    (
        lambda path: make_key(path, "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:12345678"),
        "not encrypted (or set signing_key_passphrase), found none in",
    ),
]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(("spoil", "told"), BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_a_run_does_not_begin_with_a_key_that_cannot_sign(
    spoil: Callable[[Path], object], told: str, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "bad.pem"
    spoil(path)
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o644:
        path.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        write_started(replace(settings, signing_key=str(path)), "validate", {})
    (fault,) = caught.value.faults
    assert fault.startswith("signing_key: ")
    assert told in fault
    assert str(path) in fault
    assert not settings.archive_dir.exists()


@pytest.mark.needs("openssl")
def test_a_wrong_passphrase_is_told_and_never_shown(settings: Settings, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key.pem", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:12345678")
    for phrase in ("open sesame", "\udc80"):
        with pytest.raises(ConfigurationError, match="encrypted with signing_key_passphrase, found none") as caught:
            signer(replace(settings, signing_key=str(key), signing_key_passphrase=phrase))
        assert f"-out {key}" not in str(caught.value)  # that would write over the key
        assert phrase not in str(caught.value)


@pytest.mark.needs("openssl")
def test_a_wrong_public_key_is_refused_with_the_command_that_makes_one(key: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "rsa.pem", "-algorithm", "RSA")
    for path, words in (
        (key, "openssl pkey -in PRIVATE.pem -pubout"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "rsa.pub", "found none in"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            public_keys([str(key.with_suffix(".pub")), str(path)])
