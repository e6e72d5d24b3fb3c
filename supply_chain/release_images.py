"""Write a Compose file that names every image by its digest, so that a tag that moves does not change a release.

The project of Docker Compose is read as JSON from the standard input. The folder has a file for each published
service, which contains its image and digest. The registries return the digests of all other images.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

OWN = "notify-"  # the images that this project builds


def pinned(
    project: Mapping[str, Mapping[str, Mapping[str, str]]], published: Mapping[str, str], resolve: Callable[[str], str]
) -> str:
    """Return the Compose file. JSON is also YAML."""
    services = {}
    for name, service in project["services"].items():
        image = service["image"]
        if image.startswith(OWN):
            own = image.removeprefix(OWN).partition(":")[0].replace("-", "_")
            if own in published:  # the others are built where they run
                services[name] = {"image": published[own]}
        else:
            services[name] = {"image": f"{image}@{resolve(image)}"}
    return json.dumps({"services": services}, indent=2) + "\n"


def digest(image: str) -> str:
    """Ask the registry for the digest of an image."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Print the Compose file of a release."""
    published = {file.name: file.read_text().strip() for file in Path(sys.argv[1]).iterdir()}
    sys.stdout.write(pinned(json.load(sys.stdin), published, digest))


if __name__ == "__main__":
    main()
