"""A stand-in for Globus Compute's web service and Globus Auth: state in memory, messages through a real RabbitMQ.

Run as ``python globus_standin.py HOST PORT AMQP_URL``. It answers what the real SDK and the real endpoint ask for one
user who may do everything; it checks nobody's word, so HOST is loopback's or one of a test's own namespace.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import uuid
from typing import Any

import pika
import pika.exceptions
from flask import Flask, Response, jsonify, request
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, Task
from globus_compute_sdk.serialize import ComputeSerializer
from globus_sdk import ComputeClientV3

HOST, PORT, AMQP = sys.argv[1], int(sys.argv[2]), sys.argv[3]

USER = {"sub": "11111111-1111-4111-8111-111111111111", "username": "tester@localhost"}
EXCHANGE, PREFIX = "globus", "group."

# An endpoint that was not heard of for longer is offline.
OFFLINE_S = 60

# What the service takes in a request.
MAX_BYTES = 10_000_000

app = Flask(__name__)
functions: dict[str, Any] = {}
heard_of: dict[str, float] = {}
group_of: dict[str, str] = {}


def broker() -> tuple[pika.BlockingConnection, Any]:
    connection = pika.BlockingConnection(pika.URLParameters(AMQP))
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "direct")
    return connection, channel


def queue(name: str, channel: Any) -> dict[str, Any]:
    """Make a queue, and return how its users find it."""
    channel.queue_declare(name)
    channel.queue_bind(name, EXCHANGE, name)
    publish = {"exchange": EXCHANGE, "routing_key": name, "mandatory": True}
    return {"connection_url": AMQP, "exchange": EXCHANGE, "queue": name, "queue_publish_kwargs": publish}


def credentials(endpoint: str) -> dict[str, Any]:
    """Return the queues of an endpoint, as the service hands them out."""
    connection, channel = broker()
    told: dict[str, Any] = {"endpoint_id": endpoint}
    for kind in ("task", "command"):
        told[f"{kind}_queue_info"] = queue(f"{endpoint}.{kind}s", channel)
    for kind in ("result", "heartbeat"):
        told[f"{kind}_queue_info"] = queue("results", channel)
    connection.close()
    return told


def hand_on_results() -> None:
    """Bring each result from its endpoint to whoever sent the task, over as many connections as that takes."""
    while True:
        try:
            _hand_on()
        except pika.exceptions.AMQPError:
            time.sleep(0.2)


def _hand_on() -> None:
    _, channel = broker()
    queue("results", channel)
    for method, _, body in channel.consume("results"):
        message = messagepack.unpack(body)
        if isinstance(message, Result):
            stamp = pika.BasicProperties(timestamp=int(time.time()))
            channel.basic_publish("", PREFIX + group_of[str(message.task_id)], body, stamp)
        elif isinstance(message, EPStatusReport):
            heard_of[str(message.endpoint_id)] = time.time()
        channel.basic_ack(method.delivery_tag)


@app.get("/v2/version")
def version() -> Response:
    return jsonify(api="1.0.0", min_sdk_version="1.0.0", min_ep_version="1.0.0")


@app.get("/v2/get_amqp_result_connection_url")
def results_at() -> Response:
    return jsonify(queue_prefix=PREFIX, connection_url=AMQP)


@app.post("/v3/functions")
def register_function() -> Response:
    function = str(uuid.uuid4())
    functions[function] = request.json
    return jsonify(function_uuid=function)


@app.post("/v3/endpoints")
@app.put("/v3/endpoints/<endpoint>")
def register_endpoint(endpoint: str | None = None) -> Response:
    endpoint = endpoint or str(uuid.uuid4())
    heard_of.setdefault(endpoint, 0.0)
    return jsonify(credentials(endpoint))


@app.get("/v2/endpoints/<endpoint>/status")
def status(endpoint: str) -> Any:
    if endpoint not in heard_of:
        return _unknown(endpoint)
    online = time.time() - heard_of[endpoint] < OFFLINE_S
    return jsonify(status="online" if online else "offline", details={})


@app.post("/v3/endpoints/<endpoint>/lock")
@app.delete("/v2/endpoints/<endpoint>")
def well(endpoint: str) -> Response:
    return jsonify(result=200, endpoint_id=endpoint)


@app.post("/v3/endpoints/<endpoint>/submit")
def submit(endpoint: str) -> Any:
    if endpoint not in heard_of:
        return _unknown(endpoint)
    if (request.content_length or 0) > MAX_BYTES:
        return jsonify(code="PAYLOAD_TOO_LARGE", reason="the request is too large", http_status_code=413), 413
    asked = request.json
    group = asked.get("task_group_id") or str(uuid.uuid4())
    values = asked.get("user_endpoint_config") or {}
    # One endpoint process for each set of values.
    digest = hashlib.sha256((endpoint + json.dumps(values, sort_keys=True)).encode()).hexdigest()
    process = str(uuid.UUID(digest[:32]))
    queues = credentials(process)
    connection, channel = broker()
    channel.queue_declare(PREFIX + group)
    start = {
        "command": "cmd_start_endpoint",
        "args": [],
        "kwargs": {
            "name": f"uep.{endpoint}.{process[:8]}",
            "amqp_creds": queues,
            "user_opts": values,
            "user_runtime": asked.get("user_runtime") or {},
        },
        "globus_effective_identity": USER["sub"],
        "globus_username": USER["username"],
        "globus_identity_set": [USER],
    }
    stamp = pika.BasicProperties(content_type="application/json", timestamp=int(time.time()))
    channel.basic_publish(EXCHANGE, f"{endpoint}.commands", json.dumps(start), stamp)
    sent: dict[str, list[str]] = {}
    for function, payloads in asked["tasks"].items():
        for payload in payloads:
            task = str(uuid.uuid4())
            group_of[task] = group
            code = ComputeSerializer.pack_buffers([]) + functions[function]["function_code"]
            headers = {"function_uuid": function, "task_uuid": task}
            for name in ("resource_specification", "result_serializers"):
                if asked.get(name):
                    headers[name] = json.dumps(asked[name]) if name == "resource_specification" else asked[name]
            body = messagepack.pack(Task(task_id=task, task_buffer=code + payload))
            channel.basic_publish(EXCHANGE, f"{process}.tasks", body, pika.BasicProperties(headers=headers))
            sent.setdefault(function, []).append(task)
    connection.close()
    return jsonify(request_id=str(uuid.uuid4()), task_group_id=group, endpoint_id=endpoint, tasks=sent)


def _unknown(endpoint: str) -> Any:
    reason = f"endpoint {endpoint} is not known"
    return jsonify(code="ENDPOINT_NOT_FOUND", reason=reason, http_status_code=404), 404


@app.post("/v2/oauth2/token")
def token() -> Response:
    def grant(server: str, scope: str) -> dict[str, Any]:
        return {
            "access_token": "x" * 40,
            "resource_server": server,
            "scope": scope,
            "token_type": "Bearer",
            "expires_in": 172_800,
        }

    scopes = request.form.get("scope", "").split()
    compute = " ".join(scope for scope in scopes if scope.startswith("https://"))
    auth = " ".join(scope for scope in scopes if not scope.startswith("https://"))
    first, *others = [
        grant(server, scope)
        for server, scope in ((ComputeClientV3.scopes.resource_server, compute), ("auth.globus.org", auth))
        if scope
    ]
    return jsonify({**first, "other_tokens": others})


@app.get("/v2/oauth2/userinfo")
def userinfo() -> Response:
    return jsonify(sub=USER["sub"], preferred_username=USER["username"], identity_set=[USER])


if __name__ == "__main__":
    threading.Thread(target=hand_on_results, daemon=True).start()
    app.run(HOST, PORT, threaded=True)
