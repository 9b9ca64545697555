"""A real Prometheus that watches a run by the configuration that we ship, and the questions that tests ask it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from support import processes
from support.places import ROOT
from support.ports import free_port
from support.waiting import deadline_s, until

INTERVAL_S = 1
SHIPPED = ROOT / "deploy" / "prometheus"
NAME = re.compile(r"(?<![\w:])redraft_\w+")


class Prometheus:
    """Scrapes what `sd` lists, by the `token` in a file where one is asked for, and an exporter `beside` it whose
    labels stay, each second. Use it as a context manager, under the marker `prometheus`."""

    def __init__(self, folder: Path, sd: str, beside: str = "", token: Path | None = None):
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"}
        config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
        (found,) = config["scrape_configs"][0]["http_sd_configs"]
        found |= {"url": sd, "refresh_interval": f"{INTERVAL_S}s"}
        if token is not None:
            config["scrape_configs"][0]["authorization"] = found["authorization"] = {
                "type": "Bearer",
                "credentials_file": str(token),
            }
        if beside:
            one = {"job_name": "beside", "honor_labels": True, "static_configs": [{"targets": [beside]}]}
            config["scrape_configs"].append(one)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._at = f"127.0.0.1:{free_port()}"
        self._command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={self._at}",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Prometheus:
        with open(self._log, "wb") as log:
            self._process = processes.start(self._command, stdout=log, stderr=log)
        until(self._ready, "Prometheus is ready", 60)
        return self

    def _ready(self) -> bool:
        """It answers; before that it refuses connections, or says that it is still starting."""
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://{self._at}/-/ready", timeout=deadline_s(10)):
                return True
        except OSError:
            return False

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait(deadline_s(30))

    def ask(self, path: str, **fields: str):
        """The data of an API answer; what Prometheus says of a wrong query fails the test."""
        url = f"http://{self._at}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=deadline_s(30)) as page:
                return json.loads(page.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{fields}: {error.read().decode()}") from None

    def query(self, expression: str, at: float | None = None) -> list[dict]:
        """At that time, now without one."""
        when = {} if at is None else {"time": str(at)}
        return self.ask("query", query=expression, **when)["result"]

    def healthy(self) -> dict[str, str]:
        """The names of the targets that were scraped well the last time, with their addresses."""
        return {
            target["labels"]["name"]: target["discoveredLabels"]["__address__"]
            for target in self.ask("targets")["activeTargets"]
            if target["health"] == "up" and target["labels"]["job"] == "redraft"
        }


def listed(sd: str) -> dict[str, str]:
    """The names of the processes at /sd, with their addresses."""
    with urllib.request.urlopen(sd, timeout=deadline_s(30)) as page:
        return {found["labels"]["name"]: found["targets"][0] for found in json.loads(page.read())}


def rules() -> list[dict]:
    texts = [(SHIPPED / file).read_text() for file in ("recording.yml", "alerts.yml")]
    return [rule for text in texts for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
