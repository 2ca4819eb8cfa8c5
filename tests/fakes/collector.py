"""An OTLP/HTTP collector on a real port, and the conventions that what it receives is held against."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "otel"
REGISTRY: dict[str, Any] = json.loads((GOLDEN / "registry.json").read_text())
SCHEMAS = {
    path.stem: Draft202012Validator(json.loads(path.read_text())) for path in GOLDEN.glob("gen-ai-*.json")
}
SCHEMA_OF = {
    "gen_ai.input.messages": "gen-ai-input-messages",
    "gen_ai.output.messages": "gen-ai-output-messages",
    "gen_ai.system_instructions": "gen-ai-system-instructions",
    "gen_ai.tool.definitions": "gen-ai-tool-definitions",
}
_IS_OF_TYPE = {
    "string": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "double": lambda value: type(value) is float,
    "boolean": lambda value: type(value) is bool,
    "string[]": lambda value: type(value) is list and all(type(item) is str for item in value),
    "any": lambda value: True,
}


@dataclass
class Collector:
    """`received` holds path and body of each request, in order."""

    endpoint: str = ""
    received: list[tuple[str, bytes]] = field(default_factory=list)

    def spans(self) -> list[Span]:
        return [
            span
            for path, body in self.received
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            if scope.schema_url == REGISTRY["schema_url"]
            for span in scope.spans
        ]

    def metrics(self) -> list[Metric]:
        return [
            metric
            for path, body in self.received
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            if scope.schema_url == REGISTRY["schema_url"]
            for metric in scope.metrics
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.received.append((self.path, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as they came over the wire, as Python values."""
    return {item.key: _plain(item.value) for item in attributes}


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return plain(value.kvlist_value.values)
        case None:
            return None
        case name:
            return getattr(value, name)


def breaches(attributes: dict[str, Any], allowed: str) -> list[str]:
    """Where a span's attributes leave the conventions; `allowed` is the kind of span."""
    found = []
    for name, value in attributes.items():
        if name.startswith("ratchet."):
            continue
        if name.startswith(("gen_ai.", "openai.")) and name not in REGISTRY["spans"][allowed]:
            found.append(f"{name} is no attribute of {allowed}")
        if not _IS_OF_TYPE[REGISTRY["attributes"].get(name, "any")](value):
            found.append(f"{name} is not of type {REGISTRY['attributes'][name]}")
        if name not in REGISTRY["attributes"]:
            found.append(f"{name} is not in the registry")
        if name in SCHEMA_OF:
            found += [f"{name}{error.json_path[1:]}: {error.message}" for error in schema_errors(name, value)]
    return found


def schema_errors(name: str, value: Any) -> list[Any]:
    """What the schema says, and for parts of messages what it says of their own type: as a whole it lets every part
    with a type pass."""
    schema = SCHEMAS[SCHEMA_OF[name]]
    errors = list(schema.iter_errors(value))
    definitions = schema.schema["$defs"]
    for part in [part for message in value for part in message.get("parts", ())]:
        if part["type"] in definitions:
            rules = schema.evolve(schema={"$defs": definitions} | definitions[part["type"]])
            errors += rules.iter_errors(part)
    return errors


def metric_breaches(metric: Metric) -> list[str]:
    """Where a metric leaves the conventions."""
    known = REGISTRY["metrics"].get(metric.name)
    if known is None:
        return [f"{metric.name} is not in the registry"]
    found = [] if metric.unit == known["unit"] else [f"{metric.name} is in {metric.unit}"]
    kind = metric.WhichOneof("data")
    if kind != {"counter": "sum", "histogram": "histogram"}[known["instrument"]]:
        found.append(f"{metric.name} is a {kind}")
    points: Any = metric.sum.data_points or metric.histogram.data_points
    for point in points:
        attributes = plain(point.attributes)
        found += [f"{metric.name} has {name}" for name in attributes if name not in known["attributes"]]
        found += [
            f"{name} is {attributes[name]}"
            for name, values in REGISTRY["values"].items()
            if attributes.get(name, values[0]) not in [*values, "ratchet"]
        ]
        if known["instrument"] == "histogram" and list(point.explicit_bounds) != known["boundaries"]:
            found.append(f"{metric.name} has other boundaries")
    return found
