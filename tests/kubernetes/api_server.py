"""As much of a Kubernetes API server as an operator talks to, on loopback.

It lists, watches and patches custom resources of one namespace. As the real one does, it counts
generations and versions, keeps what is to be deleted until its finalizers are gone, leaves out of a
status what the resource's schema does not have, and refuses what contradicts that.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jsonpatch
import jsonschema
import yaml
from aiohttp import web

NAMESPACE: Final = "models"
CRDS: Final = Path(__file__).parents[2] / "deploy" / "helm" / "sllm" / "crds"
_GROUP: Final = "/apis/serverlessllm.io/v1alpha1"
_KUBECONFIG: Final = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: somebody}}}}]
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: somebody, user: {{token: some-token}}}}]
"""

Json = dict[str, Any]


def crd(plural: str) -> Json:
    """The definition of a kind of resource."""
    content: Json = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    return content


def schema(plural: str) -> Json:
    """The schema of its only version."""
    (version,) = crd(plural)["spec"]["versions"]
    content: Json = version["schema"]["openAPIV3Schema"]
    return content


class ApiServer:
    """Keeps resources in memory. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._kinds = {path.stem: crd(path.stem)["spec"]["names"] for path in CRDS.iterdir()}
        self._objects: dict[tuple[str, str], Json] = {}
        self._events: list[tuple[str, Json]] = []
        """Of all watches: what happened, and the object as it was then."""
        self._version = 0
        self._lock = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self.patches = 0
        """Writes that came from outside."""
        self.url = ""

    @contextmanager
    def serving(self, directory: Path) -> Iterator[Path]:
        """Serves within the context; gives the kubeconfig that leads to it."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        self.url = self._call(self._start(runner))
        (directory / "kubeconfig").write_text(_KUBECONFIG.format(url=self.url))
        yield directory / "kubeconfig"
        self._call(self._end(runner))
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()

    # --- what a user does with kubectl ----------------------------------------------------------

    def apply(self, plural: str, name: str, spec: Json) -> None:
        """Makes a resource, or changes its spec.

        Raises:
            jsonschema.ValidationError: Its schema does not allow it.
        """
        jsonschema.validate({"spec": spec}, schema(plural))
        with self._lock:
            if (present := self._objects.get((plural, name))) is None:
                meta: Json = {"name": name, "namespace": NAMESPACE, "uid": f"{plural}-{name}"}
                meta |= {"creationTimestamp": _now(), "generation": 1}
                kind = self._kinds[plural]["kind"]
                made = {"apiVersion": "serverlessllm.io/v1alpha1", "kind": kind, "spec": spec}
                self._put("ADDED", plural, {**made, "metadata": meta})
            elif present["spec"] != spec:
                meta = {**present["metadata"], "generation": present["metadata"]["generation"] + 1}
                self._put("MODIFIED", plural, {**present, "metadata": meta, "spec": spec})

    def delete(self, plural: str, name: str) -> None:
        """Deletes a resource, as soon as nobody's finalizer keeps it."""
        with self._lock:
            present = self._objects[plural, name]
            meta = {**present["metadata"], "deletionTimestamp": _now()}
            self._put("MODIFIED", plural, {**present, "metadata": meta})

    def get(self, plural: str, name: str) -> Json | None:
        """A resource; None if there is none."""
        with self._lock:
            return self._objects.get((plural, name))

    def status(self, plural: str, name: str) -> Json:
        """Its status, empty at first."""
        found = (self.get(plural, name) or {}).get("status", {})
        return dict(found)

    def condition(self, plural: str, name: str, kind: str) -> Json:
        """One condition of its status; empty if there is none of this type."""
        conditions = self.status(plural, name).get("conditions", [])
        return next((dict(one) for one in conditions if one["type"] == kind), {})

    # --- what it is asked over HTTP ---------------------------------------------------------------

    def _app(self) -> web.Application:
        app = web.Application()
        groups = [_group("serverlessllm.io", "v1alpha1"), _group("apiextensions.k8s.io", "v1")]
        own = [_kind("namespaces", "Namespace"), _kind("events", "Event")]
        crds = [_kind("customresourcedefinitions", "CustomResourceDefinition")]
        app.router.add_get("/api", _answer({"versions": ["v1"]}))
        app.router.add_get("/api/v1", _answer({"resources": own}))
        app.router.add_get("/apis", _answer({"groups": groups}))
        app.router.add_get("/apis/apiextensions.k8s.io/v1", _answer({"resources": crds}))
        app.router.add_get(_GROUP, _answer({"resources": self._resources()}))
        where = f"{_GROUP}/namespaces/{NAMESPACE}/{{plural}}"
        app.router.add_get(where, self._list_or_watch)
        app.router.add_patch(f"{where}/{{name}}", self._patch)
        app.router.add_patch(f"{where}/{{name}}/{{subresource}}", self._patch)
        return app

    def _resources(self) -> list[Json]:
        return [
            _kind(f"{plural}{tail}", names["kind"])
            for plural, names in self._kinds.items()
            for tail in ("", "/status")
        ]

    async def _list_or_watch(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if request.query.get("watch") != "true":
            with self._lock:
                items = [one for (kind, _), one in self._objects.items() if kind == plural]
                meta = {"resourceVersion": str(self._version)}
            kind = f"{self._kinds[plural]['kind']}List"
            return web.json_response({"kind": kind, "metadata": meta, "items": items})
        since = int(request.query.get("resourceVersion") or 0)
        answer = web.StreamResponse()
        await answer.prepare(request)
        sent = 0
        with suppress(ConnectionResetError):  # whoever watches has left
            while True:
                with self._lock:
                    news, sent = self._events[sent:], len(self._events)
                for what, one in news:
                    version = int(one["metadata"]["resourceVersion"])
                    if version > since and one["kind"] == self._kinds[plural]["kind"]:
                        line = json.dumps({"type": what, "object": one}).encode()
                        await answer.write(line + b"\n")
                await asyncio.sleep(0.02)
        return answer

    async def _patch(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        patch = json.loads(await request.read())
        with self._lock:
            present = self._objects.get((plural, name))
            if present is None:
                return web.json_response({"kind": "Status", "code": 404}, status=404)
            part = "status" if "subresource" in request.match_info else "metadata"
            by_operations = request.content_type == "application/json-patch+json"
            whole = (
                jsonpatch.apply_patch(present, patch) if by_operations else _merged(present, patch)
            )
            wanted = {**present, part: whole.get(part, {})}
            wanted["status"] = _pruned(wanted.get("status", {}), schema(plural), "status")
            try:
                jsonschema.validate(wanted, schema(plural))
            except jsonschema.ValidationError as error:
                return web.json_response({"kind": "Status", "message": str(error)}, status=422)
            self.patches += 1
            return web.json_response(self._put("MODIFIED", plural, wanted))

    # --- keeping it -------------------------------------------------------------------------------

    def _put(self, what: str, plural: str, one: Json) -> Json:
        self._version += 1
        one = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self._version)}}
        key = plural, one["metadata"]["name"]
        gone = "deletionTimestamp" in one["metadata"] and not one["metadata"].get("finalizers")
        if gone:
            self._objects.pop(key, None)
        else:
            self._objects[key] = one
        self._events.append(("DELETED" if gone else what, one))
        return one

    async def _start(self, runner: web.AppRunner) -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _end(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def _group(name: str, version: str) -> Json:
    one = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


def _kind(name: str, kind: str) -> Json:
    verbs = ["get", "list", "watch", "patch"]
    namespaced = kind not in ("Namespace", "CustomResourceDefinition")
    return {
        "name": name,
        "kind": kind,
        "singularName": "",
        "verbs": verbs,
        "namespaced": namespaced,
    }


def _answer(content: Json) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(content)

    return answer


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _pruned(value: Json, schema: Json, key: str) -> Json:
    known = schema["properties"][key]["properties"]
    return {name: one for name, one in value.items() if name in known}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
