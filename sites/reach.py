"""Whether a host can be used over ssh, found out before anything is started there, and told in a sentence."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
from importlib import metadata

from sites.site import SshAccess
from tasks.errors import BadInput

# What every site here relies on: no question to a person, and no tunnel that
# silently is none.
_ALWAYS = ("BatchMode=yes", "ExitOnForwardFailure=yes", "ConnectTimeout=15")

_ANSWERS_WITHIN_S = 60

# Read by the far shell. Python says what a worker pool will find there.
_QUESTION = """\
{init}
python3 - << 'END'
import importlib.util, json, platform
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
found = importlib.util.find_spec("tasks") and importlib.util.find_spec("tasks.worker_pool")
print("\\n" + json.dumps({{"python": platform.python_version(), "parsl": version("parsl"), "tasks": bool(found)}}))
END
"""

# What ssh says, and what it means to a user.
_CAUSES = (
    ("Host key verification failed", "its host key is unknown or has changed: connect once by hand and check it"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key has changed: find out why, then mend known_hosts"),
    ("Permission denied", "it refused your key: add that to its authorized_keys, or start a ControlMaster by hand"),
    ("Could not resolve hostname", "its name is not known: give it a HostName in ~/.ssh/config"),
    ("Connection refused", "no sshd listens there: check the port in ~/.ssh/config"),
    ("timed out", "it does not answer: check the network, or a ProxyJump in ~/.ssh/config"),
    ("No route to host", "it cannot be reached: check the network, or a ProxyJump in ~/.ssh/config"),
    ("python3: command not found", "there is no python3 there: name a line that brings one with --ssh-init"),
)


def ssh(access: SshAccess) -> list[str]:
    """Return the beginning of a command line that asks nobody anything."""
    config = [] if access.config is None else ["-F", str(access.config)]
    return ["ssh", *config, *(word for option in _ALWAYS for word in ("-o", option))]


def tell_master(access: SshAccess, *words: str) -> bool:
    """Return whether the host's ControlMaster took a command; there may be none."""
    try:
        asked = [*ssh(access), "-O", *words, access.host]
        return subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def check(access: SshAccess) -> None:
    """Refuse a host that cannot be reached, or where no worker of ours could run.

    Raises
    ------
    BadInput
        With what was found, and what to do about it.
    """
    if shutil.which("ssh") is None:
        raise BadInput(f"--ssh-host {access.host}: there is no ssh here; install an OpenSSH client")
    if access.tunnel == "manual" and access.port is not None and _is_taken(access.port):
        raise BadInput(
            f"--ssh-port {access.port} is taken here, and workers would be awaited there: end what listens on it, or "
            "open a tunnel for another port"
        )
    try:
        tried = subprocess.run(
            [*ssh(access), access.host, "exec bash -s"],
            input=_QUESTION.format(init=access.init or ":"),
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"--ssh-host {access.host}: no answer within {_ANSWERS_WITHIN_S} s; try `ssh {access.host}` by hand"
        ) from None
    if tried.returncode != 0:
        raise BadInput(f"--ssh-host {access.host}: {cause(tried.stderr)}")
    try:
        there = json.loads(tried.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise BadInput(
            f"--ssh-host {access.host}: its shell ended before python3 answered: try the line of --ssh-init by hand"
        ) from None
    problem = mismatch(access, there)
    if problem is not None:
        raise BadInput(f"--ssh-host {access.host}: {problem}")


def cause(stderr: str) -> str:
    """Return what ssh's last words mean, as the end of a sentence."""
    for said, means in _CAUSES:
        if said in stderr:
            return means
    return f"ssh ended with {(stderr.strip().splitlines() or ['nothing'])[-1]!r}; try it by hand"


def mismatch(access: SshAccess, there: dict[str, str | bool | None]) -> str | None:
    """Return why workers could not run there, with the remedy; None where they can."""
    python, parsl = platform.python_version(), metadata.version("parsl")
    if str(there["python"]).split(".")[:2] != python.split(".")[:2]:
        return (
            f"python3 is {there['python']} there and {python} here: name a line that brings the same minor version "
            "with --ssh-init"
        )
    if not there["tasks"]:
        wheel = f"wayfinder_tasks-{metadata.version('wayfinder-tasks')}-py3-none-any.whl"
        init = f"{access.init}; " if access.init else ""
        return (
            "`tasks` is not installed there: run `pip wheel --no-deps -w dist . && "
            f'scp dist/{wheel} constraints.txt {access.host}: && ssh {access.host} "{init}pip install -c '
            f"constraints.txt './{wheel}[md,ml]'\"`"
        )
    if there["parsl"] != parsl:
        return f"Parsl is {there['parsl']} there and {parsl} here: run `pip install parsl=={parsl}` there"
    return None


def _is_taken(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
