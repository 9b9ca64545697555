"""Prints what the Python and the Debian that run it have installed, as a CycloneDX list (1.6); for an image:

podman run --rm --interactive --entrypoint python IMAGE - <deploy/docker/sbom.py
"""

import json
import re
import shutil
import subprocess
from importlib import metadata
from urllib.parse import quote


def python_packages() -> list[dict]:
    found = {}
    for package in metadata.distributions():
        name, text = re.sub("[-_.]+", "-", package.metadata["Name"]).lower(), package.version
        licence = package.metadata.get("License-Expression")
        found[name] = component(name, text, f"pkg:pypi/{quote(name)}@{quote(text)}", licence)
    return list(found.values())


def debian_packages() -> list[dict]:
    if shutil.which("dpkg-query") is None:
        return []
    command = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [
        component(name, text, f"pkg:deb/debian/{quote(name)}@{quote(text)}?arch={architecture}")
        for name, text, architecture in (line.split("\t") for line in lines)
    ]


def component(name: str, text: str, purl: str, licence: str | None = None) -> dict:
    licensed = {"licenses": [{"expression": licence}]} if licence else {}
    return {"type": "library", "name": name, "version": text, "purl": purl, "bom-ref": purl, **licensed}


if __name__ == "__main__":
    components = sorted(python_packages() + debian_packages(), key=lambda one: one["purl"])
    print(
        json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}, indent=1)
    )
