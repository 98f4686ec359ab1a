"""The viewer's server: whom it answers, what it refuses, how it starts and ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssgan import view
from ssgan.viewing import server
from ssgan.viewing.browsing import FileBrowser
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.server import PAGE, Server
from tests.support.tiny_runs import make_run

ROOT = Path(__file__).parents[3]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.PCG64(0))
    nibabel.save(nibabel.Nifti1Image(rng.uniform(0, 9, (4, 5, 6)).astype(np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def files(tmp_path):
    """A server of tmp_path/scans; tmp_path/secret.nii is not to be had."""
    for name in ("scans/a.nii", "secret.nii"):
        write(tmp_path / name)
    (tmp_path / "scans" / "link.nii").symlink_to(tmp_path / "secret.nii")
    yield from served(FileBrowser([tmp_path / "scans"]))


@pytest.fixture(scope="module")
def of_a_run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("server"))
    yield from served(RunExplorer(run, None, None, view.pick_device("cpu")))


def served(source):
    server = Server(source)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(30)


def get(server, path, method="GET", **headers):
    """(status, headers, body) of a request whose path is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"127.0.0.1:{server.port}"} | headers).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_and_its_parts(files):
    for name in PAGE:
        status, headers, body = get(files, f"/{files.token}/{name}")
        assert status == 200 and len(body) == int(headers["Content-Length"]) > 100
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
        if name != "niivue.js":
            assert b"http:" not in body and b"https:" not in body
    page = get(files, f"/{files.token}/")[2].decode()
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) - {"data:,"} <= set(PAGE)


