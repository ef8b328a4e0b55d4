"""The page's server tells only those who know its address, does nothing else, and holds whatever it is sent."""

import http.client
import json
import re
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest

from campaign.watch import server
from campaign.watch.following import Following
from tasks.errors import BadInput
from tests.campaign.watch.conftest import until

METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")


@dataclass
class Watched:
    port: int
    token: str
    over: threading.Event
    thread: threading.Thread

    def ask(self, path="/", method="GET", token=None, headers=None, body=None, host=None):
        """Return status, headers and body."""
        token = self.token if token is None else token
        query = f"{'&' if '?' in path else '?'}token={token}" if token else ""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path + query, skip_host=host is not None)
            for name, value in {**({"Host": host} if host else {}), **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def view(self):
        status, _, body = self.ask("/view.json")
        assert status == 200
        return json.loads(body)


@contextmanager
def watched(path, monkeypatch, port=0):
    said, over = [], threading.Event()
    monkeypatch.setattr(server, "tell", said.append)
    thread = threading.Thread(target=server.serve, args=(path, port, over.is_set))
    thread.start()
    try:
        until(lambda: bool(said))
        found = re.fullmatch(r"watch: http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})", said[0])
        assert found is not None, said
        yield Watched(int(found[1]), found[2], over, thread)
    finally:
        over.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def page(run, monkeypatch):
    with watched(run.path, monkeypatch) as found:
        yield found


def test_the_page_and_its_data_are_there_for_whoever_has_the_address(run, page):
    run.write("simulate", run.segment(0))
    status, headers, body = page.ask()
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=UTF-8"
    assert b"<h1>run</h1>" in body
    assert page.view()["segments"] == 1


@pytest.mark.parametrize("path", ["/", "/view.json", "/page.js", "/../ledger.sqlite", "/robots.txt", "//"])
def test_nothing_is_told_without_the_token(page, path):
    for token in ("", "wrong", page.token[:-1], page.token + "a", page.token.swapcase(), f"{page.token}&token=b"):
        status, headers, body = page.ask(path if token else f"{path}?x=1", token=token)
        assert (status, body) == (403, b"403\n"), token
    status, _, body = page.ask(path, token="%ff%fe")
    assert status in (400, 403)


@pytest.mark.parametrize(
    "path",
    ["/ledger.sqlite", "/../ledger.sqlite", "/..%2fledger.sqlite", "/%2e%2e/%2e%2e/etc/passwd", "/static/../run.py",
     "/view.json/../summary.json", "//etc/passwd", "/page.js", "/view.json%00", "/run/ledger.sqlite"],
)  # fmt: skip
def test_no_path_leads_to_a_file(page, path):
    status, _, body = page.ask(path)
    assert (status, body) == (404, b"404\n")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/", "/view.json", "/none"])
def test_only_asking_is_allowed(page, method, path):
    status, _, body = page.ask(path, method)
    assert status == 405
    assert b"segments" not in body


def test_a_body_is_not_taken(page):
    with socket.create_connection(("127.0.0.1", page.port), 20) as dialled:
        head = (
            f"POST /?token={page.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Length: 99999999\r\n\r\n"
        )
        dialled.sendall(head.encode())
        answer = dialled.recv(1000)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))
    assert page.ask()[0] == 200


def test_a_head_has_the_headers_and_no_body(page):
    status, headers, body = page.ask("/view.json", "HEAD")
    assert (status, body) == (200, b"")
    assert headers["Content-Type"] == "application/json"


def test_a_name_that_somebody_else_lets_lead_here_is_refused(page):
    for host in (
        "evil.example",
        f"evil.example:{page.port}",
        "127.0.0.1",
        f"127.0.0.1:{page.port + 1}",
        "127.0.0.1@x",
    ):
        assert page.ask("/view.json", host=host)[0] in (400, 403)
    for host in (f"127.0.0.1:{page.port}", f"localhost:{page.port}", f"LOCALHOST:{page.port}"):
        assert page.ask("/view.json", host=host)[0] == 200


def test_it_listens_on_loopback_alone(page):
    name = socket.gethostname()
    others = {address[4][0] for address in socket.getaddrinfo(name, None, socket.AF_INET)} - {"127.0.0.1"}
    for address in {"127.0.0.2", *others}:
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex((address, page.port)) != 0


@pytest.mark.parametrize("path", ["/", "/view.json", "/none"])
def test_browsers_are_told_to_be_careful(page, path):
    headers = page.ask(path)[1]
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Set-Cookie" not in headers


