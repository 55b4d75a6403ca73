/** Sums over the cluster, taken a few times a second rather than with every change. */

import { batch, type Signal, signal } from "@preact/signals";
import { InstanceState } from "../gen/serverlessllm/v1/types_pb";
import { same } from "../parts/memo";
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
const perNode = new Map<string, Signal<Sum>>();
const perDeployment = new Map<string, Signal<Sum>>();
/** Goes on while anything moves: milliseconds since the epoch. */
export const now = signal(Date.now());

/** The sum over a node's instances. */
export function ofNode(id: string): Signal<Sum> {
  return kept(perNode, id);
}

/** The sum over a deployment's instances, and its queue. */
export function ofDeployment(name: string): Signal<Sum> {
  return kept(perDeployment, name);
}

function kept(sums: Map<string, Signal<Sum>>, id: string): Signal<Sum> {
  let found = sums.get(id);
  if (!found) sums.set(id, (found = signal(NOTHING)));
  return found;
}

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
  batch(() => {
    tell(total, all, takesRates);
    tellEach(perNode, ofNodes, takesRates);
    tellEach(perDeployment, ofDeployments, takesRates);
    now.value = Date.now();
  });
  if (takesRates) remember();
}

function empty(): Sum {
  return { ...NOTHING };
}

function tellEach(known: Map<string, Signal<Sum>>, sums: Map<string, Sum>, takesRates: boolean): void {
  for (const [id, sum] of sums) tell(kept(known, id), sum, takesRates);
  for (const id of known.keys()) if (!sums.has(id)) known.delete(id);
}

/** Puts a sum in the place of the one before, if it is another. */
function tell(known: Signal<Sum>, sum: Sum, takesRates: boolean): void {
  const { rate, rates } = known.peek();
  const next = takesRates
    ? { ...sum, tokens: 0, rate: sum.tokens, rates: longer(rates, sum.tokens) }
    : { ...sum, tokens: 0, rate, rates };
  if (!same(known.peek(), next)) known.value = next;
}

/** The rates with one more; of what rests, the same as before. */
function longer(rates: readonly number[], tokens: number): readonly number[] {
  if (tokens === 0 && rates.length === RATES_KEPT && rates.every((one) => one === 0)) return rates;
  return [...rates, tokens].slice(-RATES_KEPT);
}

function remember(): void {
  const next = new Map<string, number>();
  for (const { load } of instances.all()) {
    next.set(load.instance!.instanceId, Number(load.generatedTokens));
  }
  before = next;
}
