/** An instance as this page sees it. */

import type { InstanceLoad } from "../gen/serverlessllm/v1/cluster_service_pb";
import { InstanceState } from "../gen/serverlessllm/v1/types_pb";
import { STATE } from "../names";
import type { Start } from "./starts";

export interface Live {
  load: InstanceLoad;
  /** Its start, as far as this page has seen it. */
  start: Start | undefined;
}

/** What it is about, in a few words. */
export function words({ load }: Live): string {
  const state = load.instance?.state ?? InstanceState.UNSPECIFIED;
  if (load.movingTo.length > 0) return `moving, ${load.inFlight} left`;
  if (state !== InstanceState.READY) return STATE[state];
  return load.inFlight > 0 ? `${load.inFlight} running` : "idle";
}
