"""The statement of a run: an in-toto test result with the hashes of its files, in a DSSE envelope, signed or not."""

import base64
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from abathur_nb.config.settings import Settings, absolute_path
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.evidence.record import Record
from abathur_nb.files import open_regular
from abathur_nb.report import Check, Status
from abathur_nb.text import some

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PublicKeys: TypeAlias = "Mapping[str, Ed25519PublicKey]"  # by key id
_LONGEST = 65_536  # bytes of a key file; a key has a few hundred
_PAYLOAD_TYPE = "application/vnd.in-toto+json"  # https://github.com/in-toto/attestation/blob/main/spec/v1/envelope.md
_TESTS = {"passedTests": ("pass",), "warnedTests": ("warn",), "failedTests": ("fail", "error")}


def signer(settings: Settings) -> "Ed25519PrivateKey | None":
    """Return the private key that the settings name, or None if they name none. Read-only.

    Raises ConfigurationError if the file is missing, readable by others, or no ed25519 key that the passphrase opens.
    """
    if not settings.signing_key:
        return None
    passphrase = settings.signing_key_passphrase
    opened = "encrypted with signing_key_passphrase" if passphrase else "not encrypted (or set signing_key_passphrase)"
    wanted = f"an ed25519 key in a PEM file (PKCS8), {opened}"
    made = "openssl genpkey -algorithm ed25519 -out NEW.pem"
    secret = passphrase.encode(errors="surrogateescape") or None
    path, key, mode = _load("signing_key", settings.signing_key, "private", wanted, made, secret)
    if mode & 0o077:
        found = f"found {path} with mode {mode:04o}: chmod 600 {quote(str(path))}"
        raise ConfigurationError(f"signing_key: expected a file that only its owner can read, {found}")
    return key  # type: ignore[no-any-return]


def public_keys(paths: Iterable[str]) -> PublicKeys:
    """Return the ed25519 public keys in PEM files by key id; raise ConfigurationError for other files. Read-only."""
    made = "openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
    keys = [_load("--key", path, "public", "a public ed25519 key (PEM)", made, relative=True)[1] for path in paths]
    return {_keyid(key): key for key in keys}


def _load(
    where: str, name: str, kind: str, wanted: str, made: str, *secret: bytes | None, relative: bool = False
) -> tuple[Path, Any, int]:
    """Load a ``private`` or ``public`` key; return its path, the key, and the file's mode. Does not wait for a FIFO.

    ``made`` is the command that creates a key.
    """
    if find_spec("cryptography") is None:
        words = "signatures need the package cryptography, which is missing: pip install 'abathur_nb[sign]'"
        raise ConfigurationError(f"{where}: {words}")
    path = absolute_path(where, name, "the path of a key", relative=relative)
    try:
        with open_regular(path, follow=True) as file:
            content, mode = file.read(_LONGEST), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise ConfigurationError(f"{where}: {path} cannot be read: {error.strerror}") from None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    with suppress(TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: a needless or missing passphrase
        key = getattr(serialization, f"load_pem_{kind}_key")(content, *secret)
        if isinstance(key, getattr(ed25519, f"Ed25519{kind.title()}Key")):
            return path, key, mode
    raise ConfigurationError(f"{where}: expected {wanted}, found none in {path}; create one with {made}")


def _keyid(key: "Ed25519PublicKey") -> str:
    """Return the id of a key as securesystemslib does: the SHA-256 of its canonical JSON."""
    public = {"public": key.public_bytes_raw().hex()}
    return sha256(canonical({"keytype": "ed25519", "keyval": public, "scheme": "ed25519"}).rstrip(b"\n"))


def _statement(record: Record, hashes: Mapping[str, str], *, as_template: bool) -> bytes:
    """Return the in-toto statement: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md."""
    checks = [(f"{report.title}: {check.name}", check.status) for report in record.reports for check in report.checks]
    tests = {name: [title for title, status in checks if status in said] for name, said in _TESTS.items()}
    result = "FAILED"
    if record.verdict == "pass":
        result = "WARNED" if tests["warnedTests"] else "PASSED"
    asked = {name: getattr(record, name) for name in ("notebook", "env", "parameters")} | {"as_template": as_template}
    template = record.template
    configuration = [
        {"name": "run", "content": _base64(canonical(asked)), "mediaType": "application/json"},
        {"name": "settings", "digest": {"sha256": sha256(canonical(record.settings))}},
        # A descriptor needs a digest; that of a notebook that is not shipped may be unknown.
        *([{"name": template["name"], "digest": {"sha256": template["sha256"]}}] if template["sha256"] else []),
    ]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hashes[name]}} for name in sorted(hashes)],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {"result": result, "configuration": configuration, **tests},
    }
    return canonical(statement)


