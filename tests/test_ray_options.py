"""Options of `--ray`, without Ray."""

import asyncio
import signal
import socket
import socketserver
import sys
import threading
from contextlib import contextmanager
from types import ModuleType

import pytest

from ensemblehub import cli
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.ray_cluster import Cluster, interruptible_once
from ensemblehub.ray_data import placed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "2"], "go with --ray"),
        (["--server", "far=http://a/v1"], "go with --ray"),
        (["--ray", "pair.yaml"], "expected local, auto or HOST:PORT, not 'pair.yaml'"),
        (["--ray", "--workers", "4-2"], "expected N or MIN-MAX"),
        (["--ray", "--server", "far"], "expected MODEL=URL"),
        (["--ray", "--server", "far=host:8000/v1"], "expected MODEL=URL"),
        (["--ray", "--shard", "0/2"], "--ray starts its workers itself"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, text):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    paths = ["--input_path", str(tmp_path / "in.jsonl"), "--output_path", str(tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["infer", *paths, *options])
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err


def test_each_worker_takes_one_server_of_each_model():
    specs = [{"name": name, "path": f"org/{name}", "engine": "openai"} for name in ("mentor", "intern")]
    config = Config.from_dict({"model_specs": [*specs, {"name": "near", "engine": "echo"}]})
    servers = {"mentor": ("http://m1/v1", "http://m2/v1"), "intern": ("http://i/v1",)}
    cluster = Cluster(servers=servers)
    cluster.check(config)
    found = [placed(config, cluster.servers_of(number)).model_specs for number in range(3)]
    assert [specs[0].options["base_url"] for specs in found] == [
        "http://m1/v1",
        "http://m2/v1",
        "http://m1/v1",
    ]
    assert {specs[1].options["base_url"] for specs in found} == {"http://i/v1"}
    with pytest.raises(ConfigError, match="did you mean 'mentor'"):
        Cluster(servers={"mento": ("http://m/v1",)}).check(config)
    with pytest.raises(ConfigError, match="near is no model of the engine openai"):
        Cluster(servers={"near": ("http://m/v1",)}).check(config)


def test_an_address_where_nothing_answers_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # not asked: it would wait for minutes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = f"127.0.0.1:{free.getsockname()[1]}"
        for address in (unused, "127.0.0.1:99999", "nobody.invalid:6379"):
            with pytest.raises(ConfigError, match=f"--ray {address}: no cluster answers there"):
                Cluster(address).connected().__enter__()


@contextmanager
def answering(said):
    """The address of a server that says something to whoever says something to it."""

    class Said(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1000)
            self.request.sendall(said)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Said) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("said", [b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n", b"+OK\r\n", b""])
def test_an_address_where_something_else_answers_is_one_line(monkeypatch, said):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # not asked: it would wait for minutes
    text = "--ray {}: what answers there is no head of a cluster"
    with answering(said) as address, pytest.raises(ConfigError, match=text.format(address)):
        Cluster(address).connected().__enter__()


def test_an_address_that_speaks_grpc_or_tls_is_left_to_ray(monkeypatch):
    ray, asked = ModuleType("ray"), []
    ray.init, ray.shutdown = lambda **options: asked.append(options["address"]), lambda: None
    ray.cluster_resources = dict
    monkeypatch.setitem(sys.modules, "ray", ray)
    settings = bytes.fromhex("00000c 04 00 00000000 0003 00000064 0004 00100000")
    with answering(settings) as grpc, answering(b"\x15\x03\x01\x00\x02\x02\x50") as tls:
        with Cluster(grpc).connected():
            pass
        monkeypatch.setenv("RAY_USE_TLS", "1")
        with Cluster(tls).connected():
            pass
        assert asked == [grpc, tls]


def test_a_slow_start_of_ray_is_tried_again(capsys, monkeypatch):
    ray, tries = ModuleType("ray"), []

    def init(**options):
        tries.append(options["address"])
        if len(tries) % 3:
            raise Exception("the node timed out\nduring startup")

    ray.init, ray.shutdown, ray.cluster_resources = init, lambda: None, dict
    monkeypatch.setitem(sys.modules, "ray", ray)
    with Cluster().connected():
        assert tries == ["local"] * 3
    assert capsys.readouterr().err == "Ray did not start: trying again\n" * 2
    tries.clear()
    with pytest.raises(ConfigError, match="--ray auto: the node timed out during startup"):
        Cluster("auto").connected().__enter__()


def test_a_worker_leaves_a_server_that_takes_no_connections_and_stays_with_the_next():
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        dead, alive = (f"http://127.0.0.1:{each.getsockname()[1]}/v1" for each in (gone, there))
        cluster = Cluster(servers={"mentor": (alive, dead), "intern": (dead,)})
        chosen = cluster.servers_of(1)
        assert chosen == {"mentor": dead, "intern": dead}
        moved = asyncio.run(cluster.reachable(chosen))
        assert moved == {"mentor": alive, "intern": dead}  # no other intern
        assert asyncio.run(cluster.reachable(moved)) == moved


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal; a job in the background of a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_interrupt_the_end_of_ray(monkeypatch, interruptible):
    ray, done = ModuleType("ray"), []

    def shutdown():
        signal.raise_signal(signal.SIGINT)
        done.append("shut down")

    ray.init, ray.shutdown, ray.cluster_resources = lambda **_: None, shutdown, dict
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(KeyboardInterrupt), Cluster().connected():
        signal.raise_signal(signal.SIGINT)
    assert done == ["shut down"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_ray_starts_ends_ray(monkeypatch, interruptible):
    ray, done = ModuleType("ray"), []
    ray.init = lambda **_: signal.raise_signal(signal.SIGINT)
    ray.shutdown = lambda: done.append("shut down")
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(KeyboardInterrupt):
        Cluster().connected().__enter__()
    assert done == ["shut down"]


def test_handlers_of_the_program_are_left_alone():
    handlers = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a job in the background of a shell
    try:
        with interruptible_once():
            handlers.append(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=lambda: interruptible_once().__enter__() or handlers.append("thread"))
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_IGN, "thread"]
