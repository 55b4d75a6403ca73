/** Sums over the cluster, taken a few times a second rather than with every change. */

import { signal } from "@preact/signals";
import { InstanceState } from "../gen/serverlessllm/v1/types_pb";
import { deployments, instances, nodes } from "./cluster";

export interface Sum {
  ready: number;
  starting: number;
  draining: number;
  inFlight: number;
  queued: number;
  tokens: number;
  /** Tokens each second, by the last second. */
  rate: number;
  /** The rates of the last minute, the latest last. */
  rates: readonly number[];
}

const NOTHING: Sum = {
  ready: 0,
  starting: 0,
  draining: 0,
  inFlight: 0,
  queued: 0,
  tokens: 0,
  rate: 0,
  rates: [],
};
const LOOK_MS = 250;
const LOOKS_PER_RATE = 4;
const RATES_KEPT = 60;

export const total = signal<Sum>(NOTHING);
export const perNode = signal<ReadonlyMap<string, Sum>>(new Map());
export const perDeployment = signal<ReadonlyMap<string, Sum>>(new Map());
/** Goes on while anything moves: milliseconds since the epoch. */
export const now = signal(Date.now());


let looks = 0;
/** Tokens of each instance when rates were last taken. */
let before = new Map<string, number>();

/** Begins to look. */
export function begin(): void {
  setInterval(look, LOOK_MS);
}

function look(): void {
  const all = empty();
  const ofNodes = new Map(nodes.ids.peek().map((id) => [id, empty()]));
  const ofDeployments = new Map(deployments.ids.peek().map((id) => [id, empty()]));
  for (const { load } of instances.all()) {
    const { instanceId, nodeId, deployment, state } = load.instance!;
    const grown = Number(load.generatedTokens) - (before.get(instanceId) ?? 0);
    for (const sum of [all, ofNodes.get(nodeId), ofDeployments.get(deployment)]) {
      if (!sum) continue;
      if (state === InstanceState.READY) sum.ready += 1;
      if (state === InstanceState.STARTING) sum.starting += 1;
      if (state === InstanceState.DRAINING) sum.draining += 1;
      sum.inFlight += load.inFlight;
      sum.tokens += Math.max(0, grown);
    }
  }
  for (const one of deployments.all()) {
    all.queued += one.queuedRequests;
    const sum = ofDeployments.get(one.deployment);
    if (sum) sum.queued = one.queuedRequests;
  }
  looks += 1;
  const takesRates = looks % LOOKS_PER_RATE === 0;
  total.value = rated(all, total.peek(), takesRates);
  perNode.value = eachRated(ofNodes, perNode.peek(), takesRates);
  perDeployment.value = eachRated(ofDeployments, perDeployment.peek(), takesRates);
  if (takesRates) remember();
  now.value = Date.now();
}

function empty(): Sum {
  return { ...NOTHING };
}

function eachRated(
  sums: Map<string, Sum>,
  earlier: ReadonlyMap<string, Sum>,
  takesRates: boolean,
): ReadonlyMap<string, Sum> {
  return new Map([...sums].map(([id, sum]) => [id, rated(sum, earlier.get(id), takesRates)]));
}

function rated(sum: Sum, earlier: Sum | undefined, takesRates: boolean): Sum {
  const rates = earlier?.rates ?? [];
  if (!takesRates) return { ...sum, rate: earlier?.rate ?? 0, rates };
  return { ...sum, rate: sum.tokens, rates: [...rates, sum.tokens].slice(-RATES_KEPT) };
}

function remember(): void {
  const next = new Map<string, number>();
  for (const { load } of instances.all()) {
    next.set(load.instance!.instanceId, Number(load.generatedTokens));
  }
  before = next;
}
