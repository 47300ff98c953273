"""Verify and statements: a sound archive passes, what was done to another is named, a signature is whose it says."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from archives import archive, check, fleet_row, fleet_run, ledger_lines, make_key, notebook, run, seal
from damage import fingerprint
from faults.tampering import TAMPERINGS, Tampering
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined] # it has no __all__

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence import record
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import canonical, sealed, sha256, unsealed
from abathur_nb.evidence.ledger import LEDGER, read_ledger
from abathur_nb.evidence.record import NOTEBOOK, RECORD, STARTED, STATEMENT, Record
from abathur_nb.evidence.run import write_record, write_started
from abathur_nb.evidence.statement import Checked, check_signers, check_statement, envelope, public_keys, signer
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.files import UNFINISHED
from abathur_nb.report import Check, Report


def faults(report: Report) -> list[str]:
    return [told for one in report.checks if one.failed for told in one.evidence or (one.observed,)]


def tree(folder: Path) -> dict[str, object]:
    return {str(path): fingerprint(path) for path in [folder, *folder.rglob("*")]}


def test_a_sound_archive_passes_and_names_no_evidence(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    folder = archive(settings)
    *_, loose, unsealed_run = sorted(path.name for path in folder.iterdir() if path.is_dir())
    report = verify_archive(folder)
    assert report.ok, str(report)
    assert check(report, "ledger").observed == "4 lines, each with the previous hash"
    assert check(report, "runs").observed == "4 of 6 archived, none altered"
    told = check(report, "no evidence")
    assert told.status == "warn"
    assert [line.partition(" ")[0] for line in told.evidence] == [loose, unsealed_run]
    assert "sealed as pass, but without a line in the ledger" in told.evidence[0]
    assert "not sealed" in told.evidence[1]
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert loose in out
    assert unsealed_run in out
    assert "faults" not in out


def test_it_writes_nothing_and_asks_no_other_host(settings: Settings) -> None:
    folder = archive(settings)
    before = tree(folder)
    program = (
        "import os, sys\n"
        "def watch(event, args):\n"
        "    writes = event == 'open' and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)\n"
        "    if event.startswith(('socket.connect', 'socket.bind', 'os.rename', 'os.remove', 'os.mkdir')) or writes:\n"
        "        sys.stderr.write(f'{event} {args}')\n"
        "        os._exit(9)\n"
        "import abathur_nb.evidence.verify\n"
        "sys.addaudithook(watch)\n"
        "from abathur_nb.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-B", "-c", program, "verify", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(folder) == before
    writing = program.replace("from abathur_nb.cli", "open(os.devnull, 'w')\nfrom abathur_nb.cli")
    assert subprocess.run([sys.executable, "-c", writing], capture_output=True, check=False).returncode == 9


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_tampering_is_found_and_named(
    tampering: Callable[[Tampering], object], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archive(settings)
    assert verify_archive(folder).ok
    tampering(Tampering(folder, settings, Random(7)))  # noqa: S311 - to be repeatable
    found = faults(verify_archive(folder))
    assert found
    assert main(["verify", str(folder)]) == 1
    assert found[0] in capsys.readouterr().out.splitlines()[2]


def _alter_statement(folder: Path) -> None:
    """Let a statement say something else, and the ledger's last line its hash."""
    content = (folder / STATEMENT).read_bytes()
    (folder / STATEMENT).write_bytes(content.replace(b'"signatures":[]', b'"signatures":[ ]'))
    _rewrite_last(folder)


def _rewrite_last(folder: Path, **changes: Any) -> None:
    *lines, last = ledger_lines(folder.parent)
    data = unsealed(last)
    data["files"] = {name: sha256((folder / name).read_bytes()) for name in data["files"]}
    (folder.parent / LEDGER).write_bytes(b"".join([*lines, sealed(data | changes)]))


