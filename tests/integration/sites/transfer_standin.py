"""A stand-in for Globus Transfer and its tokens: a collection is a directory, and a transfer a real copy of files.

Run as ``python transfer_standin.py PORT COLLECTIONS`` with a JSON object of directories by collection. It checks
nobody's word, and is reached over loopback only.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request

PORT = int(sys.argv[1])
ROOTS: dict[str, str] = json.loads(sys.argv[2])

app = Flask(__name__)
states: dict[str, str] = {}


def place(collection: str, path: str) -> Path:
    return Path(ROOTS[collection], path.lstrip("/"))


def carry_out(task: str, asked: dict[str, Any]) -> None:
    """Copy or delete, whole or not at all."""
    try:
        for item in asked["DATA"]:
            if asked["DATA_TYPE"] == "delete":
                place(asked["endpoint"], item["path"]).unlink()
                continue
            source = place(asked["source_endpoint"], item["source_path"])
            target = place(asked["destination_endpoint"], item["destination_path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            shutil.copyfile(source, part)
            part.replace(target)
        states[task] = "SUCCEEDED"
    except OSError as error:
        app.logger.error("%s: %s", asked, error)
        states[task] = "FAILED"


@app.get("/v0.10/endpoint/<collection>")
def endpoint(collection: str) -> Response:
    return jsonify(DATA_TYPE="endpoint", id=collection, entity_type="GCP_mapped_collection", high_assurance=False)


@app.get("/v0.10/submission_id")
def submission() -> Response:
    return jsonify(DATA_TYPE="submission_id", value=str(uuid.uuid4()))


@app.post("/v0.10/transfer")
@app.post("/v0.10/delete")
def submit() -> Response:
    task, asked = str(uuid.uuid4()), request.json
    assert asked is not None
    states[task] = "ACTIVE"
    threading.Thread(target=carry_out, args=(task, asked)).start()
    return jsonify(
        DATA_TYPE="transfer_result",
        code="Accepted",
        message="",
        task_id=task,
        submission_id=asked["submission_id"],
        request_id="x",
        resource="/",
    )


@app.get("/v0.10/task/<task>")
def state(task: str) -> Any:
    if task not in states:
        return jsonify(code="BadRequest", message="no such task", request_id="x", resource="/"), 400
    return jsonify(DATA_TYPE="task", task_id=task, status=states[task])


@app.post("/v2/oauth2/token")
def token() -> Response:
    return jsonify(
        access_token="x" * 40,
        resource_server="transfer.api.globus.org",
        token_type="Bearer",
        expires_in=172_800,
        scope="urn:globus:auth:scope:transfer.api.globus.org:all",
        other_tokens=[],
    )


if __name__ == "__main__":
    app.run("127.0.0.1", PORT, threaded=True)
