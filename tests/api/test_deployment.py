"""`Dockerfile`, `compose.yaml` and the dashboard, against the server that they run."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.config import Config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/compose/grafana"
DEFAULT = ROOT / "ensemblehub/builtin/builtin_tandem.yaml"  # what `serve` serves without a file
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
ECHO = {
    "model_specs": [{"name": "a", "engine": "echo"}, {"name": "b", "engine": "echo"}],
    "ensemble": {"output_aggregation_method": "loop"},
}


@pytest.fixture(scope="module")
def metrics():
    """What a server that has answered once says."""
    asked = {"model": "ensemble", "messages": [{"role": "user", "content": "Hi"}]}
    with TestClient(
        create_app(Config.from_dict(ECHO)), "http://127.0.0.1", client=("127.0.0.1", 1)
    ) as client:
        while client.get("/health").status_code != 200:
            pass
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
        return client.get("/metrics").text


def dockerfile():
    """The instructions, each on a line, by stage."""
    text = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [line.split(None, 1) for line in text.splitlines() if line.strip()]


def test_the_dashboard_shows_metrics_that_the_server_has(metrics):
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    used = set(re.findall(r"ensemblehub_\w+", shown))
    families = set(re.findall(r"^# TYPE (\w+)", metrics, re.MULTILINE))
    found = families | {f"{name}_bucket" for name in families}
    assert used
    assert used <= found
    assert {f"ensemblehub_{name}" for name in ("requests_total", "running", "flops_total")} <= used


def test_labels_in_the_dashboard_are_those_of_the_metrics(metrics):
    for panel in PANELS:
        for target in panel["targets"]:
            (by,) = re.findall(r"by \(([\w, ]+)\)", target["expr"])[:1] or [""]
            name = re.search(r"ensemblehub_\w+", target["expr"])[0]
            sample = re.search(rf"^{name}\{{(.*?)\}}", metrics, re.MULTILINE)
            if sample:
                assert set(filter(None, by.split(", "))) <= set(re.findall(r"(\w+)=", sample[1])), panel[
                    "title"
                ]


def test_the_image_is_rootless_pinned_and_checked():
    lines = dockerfile()
    kinds = [kind for kind, _ in lines]
    last = dict(lines[len(kinds) - kinds[::-1].index("FROM") - 1 :])
    assert last["USER"] == "10001:10001"
    assert "/health" in last["HEALTHCHECK"]
    assert json.loads(last["CMD"])[:1] == ["serve"]
    assert json.loads(last["ENTRYPOINT"]) == ["ensemblehub"]
    assert json.loads(last["VOLUME"]) == ["/models"]
    assert last["EXPOSE"] == "8000"
    for kind, text in lines:
        assert kind != "ADD"
        if kind == "FROM":
            assert ":" in text.split()[0]
            assert "latest" not in text
        if kind == "RUN":
            assert "sudo" not in text
            assert "pip" not in text or "--no-cache-dir" in text
        if kind == "COPY" and "--from" not in text:
            ignored = (ROOT / ".dockerignore").read_text().split()
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


@pytest.mark.parametrize("path", ["compose.yaml", "examples/compose/replicas.yaml"])
def test_compose_files_keep_to_the_compose_specification(path):
    """Its schema, without descriptions: https://github.com/compose-spec/compose-spec (Apache-2.0)."""
    schema = json.loads((ROOT / "tests/api/compose-spec.json").read_text())
    compose = yaml.safe_load((ROOT / path).read_text())
    jsonschema_rs.validate(schema, compose)
    service = next(iter(compose["services"].values()))
    service["port"] = service.pop("image")
    with pytest.raises(jsonschema_rs.ValidationError, match="port"):
        jsonschema_rs.validate(schema, compose)


def test_the_services_fit_together():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"ensemblehub", "open-webui", "prometheus", "grafana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "latest" not in service["image"]
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in compose["volumes"] or (ROOT / source).is_file()
    scraped = yaml.safe_load(compose["configs"]["prometheus"]["content"])["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["ensemblehub:8000"]
    source = yaml.safe_load((FOLDER / "datasource.yaml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    webui = services["open-webui"]["environment"]
    assert "/v1" in webui["OPENAI_API_BASE_URL"]
    assert json.loads(webui["DEFAULT_MODEL_METADATA"])["capabilities"] == {"builtin_tools": False}
    assert webui["TASK_MODEL_EXTERNAL"] in [
        spec["name"] for spec in yaml.safe_load(DEFAULT.read_text())["model_specs"]
    ]
