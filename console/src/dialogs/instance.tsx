import type { ComponentChildren } from "preact";
import { cluster } from "../api";
import type { MigrateResponse } from "../gen/serverlessllm/v1/cluster_service_pb";
import { type Instance, InstanceState } from "../gen/serverlessllm/v1/types_pb";
import { bytes, millis, plural, seconds, span } from "../format";
import { close, Confirm, Dialog, open } from "../parts/dialog";
import { StartBar } from "../parts/start-bar";
import { follow } from "../parts/toasts";
import { to } from "../route";
import { instances, nodes } from "../state/cluster";
import { words as stateOf } from "../state/live";
import { now } from "../state/summary";

export function InstanceDialog({ id }: { id: string }) {
  const live = instances.of(id)?.value;
  const instance = live?.load.instance;
  if (!live || !instance) return <Gone id={id} />;
  const began = millis(instance.startedAt);
  const facts: [string, ComponentChildren][] = [
    ["State", stateOf(live)],
    ["Deployment", <a class="link" href={to("deployments", instance.deployment)} onClick={close}>{instance.deployment}</a>],
    ["Node", instance.nodeId],
    ["Engine", instance.engine || "–"],
    ["Tokens", String(live.load.generatedTokens)],
    ["KV cache", cacheOf(instance)],
    ["Own memory", instance.ownBytes > 0n ? bytes(instance.ownBytes) : "not measured"],
    ["Adapters", <Adapters instance={instance} />],
    ["Process", instance.workerPid ? String(instance.workerPid) : "–"],
    ["Age", !began ? "–" : span(Math.max(0, (now.value - began) / 1000))],
  ];
  return (
    <Dialog title={id}>
      {live.start && <StartBar start={live.start} />}
      <dl class="help">
        {facts.map(([name, value]) => (
          <>
            <dt class="quiet">{name}</dt>
            <dd>{value}</dd>
          </>
        ))}
      </dl>
      <div class="actions">
        <button type="button" class="button" onClick={close}>
          Close
        </button>
        <button
          type="button"
          class="button primary"
          disabled={instance.state !== InstanceState.READY}
          onClick={() => open(<MigrateDialog id={id} />)}
        >
          Migrate…
        </button>
      </div>
    </Dialog>
  );
}

/** What is used of it, and with how much the instance was started, where it has another. */
function cacheOf({ kvBytes, kvShare }: Instance): string {
  if (!kvShare) return bytes(kvBytes);
  const shown = `${bytes(kvShare.usedBytes)} of ${bytes(kvShare.sizeBytes)} used`;
  return kvShare.sizeBytes === kvBytes ? shown : `${shown}, began with ${bytes(kvBytes)}`;
}

/** Those that requests need not wait for, of as many as there may be at once. */
function Adapters({ instance }: { instance: Instance }) {
  const most = instance.config?.maxAdapters ?? 0;
  if (most === 0) return <span class="muted">it takes none</span>;
  const names = instance.adapters.map((one) => one.deployment).join(", ");
  return (
    <>
      {names || "none now"} <span class="muted">(up to {most})</span>
    </>
  );
}

function Gone({ id }: { id: string }) {
  return (
    <Dialog title={id}>
      <p class="quiet">It has ended.</p>
      <div class="actions">
        <button type="button" class="button" onClick={close}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

function MigrateDialog({ id }: { id: string }) {
  const live = instances.of(id)?.value;
  const from = live?.load.instance?.nodeId;
  const others = nodes.ids.value.filter((node) => node !== from && !nodes.peek(node)?.draining);
  return (
    <Confirm title={`Migrate ${id}?`} verb="Migrate" action={(form) => migrate(id, form)}>
      <p>
        Its {plural(live?.load.inFlight ?? 0, "request")} go on at another node while their callers
        read on, and the instance ends.
      </p>
      <label class="field">
        <span>To</span>
        <select class="input" name="node">
          <option value="">where they can go on soonest</option>
          {others.map((node) => (
            <option key={node}>{node}</option>
          ))}
        </select>
      </label>
    </Confirm>
  );
}

function migrate(id: string, form: FormData): void {
  const toNodeId = String(form.get("node") ?? "");
  const stream = cluster.migrate({ what: { case: "instanceId", value: id }, toNodeId });
  let moved = 0;
  const words = (message: MigrateResponse): string => {
    if (message.event.case === "moved") moved += 1;
    return said(message, moved);
  };
  void follow(`Migrating ${id}`, stream, words, "");
}

function said({ event }: MigrateResponse, moved: number): string {
  switch (event.case) {
    case "chosen": {
      const { nodeId, started, estimate } = event.value;
      const takes = estimate ? `, about ${span(seconds(estimate))}` : "";
      return `to ${nodeId}${started ? ", where an instance starts" : ""}${takes}`;
    }
    case "round":
      return `round ${event.value.number}: ${event.value.gapTokens} tokens behind`;
    case "moved":
      return `${plural(moved, "request")} moved; the last one paused for ${span(seconds(event.value.cutover))}`;
    case "stayed":
      return `One stays: ${event.value.message}`;
    default:
      return "";
  }
}
