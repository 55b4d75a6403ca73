/** What the protocol's numbers are called here. */

import { PlacementAction } from "./gen/serverlessllm/v1/cluster_service_pb";
import { DeploymentState } from "./gen/serverlessllm/v1/deployment_service_pb";
import { InstanceState, LoadPhase, PhaseKind, Tier } from "./gen/serverlessllm/v1/types_pb";

export const TIER: Record<Tier, string> = {
  [Tier.UNSPECIFIED]: "?",
  [Tier.REMOTE]: "remote",
  [Tier.SSD]: "SSD",
  [Tier.DRAM]: "DRAM",
  [Tier.DEVICE]: "device",
  [Tier.PEER]: "other nodes",
};

/** The colour of a tier: a custom property of the style sheet. */
export const TIER_COLOUR: Record<Tier, string> = {
  [Tier.UNSPECIFIED]: "var(--muted)",
  [Tier.REMOTE]: "var(--remote)",
  [Tier.SSD]: "var(--ssd)",
  [Tier.DRAM]: "var(--dram)",
  [Tier.DEVICE]: "var(--device)",
  [Tier.PEER]: "var(--remote)",
};

export const STATE: Record<InstanceState, string> = {
  [InstanceState.UNSPECIFIED]: "unknown",
  [InstanceState.STARTING]: "starting",
  [InstanceState.READY]: "ready",
  [InstanceState.DRAINING]: "draining",
  [InstanceState.GONE]: "gone",
};

export const DEPLOYMENT_STATE: Record<DeploymentState, string> = {
  [DeploymentState.UNSPECIFIED]: "unknown",
  [DeploymentState.PREPARING]: "preparing",
  [DeploymentState.AVAILABLE]: "available",
  [DeploymentState.FAILED]: "failed",
};

export const LOAD: Record<LoadPhase, string> = {
  [LoadPhase.UNSPECIFIED]: "waiting",
  [LoadPhase.IMPORT]: "fetching",
  [LoadPhase.READ]: "reading",
  [LoadPhase.INIT]: "starting the engine",
  [LoadPhase.COPY]: "copying to the device",
};

export const LOAD_COLOUR: Record<LoadPhase, string> = {
  [LoadPhase.UNSPECIFIED]: "var(--muted)",
  [LoadPhase.IMPORT]: "var(--remote)",
  [LoadPhase.READ]: "var(--ssd)",
  [LoadPhase.INIT]: "var(--engine)",
  [LoadPhase.COPY]: "var(--device)",
};

export const PHASE: Record<PhaseKind, string> = {
  [PhaseKind.UNSPECIFIED]: "?",
  [PhaseKind.QUEUED]: "queued",
  [PhaseKind.PLACED]: "placed",
  [PhaseKind.IMPORT]: "fetch",
  [PhaseKind.FETCH_PEERS]: "from other nodes",
  [PhaseKind.READ_SSD]: "read SSD",
  [PhaseKind.DEVICE_COPY]: "copy to device",
  [PhaseKind.WORKER_START]: "worker start",
  [PhaseKind.PREPARE]: "prepare",
  [PhaseKind.ATTACH]: "attach",
  [PhaseKind.ENGINE_INIT]: "engine init",
  [PhaseKind.PREFILL]: "prefill",
  [PhaseKind.WARM_UP]: "warm up",
};

export const PHASE_COLOUR: Record<PhaseKind, string> = {
  [PhaseKind.UNSPECIFIED]: "var(--muted)",
  [PhaseKind.QUEUED]: "var(--wait)",
  [PhaseKind.PLACED]: "var(--wait)",
  [PhaseKind.IMPORT]: "var(--remote)",
  [PhaseKind.FETCH_PEERS]: "var(--remote)",
  [PhaseKind.READ_SSD]: "var(--ssd)",
  [PhaseKind.DEVICE_COPY]: "var(--device)",
  [PhaseKind.WORKER_START]: "var(--worker)",
  [PhaseKind.PREPARE]: "var(--worker)",
  [PhaseKind.ATTACH]: "var(--dram)",
  [PhaseKind.ENGINE_INIT]: "var(--engine)",
  [PhaseKind.PREFILL]: "var(--warm)",
  [PhaseKind.WARM_UP]: "var(--device)",
};

export const ACTION: Record<PlacementAction, string> = {
  [PlacementAction.UNSPECIFIED]: "?",
  [PlacementAction.REUSE]: "served by a running instance",
  [PlacementAction.JOIN]: "joins an instance that is starting",
  [PlacementAction.START]: "a new instance starts",
  [PlacementAction.MIGRATE_THEN_START]: "a new instance starts, once others have moved away",
  [PlacementAction.WAIT]: "waits",
};