def envelope(settings: Settings, record: Record, hashes: Mapping[str, str], *, as_template: bool = False) -> bytes:
    """Return the statement of a run in its envelope, signed if ``signing_key`` is set. Read-only.

    ``hashes`` has the SHA-256 of each file of the run; ``as_template`` says whether the cells that ran are known to be
    those of the template. Raises ConfigurationError if the key can't sign.
    """
    payload, key = _statement(record, hashes, as_template=as_template), signer(settings)
    signatures = [{"keyid": _keyid(key.public_key()), "sig": _base64(key.sign(_signed(payload)))}] if key else []
    return _enclosed(payload, signatures)


def _signed(payload: bytes) -> bytes:
    """Return the bytes that are signed: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _enclosed(payload: bytes, signatures: list[dict[str, str]]) -> bytes:
    return canonical({"payload": _base64(payload), "payloadType": _PAYLOAD_TYPE, "signatures": signatures})


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Checked(NamedTuple):
    """Hold the faults of a statement and its key ids: ``signers`` were verified, ``claimed`` were not."""

    faults: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()


def check_statement(
    content: bytes, hashes: Mapping[str, str], record: Record, keys: PublicKeys, *, as_template: bool = False
) -> Checked:
    """Check that an envelope is exactly the one of this record and these hashes. Read-only.

    A signature that names one of ``keys`` must be by that key; ``check_signers`` reports missing signatures.
    """
    try:
        signatures = [{"keyid": str(one["keyid"]), "sig": str(one["sig"])} for one in json.loads(content)["signatures"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return Checked(("it is not a DSSE envelope with an in-toto statement",))
    payload = _statement(record, hashes, as_template=as_template)
    named = {one["keyid"]: one["sig"] for one in signatures}
    faults, signers = list[str](), list[str]()
    if _enclosed(payload, signatures) != content:
        faults.append("it is not the canonical statement of the record and the hashes of the files")
    elif len(named) < len(signatures):
        faults.append("it names a key twice")
    else:
        signers = [keyid for keyid in named if keyid in keys and _is_by(keys[keyid], named[keyid], payload)]
        forged = [keyid for keyid in named if keyid in keys and keyid not in signers]
        faults += [f"its signature by key {keyid} is invalid" for keyid in forged]
    return Checked(tuple(faults), tuple(signers), tuple(keyid for keyid in named if keyid not in signers))


def _is_by(key: "Ed25519PublicKey", signature: str, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), _signed(payload))
    except (InvalidSignature, ValueError):
        return False
    return True


def check_signers(runs: Sequence[tuple[str, Checked]], keys: PublicKeys) -> Check:
    """Check who signed the runs of an archive, in the order of its ledger. Read-only.

    With keys, at least one run must be signed by one of them, and so must each run after it. Without keys no signature
    is checked, because a rewritten archive could be signed with any key.
    """
    expected = "each run since the first signed one is signed by a given key"
    if not keys:
        claimed = [checked.claimed for _, checked in runs if checked.claimed]
        if not claimed:
            words = "no run is signed: if the whole archive was rewritten, verify cannot detect it"
            return Check("signatures", "skip", expected, words)
        named = ", ".join(sorted({keyid for keyids in claimed for keyid in keyids}))
        words = f"{len(claimed)} of {len(runs)} runs claim a signature by key {named}, which is NOT checked"
        return Check("signatures", "warn", expected, f"{words}: give --key PUBLIC.pem")
    signed = [run_id for run_id, checked in runs if checked.signers]
    faults = [] if signed else [f"no run is signed by key {' or '.join(keys)}"]
    for run_id, checked in dropwhile(lambda run: not run[1].signers, runs):
        if not checked.signers:
            faults.append(f"run {run_id} is not signed by a given key, but the earlier run {signed[0]} is")
    passed = f"{len(signed)} of {len(runs)} runs are signed by a given key"
    remedy = "give each key with --key; if a signature is missing, find out who removed it"
    return check_of("signatures", faults, expected, passed, remedy)


def check_of(
    check_id: str, faults: Sequence[str], expected: str, passed: str, remedy: str, otherwise: Status = "fail"
) -> Check:
    """Return a check that passes if there are no faults; else it shows the first, and lists several as evidence."""
    evidence = faults if faults[1:] else ()
    return Check.that(check_id, not faults, expected, some(faults, 1) or passed, remedy, otherwise, evidence)
