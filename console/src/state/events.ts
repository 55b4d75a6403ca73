/** What has happened, in words: what one message of the watch differs in from those before. */

import { signal } from "@preact/signals";
import type { EndedRequest, InstanceLoad } from "../gen/serverlessllm/v1/cluster_service_pb";
import { InstanceState, type Node, Tier } from "../gen/serverlessllm/v1/types_pb";
import { seconds, span } from "../format";
import { TIER } from "../names";
import type { Live } from "./live";
import type { Start } from "./starts";

export type Kind = "start" | "ready" | "end" | "move" | "node" | "deploy" | "cold" | "problem";

export interface Happening {
  id: number;
  at: number;
  kind: Kind;
  /** What it is about: a deployment or a node. */
  subject: string;
  text: string;
  /** How often the same has happened, one time after the other. */
  times: number;
}

const KEPT = 250;
/** Among so many of the latest the same is counted rather than told again. */
const REPEATS = 12;

/** The latest first. */
export const happenings = signal<readonly Happening[]>([]);

let number = 0;
let begun = false;

/** What is told from now on is news; before, it is how things are. */
export function begin(): void {
  begun = true;
}

function tell(kind: Kind, subject: string, text: string, at = Date.now()): void {
  if (!begun) return;
  const known = happenings.value;
  const same = known.slice(0, REPEATS).find((one) => one.subject === subject && one.text === text);
  number += 1;
  const news = { id: same?.id ?? number, at, kind, subject, text, times: (same?.times ?? 0) + 1 };
  happenings.value = [news, ...known.filter((one) => one !== same)].slice(0, KEPT);
}

export function node(before: Node | undefined, now: Node): void {
  if (!before) tell("node", now.nodeId, "has joined");
  else if (now.draining !== before.draining) {
    tell("node", now.nodeId, now.draining ? "is being drained" : "takes work again");
  }
  for (const tier of now.tiers) {
    const known = before?.tiers.find((one) => one.tier === tier.tier);
    if (tier.problem && known?.problem !== tier.problem) {
      tell("problem", now.nodeId, `${TIER[tier.tier]}: ${tier.problem}`);
    }
  }
}

export function nodeGone(id: string): void {
  tell("problem", id, "is gone");
}

export function deployment(name: string, text: "deployed" | "deleted"): void {
  tell("deploy", name, `was ${text}`);
}

export function instance(
  before: Live | undefined,
  load: InstanceLoad,
  start: Start | undefined,
): void {
  const now = load.instance;
  if (!now) return;
  const was = before?.load.instance?.state;
  if (start && was !== InstanceState.STARTING) {
    tell("start", now.deployment, `starts on ${now.nodeId}`);
  }
  if (now.state === InstanceState.READY && was !== InstanceState.READY) {
    tell("ready", now.deployment, `is ready on ${now.nodeId}${took(before?.start)}`);
  }
  if (now.state === InstanceState.DRAINING && was !== InstanceState.DRAINING) {
    tell("end", now.deployment, `finishes what it has on ${now.nodeId}`);
  }
  const moved = load.movingTo.length > (before?.load.movingTo.length ?? 0);
  if (moved) tell("move", now.deployment, `moves away from ${now.nodeId}`);
}

function took(start: Start | undefined): string {
  if (!start) return "";
  const from = start.steps.find((step) => step.fromTier !== Tier.UNSPECIFIED)?.fromTier;
  const source = from === undefined ? "" : `, from ${TIER[from]}`;
  return ` after ${span((Date.now() - start.beganAt) / 1000)}${source}`;
}

export function instanceGone(before: Live): void {
  const was = before.load.instance;
  if (!was) return;
  const failed = was.state === InstanceState.STARTING;
  const text = failed ? "did not start" : "has ended";
  tell(failed ? "problem" : "end", was.deployment, `${text} on ${was.nodeId}`);
}

export function request(one: EndedRequest): void {
  const failed = !["OK", "CANCELLED", "GAVE_WAY"].includes(one.outcome);
  if (failed) tell("problem", one.deployment, `a request failed: ${one.outcome}`);
  else if (one.receipt?.cold) {
    const first = span(seconds(one.receipt.timeToFirstToken));
    tell("cold", one.deployment, `first token after ${first}, from ${TIER[one.receipt.fromTier]}`);
  }
}
