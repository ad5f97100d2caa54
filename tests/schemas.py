"""What Render and Fly.io accept, in JSON Schema: the keys that our files use, and no others.

Written from render.com/docs/blueprint-spec and fly.io/docs/reference/configuration. The schemas
that both publish are not copied: Render's has no license, and no package pins either of them.
"""

from typing import Any


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
NAME = {"type": "string", "pattern": "^[a-z0-9-]+$"}
PATH = {"type": "string", "pattern": "^/"}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m)$"}

_FROM_DATABASE = _object(
    "name property",
    name=NAME,
    property={"enum": ["connectionString", "host", "port", "user", "password", "database"]},
)
# Each variable has one source.
_VARIABLE = {
    "oneOf": [
        _object("key value", key=TEXT, value=TEXT),
        _object("key fromDatabase", key=TEXT, fromDatabase=_FROM_DATABASE),
        _object("key generateValue", key=TEXT, generateValue={"const": True}),
        _object("key sync", key=TEXT, sync={"const": False}),
        _object("fromGroup", fromGroup=NAME),
    ]
}
# Neither from elsewhere nor typed in the dashboard.
_GROUP = _object(
    "name envVars",
    name=NAME,
    envVars={"type": "array", "items": {"oneOf": [_VARIABLE["oneOf"][0], _VARIABLE["oneOf"][2]]}},
)
_WEB_SERVICE = _object(
    "type name runtime",
    type={"const": "web"},
    name=NAME,
    runtime={"enum": ["docker", "image", "python"]},
    plan={"enum": ["free", "starter", "standard", "pro", "pro plus", "pro max", "pro ultra"]},
    preDeployCommand=TEXT,
    dockerCommand=TEXT,
    healthCheckPath=PATH,
    maxShutdownDelaySeconds={"type": "integer", "minimum": 1, "maximum": 300},
    numInstances={"type": "integer", "minimum": 1},
    envVars={"type": "array", "items": _VARIABLE},
    # The free plan has no command before the rollout.
) | {"not": {"required": ["preDeployCommand"], "properties": {"plan": {"const": "free"}}}}
_CRON_JOB = _object(
    "type name runtime schedule",
    type={"const": "cron"},
    name=NAME,
    runtime={"enum": ["docker", "image", "python"]},
    plan={"enum": ["starter", "standard", "pro", "pro plus"]},
    schedule={"type": "string", "pattern": r"^(\S+ ){4}\S+$"},
    dockerCommand=TEXT,
    envVars={"type": "array", "items": _VARIABLE},
)
_DATABASE = _object(
    "name",
    name=NAME,
    plan={"type": "string", "pattern": r"^(free|(basic|pro|accelerated)-\d+[mg]b)$"},
    postgresMajorVersion={"enum": ["13", "14", "15", "16", "17", "18"]},
    databaseName=TEXT,
    user=TEXT,
    ipAllowList={"type": "array", "items": _object("source", source=TEXT, description=TEXT)},
)
RENDER = _object(
    "services",
    services={"type": "array", "items": {"anyOf": [_WEB_SERVICE, _CRON_JOB]}},
    databases={"type": "array", "items": _DATABASE},
    envVarGroups={"type": "array", "items": _GROUP},
)

_CHECK = _object(
    method={"enum": ["GET", "HEAD"]},
    path=PATH,
    interval=DURATION,
    timeout=DURATION,
    grace_period=DURATION,
)
FLY = _object(
    "app http_service",
    app=NAME,
    primary_region=TEXT,
    kill_signal={
        "enum": ["SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"]
    },
    kill_timeout={"type": "integer", "minimum": 1, "maximum": 300},
    deploy=_object(
        release_command=TEXT, strategy={"enum": ["canary", "rolling", "bluegreen", "immediate"]}
    ),
    env={"type": "object", "additionalProperties": {"type": "string"}},
    http_service=_object(
        "internal_port",
        internal_port={"type": "integer"},
        force_https=FLAG,
        auto_stop_machines={"enum": ["off", "stop", "suspend", True, False]},
        min_machines_running={"type": "integer"},
        checks={"type": "array", "items": _CHECK},
    ),
)
