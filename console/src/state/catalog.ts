/** What is deployed, and pinned: listed anew when the watch says that something has changed. */

import { computed, effect, signal } from "@preact/signals";
import { cluster, deployments as service, reasonOf } from "../api";
import type { ListedPin } from "../gen/serverlessllm/v1/cluster_service_pb";
import { type Deployment, DeploymentState } from "../gen/serverlessllm/v1/deployment_service_pb";
import { deployments } from "./cluster";

export const catalog = signal<ReadonlyMap<string, Deployment>>(new Map());
export const pins = signal<readonly ListedPin[]>([]);
export const trouble = signal("");

const SLOW_MS = 5_000;
const FAST_MS = 700;

let timer: ReturnType<typeof setTimeout> | undefined;
let asking = false;
/** Whether something has changed since the last question. */
let again = false;

/** Begins to follow. */
export function begin(): void {
  effect(() => {
    void deployments.ids.value;
    void refresh();
  });
}

/** Asks now, and again after a while. */
export async function refresh(): Promise<void> {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  again = false;
  clearTimeout(timer);
  try {
    if (!document.hidden) await ask();
    trouble.value = "";
  } catch (error) {
    trouble.value = reasonOf(error);
  } finally {
    asking = false;
    const prepares = [...catalog.value.values()].some(
      (one) => one.state === DeploymentState.PREPARING,
    );
    const pause = prepares ? FAST_MS : SLOW_MS;
    timer = setTimeout(() => void refresh(), again ? 0 : pause);
  }
}

async function ask(): Promise<void> {
  const found = new Map<string, Deployment>();
  for (let pageToken = "", more = true; more; ) {
    const page = await service.listDeployments({ pageSize: 1000, pageToken });
    for (const one of page.deployments) found.set(one.name, one);
    pageToken = page.nextPageToken;
    more = pageToken !== "";
  }
  catalog.value = found;
  pins.value = (await cluster.listPins({ pageSize: 1000 })).pins;
}

const names = computed(() => {
  const found = new Map<string, string>();
  for (const one of catalog.value.values()) {
    found.set(one.source, one.name);
    if (one.model?.digest) found.set(one.model.digest, one.name);
  }
  return found;
});

/** The deployment that a checkpoint was brought for; empty if it is of none. */
export function nameOf(digest: string, sources: readonly string[]): string {
  const known = names.value;
  return known.get(digest) ?? sources.map((one) => known.get(one)).find(Boolean) ?? "";
}
