"""The statement of a run: in-toto's test-result over the hashes of its files, in a DSSE envelope, signed if wanted."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.evidence.keys import PublicKeys, signer
from abathur_nb.evidence.record import Record

_PAYLOAD_TYPE = "application/vnd.in-toto+json"  # https://github.com/in-toto/attestation/blob/main/spec/v1/envelope.md
_TESTS = {"passedTests": ("pass",), "warnedTests": ("warn",), "failedTests": ("fail", "error")}


def is_signed(content: bytes) -> bool:
    """Return whether an envelope carries a signature, be it a good one or not."""
    try:
        return bool(json.loads(content)["signatures"])
    except (ValueError, TypeError, LookupError):
        return False


def _statement(record: Record, hashes: Mapping[str, str], *, as_template: bool) -> dict[str, Any]:
    """Return what a run attests: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md."""
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
        # A descriptor has a digest, and that of a notebook of one's own may be unknown.
        *([{"name": template["name"], "digest": {"sha256": template["sha256"]}}] if template["sha256"] else []),
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hashes[name]}} for name in sorted(hashes)],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {"result": result, "configuration": configuration, **tests},
    }


def envelope(settings: Settings, record: Record, hashes: Mapping[str, str], *, as_template: bool = False) -> bytes:
    """Return the statement of a run in its envelope: signed where ``signing_key`` is set, else without a signature.

    ``hashes`` has the SHA-256 of each file of the run by its name; ``as_template`` tells whether the cells that ran
    are known to be those of the template that the record names. Reads the key; writes nothing. Raises
    ConfigurationError where the key can't sign.
    """
    payload = canonical(_statement(record, hashes, as_template=as_template))
    sign = signer(settings)
    if sign is None:
        return _enclosed(payload, [])
    from securesystemslib.dsse import Envelope

    signed = Envelope(payload, _PAYLOAD_TYPE, {})
    signed.sign(sign)
    return canonical(signed.to_dict())


class Checked(NamedTuple):
    """Hold what a statement's check found: ``faults``, and the key ids of its signatures.

    ``signers`` are those whose signature was verified with a given key, ``claimed`` all others that are named:
    nothing speaks for these but the file itself.
    """

    faults: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()


def check_statement(
    content: bytes,
    hashes: Mapping[str, str],
    record: Record,
    keys: PublicKeys,
    *,
    as_template: bool = False,
) -> Checked:
    """Check that an envelope is, byte for byte, what ``envelope`` says of this record and these hashes. Read-only.

    Each signature that names one of ``keys`` must be that key's. Whether there must be one is asked over all runs,
    by ``check_signers``.
    """
    try:
        wanted = canonical(_statement(record, hashes, as_template=as_template))
    except (KeyError, TypeError, AttributeError, ValueError):
        return Checked(("it can't be compared: its record lacks what a statement says",))
    try:
        given = json.loads(content)
        signatures = [{"keyid": str(one["keyid"]), "sig": str(one["sig"])} for one in given["signatures"]]
        payload = base64.b64decode(given["payload"], validate=True)
        if _enclosed(payload, signatures) != content:
            return Checked(("it is not in canonical form",))
    except (KeyError, TypeError, ValueError, RecursionError):
        return Checked(("it is not a DSSE envelope with an in-toto statement",))
    faults = [] if payload == wanted else ["it does not say what the record and the hashes of the files say"]
    named = [one["keyid"] for one in signatures]
    known = {keyid: key for keyid, key in keys.items() if keyid in named}
    if len({*named}) < len(named):
        faults.append("it names a key twice")
    elif false := [keyid for keyid, key in known.items() if not _is_signed(given, key)]:
        faults += [f"its signature is not by key {keyid}, which it names" for keyid in false]
        known = {keyid: key for keyid, key in known.items() if keyid not in false}
    return Checked(tuple(faults), tuple(known), tuple(keyid for keyid in named if keyid not in known))


def _is_signed(given: Mapping[str, Any], key: Any) -> bool:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    signatures = [dict(one) for one in given["signatures"]]  # from_dict takes its argument apart
    try:
        Envelope.from_dict({**given, "signatures": signatures}).verify([key], 1)
    except (VerificationError, UnverifiedSignatureError, ValueError):
        return False
    return True


def check_signers(runs: Sequence[tuple[str, Checked]], keys: PublicKeys) -> tuple[list[str], list[str]]:
    """Return the faults and the notes about who signed the runs of an archive, in the order of its ledger.

    With keys: from the first run that one of them signed on, each must be signed by one of them, and at least one
    must be. Without a key no signature is checked, and the note says so: whoever rewrote the archive could have
    signed it with a key of his own. Read-only.
    """
    signed = [run_id for run_id, checked in runs if checked.signers]
    claimed = {keyid for _, checked in runs for keyid in checked.claimed}
    count = sum(bool(checked.signers or checked.claimed) for _, checked in runs)
    if not keys:
        if not claimed:
            return [], ["no run is signed: a wholesale rewriting of the archive would not show"]
        names = ", ".join(sorted(claimed))
        return [], [
            f"{count} of {len(runs)} runs name a signature by key {names}, which is NOT checked: give --key PUBLIC.pem"
        ]
    if not signed:
        return [f"no run is signed by key {' or '.join(keys)}"], []
    late = runs[[run_id for run_id, _ in runs].index(signed[0]) :]
    faults = [
        f"run {run_id} is not signed by a given key, but run {signed[0]} before it is"
        for run_id, checked in late
        if not checked.signers
    ]
    early = len(runs) - len(late)
    return faults, [
        f"{len(signed)} of {len(runs)} runs are signed by a given key",
        *([f"{early} before the first signed one {'is' if early == 1 else 'are'} not"] if early else []),
    ]


def _enclosed(payload: bytes, signatures: list[dict[str, str]]) -> bytes:
    return canonical({"payload": _base64(payload), "payloadType": _PAYLOAD_TYPE, "signatures": signatures})


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
