import { cluster, reasonOf, requestId } from "../api";
import type { PinResponse, PrefetchResponse } from "../gen/serverlessllm/v1/cluster_service_pb";
import { type Loading, Tier } from "../gen/serverlessllm/v1/types_pb";
import { share } from "../format";
import { LOAD, TIER } from "../names";
import { Confirm } from "../parts/dialog";
import { follow, say } from "../parts/toasts";
import { refresh } from "../state/catalog";
import { nodes } from "../state/cluster";
import { durationOf, textOf } from "./fields";

/** Keeps a deployment's checkpoint somewhere, or brings it there ahead of time. */
export function PinDialog({ name }: { name: string }) {
  return (
    <Confirm title={`Pin ${name}?`} verb="Pin" action={(form) => pin(name, form)}>
      <p>Its checkpoint is brought there if need be, and stays until it is unpinned.</p>
      <div class="grid2">
        <NodeField required />
        <TierField />
      </div>
      <label class="field">
        <span>For how many seconds</span>
        <input class="input" name="ttl" inputMode="decimal" placeholder="until it is unpinned" />
      </label>
    </Confirm>
  );
}

export function PrefetchDialog({ name }: { name: string }) {
  return (
    <Confirm title={`Prefetch ${name}?`} verb="Prefetch" action={(form) => prefetch(name, form)}>
      <p>Its checkpoint is brought up before it is asked for, and kept for a while.</p>
      <div class="grid2">
        <NodeField />
        <TierField />
      </div>
      <label class="field">
        <span>Kept for how many seconds</span>
        <input class="input" name="ttl" inputMode="decimal" placeholder="600" />
      </label>
    </Confirm>
  );
}

function NodeField({ required }: { required?: boolean }) {
  return (
    <label class="field">
      <span>Node</span>
      <select class="input" name="node" required={required}>
        {!required && <option value="">where it would start soonest</option>}
        {nodes.ids.value.map((id) => (
          <option key={id}>{id}</option>
        ))}
      </select>
    </label>
  );
}

function TierField() {
  return (
    <label class="field">
      <span>Tier</span>
      <select class="input" name="tier">
        {[Tier.DRAM, Tier.SSD].map((tier) => (
          <option key={tier} value={tier}>
            {TIER[tier]}
          </option>
        ))}
      </select>
    </label>
  );
}

function place(form: FormData) {
  return {
    requestId: requestId(),
    nodeId: textOf(form.get("node")),
    tier: Number(form.get("tier")) as Tier,
    ttl: durationOf(form.get("ttl"), "seconds"),
  };
}

function pin(name: string, form: FormData): void {
  const where = place(form);
  const stream = cluster.pin({ deployment: name, ...where });
  const end = `${TIER[where.tier]} of ${where.nodeId} holds it.`;
  void follow(`Pinning ${name}`, stream, wordsOfPin, end).then(refresh);
}

function prefetch(name: string, form: FormData): void {
  const stream = cluster.prefetch({ what: { case: "deployment", value: name }, ...place(form) });
  void follow(`Prefetching ${name}`, stream, wordsOfPrefetch, "");
}

function wordsOfPin({ event }: PinResponse): string {
  return event.case === "loading" ? wordsOfLoading(event.value) : "";
}

function wordsOfPrefetch({ event }: PrefetchResponse): string {
  switch (event.case) {
    case "placed":
      return `to ${event.value.nodeId}`;
    case "loading":
      return wordsOfLoading(event.value);
    case "done":
      return `${TIER[event.value.tier]} of ${event.value.nodeId} holds it.`;
    default:
      return "";
  }
}

function wordsOfLoading(loading: Loading): string {
  return `${LOAD[loading.phase]} ${share(loading.loadedBytes, loading.totalBytes)}`;
}

export async function unpin(deployment: string, tier: Tier, nodeId: string): Promise<void> {
  try {
    await cluster.unpin({ requestId: requestId(), deployment, tier, nodeId });
  } catch (error) {
    say(`Not unpinned: ${deployment}`, reasonOf(error));
  }
  await refresh();
}