@pytest.mark.parametrize(
    ("tamper", "name", "words"),
    [
        (lambda f: (f / NOTEBOOK).write_text("{}"), "runs", f"{NOTEBOOK}: its hash is not the one in the ledger"),
        (shutil.rmtree, "runs", "its folder is missing"),
        (lambda f: _rewrite_last(f, verdict="fail"), "runs", f"verdict differs from {LEDGER}"),
        (_alter_statement, "statements", f"{STATEMENT}: it is not the canonical statement of "),
        (lambda f: (f / "a\x1b[2J").touch(), "nothing else", r"a\x1b[2J"),
    ],
)
def test_the_fault_is_named(tamper: Callable[[Path], object], name: str, words: str, settings: Settings) -> None:
    run(settings)
    folder = run(settings)
    tamper(folder)
    report = verify_archive(settings.archive_dir)
    assert words in check(report, name).observed
    if name != "nothing else":
        assert folder.name in check(report, name).observed or LEDGER in check(report, name).observed
    assert "\x1b" not in str(report)


def test_a_torn_line_is_named_and_closed_by_a_later_run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    folder = archive(settings)
    content = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(content + content[:200])
    report = verify_archive(folder)
    assert [one.name for one in report.checks if one.failed] == ["last line"]
    assert check(report, "last line").observed == f"{LEDGER} line 5 is torn: a run died while writing it"
    assert "not tampering" in check(report, "last line").remedy
    assert main(["verify", str(folder)]) == 1
    assert "torn" in capsys.readouterr().out.splitlines()[2]
    run(settings)
    report = verify_archive(folder)
    assert report.ok
    assert check(report, "notes").status == "warn"
    assert "line 5 was torn by a crash, and repaired" in check(report, "notes").observed


def test_leftovers_of_killed_runs_and_of_jupyterlab_are_notes(settings: Settings) -> None:
    folder = run(settings)
    (folder / f"{UNFINISHED}0123456789ab").write_bytes(b"half")
    (settings.archive_dir / f"{UNFINISHED}ba9876543210").touch()
    (folder / ".ipynb_checkpoints").mkdir()
    report = verify_archive(settings.archive_dir)
    assert report.ok
    assert len(check(report, "notes").evidence) == 3


def test_a_run_that_is_archived_meanwhile_is_no_fault(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings)

    def meanwhile(archive: Path) -> Any:
        monkeypatch.setattr(record, "read_ledger", read_ledger)
        run(settings)
        return read_ledger(archive)

    monkeypatch.setattr(record, "read_ledger", meanwhile)
    report = verify_archive(settings.archive_dir)
    assert report.ok, str(report)
    assert check(report, "runs").observed == "2 of 2 archived, none altered"


@pytest.mark.needs("openssl")
def test_later_runs_must_be_signed_too(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public, other = (make_key(tmp_path / name).with_suffix(".pub") for name in ("key.pem", "other.pem"))
    signing = replace(settings, signing_key=str(tmp_path / "key.pem"))
    run(settings)
    run(signing)
    keys = public_keys([str(public)])
    assert check(verify_archive(settings.archive_dir, keys=keys), "signatures").status == "pass"
    assert check(verify_archive(settings.archive_dir), "signatures").status == "warn"
    assert main(["verify", str(settings.archive_dir), "--key", str(public)]) == 0
    assert main(["verify", str(settings.archive_dir), "--key", str(other)]) == 1
    late = write_started(settings, "validate", {}, run_id="20200101T000000000Z-000000")
    seal(late, settings)
    keep(late, settings, notebook("1"))
    assert main(["verify", str(settings.archive_dir), "--key", str(other), "--key", str(public)]) == 1
    assert f"run {late.name} is not signed by a given key" in capsys.readouterr().out
    assert main(["verify", str(settings.archive_dir)]) == 0


def test_wrong_arguments_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        [str(tmp_path / "absent")],
        [str(tmp_path / "file")],
        [""],
        [str(tmp_path), "--key", "absent.pem"],
    ):
        assert main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.startswith("abathur_nb verify: ")
    for arguments in ([], [str(tmp_path), "more"], [str(tmp_path), "--unknown"]):
        with pytest.raises(SystemExit) as ended:
            main(["verify", *arguments])
        assert ended.value.code == 2


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
    unlike = ("it is not the canonical statement of the record and the hashes of the files",)
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
    assert checked == Checked((f"its signature by key {next(iter(ours))} is invalid",), (), tuple(ours))
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
        assert check.observed == "run c is not signed by a given key, but the earlier run b is"
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


