"""A local S3 server: moto's, from PyPI, where it and s3fs are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping

from support import needs, processes
from support.waiting import until

KEYS = {"AWS_ACCESS_KEY_ID": "key-of-the-test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}


class S3Server:
    """One with an empty bucket; `environment` is what its clients need."""

    def __init__(self, bucket: str):
        server = os.environ.get("REDRAFT_MOTO") or shutil.which("moto_server")
        if server is None or importlib.util.find_spec("s3fs") is None:
            needs.missing("no moto_server or no s3fs: pip install 'moto[server]' s3fs (REDRAFT_MOTO names the first)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [server, "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = processes.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._listens, "the S3 server listens", 60)
        address = f"http://127.0.0.1:{self.port}"
        self.environment: Mapping[str, str] = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", **KEYS}
        import s3fs

        key, secret = KEYS.values()
        s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=address).mkdir(bucket)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
