"""The certificate files with which a service connects to RabbitMQ or PostgreSQL over TLS."""

import ssl
from pathlib import Path
from typing import NamedTuple


class ClientFiles(NamedTuple):
    """PEM files: the authorities that are trusted instead of the system's, and our own certificate with its key."""

    ca: Path | None
    cert: Path | None
    key: Path | None

    def variables(self, prefix: str) -> list[str]:
        """Return the variables that are set; `prefix` is what their names begin with."""
        return [f"{prefix}_{name.upper()}_FILE" for name, file in self._asdict().items() if file is not None]

    def check(self, prefix: str) -> None:
        """Raise `ValueError`, which names the variable, if a file is missing or cannot be used."""
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"{prefix}_CERT_FILE and {prefix}_KEY_FILE must be set together")
        for variable, file in zip(self.variables(prefix), filter(None, self), strict=True):
            try:
                file.read_bytes()
            except OSError as error:
                raise ValueError(f"{variable}: the file cannot be read ({error.strerror})") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError:
            raise ValueError(f"{prefix}_CA_FILE: must contain certificates in PEM format") from None
        try:
            self._load_own(context)
        except ssl.SSLError:
            raise ValueError(
                f"{prefix}_CERT_FILE and {prefix}_KEY_FILE: must be a certificate and its private key, in PEM format "
                "and without a password"
            ) from None

    def context(self, *, verify: bool = True, check_hostname: bool = True) -> ssl.SSLContext:
        """Return a context for one connection; raise `OSError` if a file cannot be used.

        Each connection gets a new context, so that it uses certificates that were replaced since the last one.
        """
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = verify and check_hostname
        if not verify:
            context.verify_mode = ssl.CERT_NONE
        self._load_own(context)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        if self.cert is not None:
            # Without a password here, OpenSSL would ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
