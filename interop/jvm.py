"""Java programs of one file each, compiled once for all tests of a process."""

import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

# They live for seconds: what makes a program faster within minutes only delays them.
OPTIONS = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]


def program(source: Path, jars: list[str], *options: str) -> list[str]:
    """The command that runs it, but for its arguments."""
    classes = compiled(source, ":".join(jars)).name
    return [tool("java"), *OPTIONS, *options, "-cp", ":".join([classes, *jars]), source.stem]


@cache
def compiled(source: Path, jars: str) -> TemporaryDirectory:
    classes = TemporaryDirectory(prefix="polder-java-")
    options = ["-J-XX:TieredStopAtLevel=1", "-encoding", "UTF-8", "-proc:none", "-nowarn", "-d", classes.name]
    done = subprocess.run([tool("javac"), *options, "-cp", jars, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return classes


def tool(name: str) -> str:
    home = os.environ.get("JAVA_HOME")
    return f"{home}/bin/{name}" if home else name


def postgres_driver() -> list[str]:
    # Trino has it with it.
    drivers = Path(os.environ["TRINO_HOME"]).glob("plugin/postgresql/*postgresql-4*.jar")
    jars = [str(jar) for jar in drivers if "trino" not in jar.name]
    assert jars, "Trino's PostgreSQL driver is missing: cargo xtask services install"
    return jars