def test_niivue_comes_with_the_licences_of_all_that_is_in_it():
    folder = Path(server.__file__).parent / "page"
    licences, script = ((folder / name).read_text() for name in ("niivue.LICENSES.txt", "niivue.js"))
    for name in ("NiiVue 0.69.0", "gl-matrix", "nifti-reader-js", "fflate", "@lukeed/uuid", "array-equal",
                 "@ungap/structured-clone", "Roboto"):  # fmt: skip
        assert name in licences
    assert "Copyright (c) 2021, Niivue" in licences and "niivue.LICENSES.txt" in script[:200]
    packaged = re.search(r"^ssgan = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    assert '"viewing/page/*"' in packaged and all(path.is_file() for path in folder.iterdir())


WRONG = {"of another host": "evil.example", "that begins like ours": "127.0.0.1.evil.example", "empty": "",
         "of this machine in its network": "192.168.0.2"}  # fmt: skip


@pytest.mark.parametrize("host", WRONG.values(), ids=WRONG)
def test_another_host_name_is_refused(files, host):
    """As it comes from a page whose name was made to point here."""
    for name in (host, f"{host}:{files.port}"):
        status, _, body = get(files, f"/{files.token}/about", Host=name)
        assert status == 403 and b"a.nii" not in body


def test_an_absent_host_is_refused(files):
    assert get(files, f"/{files.token}/about", Host=None)[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_another_origin_is_refused(files, origin):
    origin = origin.format(port=files.port)
    status, headers, _ = get(files, f"/{files.token}/about", Origin=origin)
    assert status == 403 and "Access-Control-Allow-Origin" not in headers
    assert get(files, f"/{files.token}/about", Origin=f"http://127.0.0.1:{files.port}")[0] == 200
    tunnelled = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    assert get(files, f"/{files.token}/about", **tunnelled)[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/about", "//about", "/wrong/about", "/wrong/", "/{half}/about", "/{token}x/about"]
)
def test_a_wrong_token_is_refused(files, path):
    path = path.format(token=files.token, half=files.token[: len(files.token) // 2])
    status, _, body = get(files, path)
    assert status == 403 and "use the whole one" in json.loads(body)["error"] and files.token.encode() not in body


def test_tokens_are_long_and_differ(files, tmp_path):
    other = Server(FileBrowser([tmp_path / "scans"]))
    other.server_close()
    assert len(files.token) >= 20 and other.token != files.token


@pytest.mark.parametrize(
    "path",
    ["item/../secret.nii", "item/%2e%2e/secret.nii", "item/%2e%2e%2fsecret.nii", "item//etc/passwd", "item/link.nii",
     "item/..%5csecret.nii", "item/a.nii%00", "../secret.nii", "view.js/../../secret.nii", "page/view.js", "volume",
     "state", "__init__.py", "item", "verdict/%2e%2e/secret.nii"],
)  # fmt: skip
def test_what_is_not_shown_is_refused(files, path):
    status, _, body = get(files, f"/{files.token}/{path}")
    assert status == 403 and set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(files, method):
    assert get(files, f"/{files.token}/about", method)[0] == 501


def test_a_run_is_answered(of_a_run):
    about = json.loads(get(of_a_run, f"/{of_a_run.token}/about")[2])
    assert about["kind"] == "run" and about["training"] == 6
    status, headers, body = get(of_a_run, f"/{of_a_run.token}/save?seed=4&moves=1%3A0.5")
    assert status == 200 and headers["Content-Disposition"] == "attachment; filename*=UTF-8''seed0004-changed.nii.gz"
    assert body.startswith(b"\x1f\x8b")
    for path, status in (
        ("volume?seed=x", 400),
        ("item/6", 404),
        ("state", 200),
        ("directions", 200),
        ("nearest", 200),
    ):
        assert get(of_a_run, f"/{of_a_run.token}/{path}")[0] == status, path


def test_requests_at_the_same_time_wait_for_each_other(of_a_run):
    """Each gets the volume of its own seed."""
    alone = [get(of_a_run, f"/{of_a_run.token}/volume?seed={seed}")[2] for seed in range(8)]
    together: dict[int, bytes] = {}

    def ask(seed):
        together[seed] = get(of_a_run, f"/{of_a_run.token}/volume?seed={seed}")[2]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[seed] for seed in range(8)] == alone and len(set(alone)) == 8


def test_a_defect_is_told_and_the_server_goes_on(files, monkeypatch, capsys):
    monkeypatch.setattr(FileBrowser, "about", lambda self: 1 / 0)
    status, _, body = get(files, f"/{files.token}/about")
    assert status == 500 and "division by zero" in json.loads(body)["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert get(files, f"/{files.token}/")[0] == 200


# ---- the command ----


def test_it_listens_on_this_machine_alone(files):
    assert files.server_address[0] == "127.0.0.1" and files.address == f"http://127.0.0.1:{files.port}/{files.token}/"


def test_a_port_that_is_taken(tmp_path, capsys):
    path = write(tmp_path / "a.nii")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert view.main([str(path), "--port", str(port), "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ssgan view: error: --port {port}: ") and "leave it out for a port that is free" in error
    assert view.main([str(path), "--port", "70000", "--no-browser"]) == 2
    assert "--port 70000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["gone"], "gone does not exist"),
        (["a.nii", "--checkpoint", "x"], "--checkpoint and --data belong to a run; a.nii is none"),
        (["a.nii", "--data", "x"], "--checkpoint and --data belong to a run"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, match):
    write(tmp_path / "a.nii")
    monkeypatch.chdir(tmp_path)
    assert view.main([*arguments, "--no-browser"]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(("display", "ssh", "expected"), [("", "", False), (":0", "", True), (":0", "a 1 b 2", False)])
def test_where_a_browser_is_opened(monkeypatch, display, ssh, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in (("DISPLAY", display), ("SSH_CONNECTION", ssh), ("WAYLAND_DISPLAY", "")):
        monkeypatch.setenv(name, value)
    assert view.has_browser() is expected


@pytest.mark.parametrize("opens", [True, False])
def test_the_page_is_opened_in_the_default_browser(tmp_path, monkeypatch, capsys, opens):
    """Where none opens, the tunnel is printed. Ctrl-C is a normal end."""
    seen = []

    def serve_forever(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "has_browser", lambda: True)
    monkeypatch.setattr(view.webbrowser, "open", lambda address: seen.append(address) or opens)
    monkeypatch.setattr(Server, "serve_forever", serve_forever)
    assert view.main([str(write(tmp_path / "a.nii"))]) == 0
    out = capsys.readouterr().out
    assert seen == [out.splitlines()[0]] and ("ssh -N -L" in out) is not opens and out.endswith("stopped\n")


def test_without_a_browser_it_prints_the_tunnel_and_ctrl_c_ends_it(tmp_path):
    path = write(tmp_path / "a.nii")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"SSH_CONNECTION": "10.0.0.1 1234 10.0.0.9 22", "USER": "me", "LOGNAME": "me"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ssgan.view", str(path)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        first, second, third = (process.stdout.readline() for _ in range(3))
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/\n", first).groups()
        assert "Ctrl-C ends it" in second and f"ssh -N -L {port}:127.0.0.1:{port} me@10.0.0.9" in third
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
        connection.request("GET", f"/{token}/about")
        assert b"a.nii" in connection.getresponse().read()  # and the connection stays open
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "stopped\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii"]
