"""The form in which PostgreSQL stores a password (RFC 5803). The password itself is never sent, nor logged there."""

import hashlib
import hmac
import secrets
import unicodedata
from base64 import b64encode

ITERATIONS = 4096  # PostgreSQL's default
SALT_BYTES = 16


def scram_verifier(password: str) -> str:
    """Return a SCRAM-SHA-256 verifier with a random salt."""
    salt = secrets.token_bytes(SALT_BYTES)
    # For the characters that passwords contain, SASLprep (RFC 4013) is the same as this normalization.
    normalized = unicodedata.normalize("NFKC", password).encode()
    salted = hashlib.pbkdf2_hmac("sha256", normalized, salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored, server = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt_text}${stored}:{server}"
