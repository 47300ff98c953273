"""The keys of an archive: the private one that signs its runs, the public ones that an auditor checks them with."""

import os
import stat
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, TypeAlias

from abathur_nb.config.settings import Settings, absolute_path
from abathur_nb.errors import ConfigurationError
from abathur_nb.files import open_regular

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined] # it has no __all__

PublicKeys: TypeAlias = "Mapping[str, Key]"  # by key id
_LONGEST = 65_536  # bytes of a file; a key has some hundred


def signer(settings: Settings) -> "CryptoSigner | None":
    """Return what signs with the ed25519 key that the settings name, or None where they name none. Read-only.

    Raises ConfigurationError where the file is absent, readable by others, no such key, or its passphrase another.
    """
    if not settings.signing_key:
        return None
    where = "signing_key"
    path, content, mode = _read(where, settings.signing_key)
    if mode & 0o077:
        wanted = f"{where}: expected a file that its owner alone may read, found {path} with mode {mode:04o}"
        raise ConfigurationError(f"{wanted}: chmod 600 {quote(str(path))}")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

    passphrase = settings.signing_key_passphrase
    try:
        key = load_pem_private_key(content, passphrase.encode(errors="surrogateescape") or None)
    except TypeError:  # one is given and not wanted, or the reverse
        state, remedy = ("not encrypted", "leave out") if passphrase else ("encrypted", "set")
        raise ConfigurationError(f"{where}: {path} is {state}: {remedy} signing_key_passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        opened = "that signing_key_passphrase opens" if passphrase else "in a PEM file (PKCS8)"
        raise ConfigurationError(f"{where}: expected an ed25519 key {opened}, found none in {path}") from None
    if not isinstance(key, Ed25519PrivateKey):
        made = f"openssl genpkey -algorithm ed25519 -out {quote(str(path))}"
        raise ConfigurationError(f"{where}: expected an ed25519 key, found another kind in {path}; {made} makes one")
    return CryptoSigner(key)


def public_keys(paths: Iterable[str]) -> PublicKeys:
    """Return the ed25519 keys in these PEM files by their ids; raise ConfigurationError with every fault. Read-only."""
    found: dict[str, Key] = {}
    faults: list[str] = []
    for path in paths:
        try:
            key = _public_key(path)
            found[key.keyid] = key
        except ConfigurationError as error:
            faults += error.faults
    if faults:
        raise ConfigurationError(faults)
    return found


def _public_key(name: str) -> "Key":
    path, content, _ = _read("--key", name, relative=True)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        made = "openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
        raise ConfigurationError(f"--key: expected a public ed25519 key (PEM), found none in {path}; {made} makes one")
    return SSlibKey.from_crypto(key)


def _read(where: str, name: str, *, relative: bool = False) -> tuple[Path, bytes, int]:
    """Return the absolute path of a small regular file, its content and its mode; never waits, as a FIFO would."""
    faults = [
        f"{where}: signatures want {module}, which is not installed here: pip install 'abathur_nb[sign]'"
        for module in ("securesystemslib", "cryptography")
        if find_spec(module) is None
    ]
    path = absolute_path(where, name, "the path of a key", relative, faults)
    if path is None or faults:
        raise ConfigurationError(faults)
    try:
        with open_regular(path, follow=True) as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(_LONGEST)
    except OSError as error:
        raise ConfigurationError(f"{where}: {path} cannot be read: {error.strerror}") from None
    return path, content, stat.S_IMODE(mode)