@pytest.fixture
def two(tmp_path: Path) -> list[Settings]:
    """Return two other databases, each with two runs."""
    both = [resolve(db_path=tmp_path / name / "abathur.db") for name in ("a", "b")]
    for one in both:
        one.db_path.parent.mkdir(mode=0o700)
        run(one)
        run(one)
    return both


def without_last(folder: Path) -> None:
    """Remove the newest run of an archive, and its line in the ledger."""
    *lines, last = ledger_lines(folder)
    (folder / LEDGER).write_bytes(b"".join(lines))
    shutil.rmtree(folder / json.loads(last)["run_id"])


def rewrite(folder: Path) -> None:
    settings = resolve(db_path=folder.parent / "abathur.db")
    shutil.rmtree(folder)
    run(settings)
    run(settings)


@pytest.mark.parametrize(("damage", "is_sound_itself"), [(without_last, True), (rewrite, True), (shutil.rmtree, False)])
def test_a_fleet_run_anchors_the_ledgers_of_its_databases(
    damage: Callable[[Path], object], is_sound_itself: bool, settings: Settings, two: list[Settings]
) -> None:
    rows = [fleet_row(one) for one in two]
    fleet_run(settings, *rows)
    run(two[0])
    found = check(verify_archive(settings.archive_dir), "anchors")
    assert (found.status, found.observed) == ("pass", "2 of 2 ledgers read, each has it")
    damage(two[1].archive_dir)
    if is_sound_itself:
        report = verify_archive(two[1].archive_dir)
        assert report.ok, str(report)
        assert "anchors" not in {one.id for one in report.checks}
    report = verify_archive(settings.archive_dir)
    words = f"the line of run {rows[1]['run']} is missing: its newest runs were removed, or its ledger rewritten"
    assert faults(report) == [f"here:{two[1].db_path}: {words}"]
    assert main(["verify", str(settings.archive_dir)]) == 1


def test_a_ledger_on_another_host_is_only_noted(settings: Settings, two: list[Settings]) -> None:
    far = [fleet_row(two[0], state=state) for state in ({"host": "far"}, {})]
    fleet_run(settings, far[0], far[1] | {"database": "/x.db"})
    report = verify_archive(settings.archive_dir)
    assert report.ok
    assert "anchors" not in {one.id for one in report.checks}
    assert "2 of 2 ledgers of a fleet run were not read: they are on other hosts" in check(report, "notes").observed
    fleet_run(settings, far[0], fleet_row(two[1]))
    report = verify_archive(settings.archive_dir)
    assert check(report, "anchors").observed == "1 of 2 ledgers read, each has it"
    assert "1 of 2 ledgers" in check(report, "notes").observed


@pytest.mark.parametrize(
    ("of_b", "more", "is_found"),
    [
        (None, {"only": "here:/"}, True),  # a later fleet run was only about the other database
        ({"head": ""}, {}, True),  # in a later one it could not be reached
        (None, {"inventory": "other.toml"}, True),
        (None, {}, False),  # it was taken out of the inventory
        ({}, {}, False),  # a later one records the shorter ledger
    ],
)
def test_the_newest_known_line_of_each_database_counts(
    of_b: dict[str, str] | None, more: dict[str, str], is_found: bool, settings: Settings, two: list[Settings]
) -> None:
    rows = [fleet_row(one) for one in two]
    fleet_run(settings, *rows)
    without_last(two[1].archive_dir)
    fleet_run(settings, fleet_row(two[0]), *([fleet_row(two[1], **of_b)] if of_b is not None else []), **more)
    found = faults(verify_archive(settings.archive_dir))
    assert [rows[1]["run"] in fault for fault in found] == [True] * is_found
