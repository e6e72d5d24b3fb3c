"""`make env`: create the settings file for Docker Compose, with random secrets.

Only the standard library is used, because Docker Compose needs no virtual environment.
"""

import argparse
import re
import secrets
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parents[4] / ".env.example"
EXAMPLE_SECRET = re.compile(r"(?<==)change-me.*$", re.MULTILINE)
SECRET_BYTES = 32  # 43 characters of base64url


def filled(template: str) -> str:
    """Return the template with a random secret in place of each example."""
    return EXAMPLE_SECRET.sub(lambda _: secrets.token_urlsafe(SECRET_BYTES), template)


def main() -> None:
    """Create the file that only its owner may read, unless it exists."""
    parser = argparse.ArgumentParser(prog="make env", description="Create the settings file for Docker Compose.")
    parser.add_argument("file", type=Path, nargs="?", default=Path(".env"))
    file: Path = parser.parse_args().file
    content = filled(TEMPLATE.read_text(encoding="utf-8"))
    try:
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(content, encoding="utf-8")
    except FileExistsError:
        sys.exit(f"{file} exists and was not changed. To get new secrets, move it away first.")
    except OSError as error:
        sys.exit(f"{file} cannot be created: {error.strerror}")
    print(
        f"Created {file} with random secrets. Only you can read it.\n"
        "The API key is BOOTSTRAP_API_KEY; every request needs it:\n"
        f"  KEY=$(sed -n 's/^BOOTSTRAP_API_KEY=//p' {file})\n"
        '  curl http://127.0.0.1:8080/api/notifications -H "Authorization: Bearer $KEY"'
    )


if __name__ == "__main__":
    main()
