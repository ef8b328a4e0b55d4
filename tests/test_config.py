"""The sites a user names; loading them touches nothing."""

import subprocess
import sys

import pytest

import config
from sites.site import REACHES_ALL, Site
from tasks.errors import BadInput


@pytest.mark.parametrize("name", config.SITES)
def test_every_site_can_be_made_and_goes_by_its_name(name):
    site = config.site(name)
    assert isinstance(site, Site)
    assert site.name == name
    assert site.simulate is not None
    assert site.learn is not None
    assert site.reaches <= REACHES_ALL
    assert "inline" in site.reaches


def test_there_is_the_site_that_is_the_default():
    assert config.site("local").shares_run_dir
    assert config.site("local").reaches == REACHES_ALL


@pytest.mark.parametrize("name", ["polaris", "", "Local", "local,local"])
def test_an_unknown_site_is_refused_with_those_there_are(name):
    with pytest.raises(BadInput) as caught:
        config.site(name)
    sentence = str(caught.value)
    assert sentence.startswith(f"site {name} is not known")
    for known in config.SITES:
        assert known in sentence
    assert "config.py" in sentence


WATCHED = """
import os, sys
import parsl, sites.htex, sites.local, tasks.errors  # what loading a library does is not ours

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TOUCHES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
           "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.fork"}
seen = []

def watch(event, args):
    if event in TOUCHES or (event == "open" and args[2] & WRITES):
        seen.append((event, args))

sys.dont_write_bytecode = True
sys.addaudithook(watch)
import config
for name in config.SITES:
    config.site(name)
print(seen)
"""


def test_loading_touches_neither_disk_nor_network():
    ended = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"