def test_each_page_has_a_nonce_of_its_own_and_loads_nothing_from_elsewhere(page):
    nonces = set()
    for _ in range(2):
        _, headers, body = page.ask()
        (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", headers["Content-Security-Policy"]))
        assert body.count(f'nonce="{nonce}"'.encode()) == 2
        assert b"src=" not in body
        assert not re.search(rb"(src|href)=.?https?:", body)
        nonces.add(nonce)
    assert len(nonces) == 2


def test_whoever_has_the_newest_figures_gets_nothing_again(run, page):
    status, headers, _ = page.ask("/view.json")
    status, _, body = page.ask("/view.json", headers={"If-None-Match": headers["Etag"]})
    assert (status, body) == (304, b"")
    run.segment(0)
    until(lambda: page.ask("/view.json", headers={"If-None-Match": headers["Etag"]})[0] == 200)


def test_markup_in_a_runs_name_stays_text(make, monkeypatch):
    run = make("<img src=x onerror=alert(1)>\"'&{{7*7}}")
    with watched(run.path, monkeypatch) as page:
        body = page.ask()[2].decode()
        assert "<img" not in body
        assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;{{7*7}}" in body
        assert page.view()["run"] == run.path.name


def test_figures_are_read_once_for_all_who_ask_and_never_for_nobody(run, monkeypatch):
    looks = []
    look = Following.look
    monkeypatch.setattr(Following, "look", lambda self: looks.append(1) or look(self))
    with watched(run.path, monkeypatch) as page:
        page.ask()
        time.sleep(0.5)
        assert looks == []
        threads = [threading.Thread(target=page.view) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert 1 <= len(looks) <= 2


def test_a_look_that_goes_wrong_is_no_end(run, monkeypatch, caplog):
    look = Following.look
    failing = threading.Event()
    failing.set()
    monkeypatch.setattr(server, "POLL_S", 0.0)

    def looks(self):
        if failing.is_set():
            raise RuntimeError("secret")
        return look(self)

    monkeypatch.setattr(Following, "look", looks)
    with watched(run.path, monkeypatch) as page:
        status, _, body = page.ask("/view.json")
        assert (status, body) == (500, b"500\n")
        assert "/view.json cannot be answered" in caplog.text
        assert page.token not in caplog.text
        failing.clear()
        assert page.view()["segments"] == 0


def test_a_slow_look_keeps_nobody_from_the_page_and_not_from_ending(run, monkeypatch):
    look, slow = Following.look, threading.Event()
    monkeypatch.setattr(Following, "look", lambda self: (slow.wait(30), look(self))[1])
    with watched(run.path, monkeypatch) as page:
        asking = socket.create_connection(("127.0.0.1", page.port), 20)
        asking.sendall(f"GET /view.json?token={page.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        assert page.ask()[0] == 200
        page.over.set()
        page.thread.join(10)
        assert not page.thread.is_alive()
        asking.close()
    slow.set()


def dial(page, stack, sent=b""):
    dialled = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), 20))
    dialled.sendall(sent)
    return dialled


def ended(dialled, within_s=20):
    """Return whether the other side has closed a connection, without a word."""
    dialled.settimeout(within_s)
    try:
        return dialled.recv(1000) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_two_hundred_who_say_nothing_half_or_do_not_listen_hold_nobody_up(run, page):
    whole = f"GET /?token={page.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n".encode()
    with ExitStack() as stack:
        for number in range(200):
            dial(page, stack, (b"", whole[:20], whole, whole + b"\r\n")[number % 4])
        for _ in range(3):
            assert page.ask()[0] == 200
        assert page.view()["segments"] == 0
    assert page.ask()[0] == 200


def test_who_does_not_say_what_he_wants_is_cut_off(run, monkeypatch):
    monkeypatch.setattr(server, "_PATIENCE_S", 0.3)
    with watched(run.path, monkeypatch) as page, ExitStack() as stack:
        silent, half, dripping = (dial(page, stack, sent) for sent in (b"", b"GET / HT", b"GET /"))
        with suppress(OSError):
            while not ended(dripping, within_s=0.1):
                dripping.sendall(b"x")
        assert ended(silent)
        assert ended(half)
        assert page.ask()[0] == 200


def test_no_connection_lasts_whatever_it_does(run, monkeypatch):
    monkeypatch.setattr(server, "_LONGEST_CONNECTION_S", 0.3)
    with watched(run.path, monkeypatch) as page, ExitStack() as stack:
        assert ended(dial(page, stack))
        assert page.ask()[0] == 200


def test_more_than_can_be_served_are_turned_away_and_room_is_made_again(run, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 5)
    with watched(run.path, monkeypatch) as page:
        with ExitStack() as stack:
            for _ in range(5):
                dial(page, stack)
            until(lambda: page.ask()[0] == 503)
        until(lambda: page.ask()[0] == 200)


def test_headers_without_end_are_refused(page):
    with ExitStack() as stack:
        dialled = dial(page, stack)
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                dialled.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 4000 + b"\r\n")
            answer = dialled.recv(100)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert page.ask()[0] == 200


def test_a_port_in_use_is_refused_in_a_sentence(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port {port} of 127.0.0.1 cannot be had .*give another"):
            server.serve(run.path, port, lambda: False)


def test_the_port_asked_for_is_used_and_free_afterwards(run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        with watched(run.path, monkeypatch, port) as page:
            assert page.port == port
            assert page.ask()[0] == 200
        with pytest.raises(ConnectionRefusedError):
            page.ask()


def test_a_directory_that_is_no_run_is_refused_before_anything_listens(tmp_path):
    with pytest.raises(BadInput, match="no run"):
        server.serve(tmp_path, 0, lambda: False)
