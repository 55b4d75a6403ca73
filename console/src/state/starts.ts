/** How starts go on: the phases that this page has seen of each, one after the other. */

import type { InstanceLoad } from "../gen/serverlessllm/v1/cluster_service_pb";
import {
  InstanceState,
  type Loading,
  type LoadPhase,
  type Tier,
} from "../gen/serverlessllm/v1/types_pb";
import { millis, seconds } from "../format";

export interface Step {
  phase: LoadPhase;
  fromTier: Tier;
  /** Moments are milliseconds of this page's clock. */
  beganAt: number;
  endedAt: number | undefined;
  loaded: bigint;
  total: bigint;
}

export interface Start {
  beganAt: number;
  steps: readonly Step[];
  /** When it should be ready, as last told. */
  readyAt: number | undefined;
}

/** A start after one more word of it; undefined once the instance does not start any more. */
export function follow(before: Start | undefined, load: InstanceLoad): Start | undefined {
  const instance = load.instance;
  if (!instance || instance.state !== InstanceState.STARTING) return undefined;
  const now = Date.now();
  // Until a node has told, the moment is that of the epoch.
  const began = before?.beganAt ?? Math.min(now, millis(instance.startedAt) || now);
  if (!load.loading) return before ?? { beganAt: began, steps: [], readyAt: undefined };
  const left = seconds(load.loading.estimatedRemaining);
  return {
    beganAt: began,
    steps: advance(before?.steps ?? [], load.loading, now, began),
    readyAt: left === undefined ? undefined : now + left * 1000,
  };
}

function advance(
  steps: readonly Step[],
  loading: Loading,
  now: number,
  began: number,
): readonly Step[] {
  const last = steps.at(-1);
  const { phase, fromTier, loadedBytes: loaded, totalBytes: total } = loading;
  if (last?.phase === phase) return [...steps.slice(0, -1), { ...last, loaded, total }];
  const beganAt = last ? now : began;
  const step = { phase, fromTier, beganAt, endedAt: undefined, loaded, total };
  return last ? [...steps.slice(0, -1), { ...last, endedAt: now }, step] : [step];
}

/** How much of a start is done, from 0 to 1. Undefined: nobody knows. */
export function done(start: Start, now: number): number | undefined {
  if (start.readyAt === undefined) return undefined;
  const whole = Math.max(start.readyAt, now) - start.beganAt;
  return whole <= 0 ? 0 : Math.min(1, (now - start.beganAt) / whole);
}
