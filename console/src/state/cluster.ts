/** The cluster as WatchCluster tells it: an entry of its own for whatever changes by itself. */

import { batch, type Signal, signal } from "@preact/signals";
import type {
  ClusterDelta,
  ClusterState,
  DeploymentLoad,
  EndedRequest,
  InstanceLoad,
  WatchClusterResponse,
} from "../gen/serverlessllm/v1/cluster_service_pb";
import { InstanceState, type Node } from "../gen/serverlessllm/v1/types_pb";
import { byName, Entries } from "./entries";
import * as events from "./events";
import type { Live } from "./live";
import { follow } from "./starts";

const ENDED_KEPT = 400;
const RECENT_KEPT = 40;

export const nodes = new Entries<Node>(byName);
export const instances = new Entries<Live>();
export const deployments = new Entries<DeploymentLoad>(byName);
/** Requests that have ended, the latest first. */
export const ended = signal<EndedRequest[]>([]);

const byNode = new Map<string, Signal<string[]>>();
const byDeployment = new Map<string, Signal<readonly EndedRequest[]>>();

/** The ids of a node's instances, in the order in which they have come. */
export function instancesOn(nodeId: string): Signal<string[]> {
  let found = byNode.get(nodeId);
  if (!found) byNode.set(nodeId, (found = signal([])));
  return found;
}

/** The latest requests of a deployment that have ended, those for adapters over it too, the latest first. */
export function recent(deployment: string): Signal<readonly EndedRequest[]> {
  let found = byDeployment.get(deployment);
  if (!found) byDeployment.set(deployment, (found = signal([])));
  return found;
}

/** Takes one message in. */
export function take(message: WatchClusterResponse): void {
  batch(() => {
    if (message.state.case === "full") takeAll(message.state.value);
    else if (message.state.case === "delta") takeChanges(message.state.value);
  });
}

function takeAll(full: ClusterState): void {
  const there = new Set(full.instances.map((one) => one.instance?.instanceId ?? ""));
  const known = {
    nodes: new Set(full.nodes.map((one) => one.nodeId)),
    deployments: new Set(full.deployments.map((one) => one.deployment)),
  };
  takeParts(full);
  dropInstances(instances.ids.peek().filter((id) => !there.has(id)));
  dropNodes(nodes.ids.peek().filter((id) => !known.nodes.has(id)));
  dropDeployments(deployments.ids.peek().filter((id) => !known.deployments.has(id)));
  events.begin();
}

function takeChanges(delta: ClusterDelta): void {
  takeParts(delta);
  dropInstances(delta.goneInstances);
  dropNodes(delta.goneNodes);
  dropDeployments(delta.goneDeployments);
}

function takeParts(part: ClusterState | ClusterDelta): void {
  for (const node of part.nodes) {
    events.node(nodes.peek(node.nodeId), node);
    nodes.put(node.nodeId, node);
  }
  takeInstances(part.instances);
  for (const one of part.deployments) {
    if (!deployments.peek(one.deployment)) events.deployment(one.deployment, "deployed");
    deployments.put(one.deployment, one);
  }
  takeEnded(part.endedRequests);
  nodes.settle();
  instances.settle();
  deployments.settle();
}

function takeInstances(loads: readonly InstanceLoad[]): void {
  const come = new Map<string, string[]>();
  for (const load of loads) {
    const instance = load.instance;
    if (!instance) continue;
    const before = instances.peek(instance.instanceId);
    const start = follow(before?.start, load);
    events.instance(before, load, start);
    instances.put(instance.instanceId, { load, start });
    if (!before) push(come, instance.nodeId, instance.instanceId);
  }
  for (const [nodeId, ids] of come) {
    const on = instancesOn(nodeId);
    on.value = [...on.peek(), ...ids];
  }
}

function takeEnded(requests: readonly EndedRequest[]): void {
  if (requests.length === 0) return;
  const known = new Set(ended.peek().slice(0, 128).map(key));
  const fresh = requests.filter((one) => !known.has(key(one)));
  const come = new Map<string, EndedRequest[]>();
  for (const one of fresh) {
    events.request(one);
    push(come, one.deployment, one);
    if (one.receipt?.adapter) push(come, one.receipt.adapter, one);
  }
  for (const [name, ones] of come) {
    const known = recent(name);
    known.value = [...ones.reverse(), ...known.peek()].slice(0, RECENT_KEPT);
  }
  ended.value = [...fresh.reverse(), ...ended.peek()].slice(0, ENDED_KEPT);
}

/** What tells a request from any other, also from a later one of the same id. */
export function key(one: EndedRequest): string {
  return `${one.requestId}@${one.endedAt?.seconds}.${one.endedAt?.nanos}`;
}

function dropInstances(ids: readonly string[]): void {
  const gone = new Map<string, string[]>();
  for (const id of ids) {
    const before = instances.drop(id);
    const nodeId = before?.load.instance?.nodeId;
    if (before && nodeId) {
      push(gone, nodeId, id);
      events.instanceGone(before);
    }
  }
  for (const [nodeId, ids] of gone) {
    const left = new Set(ids);
    const on = instancesOn(nodeId);
    on.value = on.peek().filter((id) => !left.has(id));
  }
  instances.settle();
}

function dropNodes(ids: readonly string[]): void {
  for (const id of ids) {
    if (nodes.drop(id)) events.nodeGone(id);
    byNode.delete(id);
  }
  nodes.settle();
}

function dropDeployments(ids: readonly string[]): void {
  for (const id of ids) {
    if (deployments.drop(id)) events.deployment(id, "deleted");
    byDeployment.delete(id);
  }
  deployments.settle();
}

function push<T>(lists: Map<string, T[]>, name: string, one: T): void {
  const list = lists.get(name);
  if (list) list.push(one);
  else lists.set(name, [one]);
}

export function isReady(load: InstanceLoad): boolean {
  return load.instance?.state === InstanceState.READY;
}

export function isStarting(load: InstanceLoad): boolean {
  return load.instance?.state === InstanceState.STARTING;
}
