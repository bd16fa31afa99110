"""The files of `deploy/`, without Docker and without Kubernetes: against their schemas, and against what they speak of.

The compose file is checked with the whole schema of the Compose specification (check-jsonschema carries it), the Serve
configurations with Ray's own schema, queries and alert rules with Prometheus' grammar (promql-parser), the RayService with
`rayservice.schema.json`, which holds the parts of the operator's schema that the manifest uses. Beyond that: every path,
volume, port, environment name, setting, deployment and metric that is named has to exist. What only a build can show (that
the image builds, that the pods start) is not shown here.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

import bespoke
from serving import loopback, metrics, process
from serving.settings import PREFIX, Settings
from tests.conftest import ROOT

with warnings.catch_warnings(action="ignore"):  # Ray's own
    from ray.serve.schema import ServeDeploySchema

    from serving import deployments

DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "bespoke.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
RAYSERVICE = yaml.safe_load((DEPLOY / "kuberay" / "rayservice.yaml").read_text(encoding="utf-8"))
SERVE_CONFIGS = {
    "ray_config.yaml": yaml.safe_load((ROOT / "ray_config.yaml").read_text(encoding="utf-8")),
    "two_sites.yaml": yaml.safe_load((DEPLOY / "two_sites.yaml").read_text(encoding="utf-8")),
    "rayservice.yaml": yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"]),
}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    **{f"compose {name}": one.get("environment", {}) for name, one in COMPOSE["services"].items()},
    **{
        f"rayservice {one['name']}": {entry["name"]: entry.get("value") for entry in one["env"]}
        for one in (
            *RAYSERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"],
            *RAYSERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"],
        )
    },
    "image": {
        name: value.strip('"')
        for name, value in re.findall(r'(?m)^(?:ENV )?\s*([A-Z_]+)=("[^"]*"|\S+?)(?: \\)?$', CONTAINERFILE)
    },
}


def valid(document: Any, schema: dict[str, Any]) -> None:
    problems = [f"{one.json_path}: {one.message}" for one in validator_for(schema)(schema).iter_errors(document)]
    assert problems == []


def queries() -> Iterator[tuple[str, str]]:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]


def exposed() -> dict[str, set[str]]:
    """Every name under which a sample can be asked for, with its labels; what Prometheus and `site` add included."""
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    kinds = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    for value in vars(metrics).values():
        if isinstance(value, (metrics.Counter, metrics.Gauge, metrics.Histogram)):
            for suffix in kinds[value._type]:
                extra = {"le"} if suffix == "_bucket" else set()
                found[value._name + suffix] = {*value._labelnames, *extra, "site", "job", "instance"}
    return found


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, (str, float)):
            yield from selectors(child)
    for child in getattr(node, "args", ()) or ():
        yield from selectors(child)


@pytest.mark.parametrize(("name", "query"), list(queries()))
def test_every_query_names_metrics_and_labels_that_exist(name: str, query: str) -> None:
    known = exposed()
    found = list(selectors(promql_parser.parse(query)))
    # The walk above sees every selector: none is hidden in a kind of node that it does not know.
    assert {one.name for one in found} == set(re.findall(r"\b(?:bespoke_\w+|up\b)", query))
    for one in found:
        assert one.name in known, name
        assert {matcher.name for matcher in one.matchers.matchers} <= known[one.name], name
        routes = [m.value for m in one.matchers.matchers if m.name == "route"]
        assert set(routes) <= {"/v1/recommendations", "/v1/events"}
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert set(grouped.replace(" ", "").split(",")) <= set().union(*(known[one.name] for one in found)), name


def test_every_alarm_metric_has_an_alert_and_every_metric_a_panel() -> None:
    alerts = " ".join(query for name, query in queries() if name.startswith("alert"))
    for gauge in ("release_refused", "circuit_open", "policy_problems", "refreshed_timestamp", "release_withdrawn"):
        assert f"bespoke_{gauge}" in alerts
    panels = " ".join(query for name, query in queries() if name.startswith("panel"))
    assert all(re.sub("_(bucket|sum|count|total)$", "", name) in panels for name in exposed() if name != "up")


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        for command in re.findall(r"`bespoke (\w+)", rule["annotations"]["action"]):
            assert command in bespoke.COMMANDS


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == datasource()["uid"]
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["site"]


def datasource() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    assert found["apiVersion"] == 1
    (one,) = found["datasources"]
    return dict(one)


def test_compose_holds_to_its_specification() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    valid(COMPOSE, schema)
    broken = {**COMPOSE, "services": {"a": {"image": 3}}}
    assert list(validator_for(schema)(schema).iter_errors(broken))  # the schema is not one that lets anything pass


def test_compose_names_what_exists() -> None:
    services = COMPOSE["services"]
    volumes = set()
    for name, one in services.items():
        assert set(one.get("depends_on", ())) <= set(services), name
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), source
            else:
                volumes.add(source)
        for port in one.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} would be open to everybody"
    assert volumes == set(COMPOSE["volumes"])
    build = services["service"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert services["metrics"]["image"] == services["service"]["image"]
    assert datasource()["url"] == "http://prometheus:9090"
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    offered = set(re.findall(r"(?m)^([A-Z_]+)=", (DEPLOY / ".env.example").read_text(encoding="utf-8")))
    assert asked == offered
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_prometheus_scrapes_the_exporter_and_reads_the_rules() -> None:
    found = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert [(DEPLOY / "prometheus" / name).is_file() for name in found["rule_files"]] == [True]
    (job,) = found["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    command = COMPOSE["services"][host]["command"]
    assert command[:2] == ["bespoke", "metrics"]
    assert command[command.index("--port") + 1] == port
    assert all(f'job="{job["job_name"]}"' in query for _, query in queries() if query.startswith("up{"))


def test_dashboards_are_where_grafana_looks() -> None:
    found = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/bespoke.yaml").read_text(encoding="utf-8"))
    path = found["providers"][0]["options"]["path"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == path
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_environment_names_are_settings_that_exist(where: str) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    given = {name: value for name, value in ENVIRONMENTS[where].items() if name.startswith(PREFIX)}
    assert set(given) <= known
    plain = {name.removeprefix(PREFIX).lower(): value for name, value in given.items() if value and "$" not in value}
    Settings.load(plain | ({"auth": "on"} if "host" in plain else {}), environment={})


def test_the_image_has_the_fast_profile() -> None:
    found = ENVIRONMENTS["image"]
    assert {name: found[name] for name in process.FAST_PROFILE} == process.FAST_PROFILE
    assert found[loopback.BINARY].endswith(f"/bin/{loopback.COMMAND}")


def test_the_image_copies_what_exists_and_all_that_is_needed() -> None:
    stage = CONTAINERFILE.split("\nFROM ")[1]
    copied = [word for line in re.findall(r"(?m)^COPY (?!--)(.+)$", stage) for word in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {
        name.split(".")[0] for name in re.search(r"packages = \[(.*?)\]", project, re.DOTALL)[1].split('"')[1::2]
    }  # type: ignore[index]
    assert packages <= set(copied)
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    extras = re.search(r"EXTRAS=(\S+)", CONTAINERFILE)
    assert extras is not None
    assert all(re.search(rf"(?m)^{extra} = \[", project) for extra in extras[1].split(","))


def test_the_image_runs_as_nobody_in_particular_and_is_asked_how_it_is() -> None:
    last = CONTAINERFILE.rsplit("\nFROM ", 1)[1]
    instructions = re.findall(r"(?m)^([A-Z]+) (.+)$", last)
    users = [rest for word, rest in instructions if word == "USER"]
    assert users == ["bespoke"]
    assert "--uid 10001" in last
    assert dict(instructions)["CMD"] == '["bespoke", "serve"]'
    assert "/healthz" in last
    words = {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "CMD",
    }
    joined = re.sub(r"\\\n", " ", CONTAINERFILE)
    assert {line.split()[0] for line in joined.splitlines() if line and not line.startswith("#")} <= words


def test_the_rayservice_holds_to_its_schema() -> None:
    schema = json.loads((Path(__file__).parent / "rayservice.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    valid(RAYSERVICE, schema)
    typo = json.loads(json.dumps(RAYSERVICE).replace("claimName", "claimname"))
    assert list(Draft202012Validator(schema).iter_errors(typo))


def test_the_rayservice_names_what_exists() -> None:
    cluster = RAYSERVICE["spec"]["rayClusterConfig"]
    pinned = re.search(r"(?m)^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert spec["securityContext"]["runAsUser"] == 10001
    (worker,) = cluster["workerGroupSpecs"]
    served, counted = worker["template"]["spec"]["containers"]
    folder = {"name": metrics.FOLDER, "value": "/var/lib/bespoke/metrics"}
    assert folder in served["env"]
    assert folder in counted["env"]
    port = worker["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert counted["command"] == ["bespoke", "metrics", "--host", "0.0.0.0", "--port", port]
    assert [one["containerPort"] for one in served["ports"]] == [
        SERVE_CONFIGS["rayservice.yaml"]["http_options"]["port"]
    ]


@pytest.mark.parametrize("name", SERVE_CONFIGS)
def test_serve_configurations_hold_to_rays_schema_and_name_what_exists(name: str) -> None:
    config = SERVE_CONFIGS[name]
    parsed = ServeDeploySchema.model_validate(config)
    # The schema takes unknown names for those of a later version; here they are mistakes.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    prefixes = [one.route_prefix for one in parsed.applications]
    assert len(set(prefixes)) == len(prefixes)
    for application in config["applications"]:
        assert application["import_path"] == "serving.app:build"
        settings = Settings.load(application["args"], environment={})
        names = {one["name"] for one in application.get("deployments", ())}
        fused = settings.topology == "fused"
        assert names <= ({"Fused"} if fused else {"Ingress", "Retrieval", "Ranking", "Rules"})
        assert all(hasattr(deployments, one) for one in names)
        for one in application.get("deployments", ()):
            assert one["num_replicas"] == settings.replicas
    timeout = config["http_options"]["request_timeout_s"]
    assert timeout > Settings().request_timeout_s


def test_two_sites_share_nothing() -> None:
    north, south = SERVE_CONFIGS["two_sites.yaml"]["applications"]
    for name in ("name", "route_prefix"):
        assert north[name] != south[name]
    for name in ("site", "releases", "store"):
        assert north["args"][name] != south["args"][name]
    folders = [one["runtime_env"]["env_vars"][metrics.FOLDER] for one in (north, south)]
    assert folders[0] != folders[1]
