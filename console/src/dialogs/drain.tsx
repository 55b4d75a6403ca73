import { cluster, requestId } from "../api";
import type { DrainNodeResponse } from "../gen/serverlessllm/v1/cluster_service_pb";
import { reasonOf } from "../api";
import { plural } from "../format";
import { Confirm } from "../parts/dialog";
import { follow, say } from "../parts/toasts";
import { instancesOn } from "../state/cluster";
import { ofNode } from "../state/summary";
import { durationOf } from "./fields";

export function DrainDialog({ nodeId }: { nodeId: string }) {
  const sum = ofNode(nodeId).value;
  const has = plural(instancesOn(nodeId).value.length, "instance");
  return (
    <Confirm
      title={`Drain ${nodeId}?`}
      verb="Drain"
      dangerous
      action={(form) => drain(nodeId, form)}
    >
      <p>
        It gets no new work. Its {has} with {plural(sum?.inFlight ?? 0, "running request")} go on
        elsewhere where they can, and end with their requests where they cannot. It stays drained
        until it is undrained.
      </p>
      <label class="field">
        <span>Seconds that what cannot move may still take</span>
        <input class="input" name="grace" inputMode="decimal" placeholder="as long as it takes" />
      </label>
      <label class="check">
        <input type="checkbox" name="force" />
        <span>Also if no other node could serve what has requests</span>
      </label>
    </Confirm>
  );
}

function drain(nodeId: string, form: FormData): void {
  const stream = cluster.drainNode({
    requestId: requestId(),
    nodeId,
    grace: durationOf(form.get("grace"), "grace"),
    force: form.get("force") !== null,
  });
  void follow(`Draining ${nodeId}`, stream, words, "It runs nothing any more.");
}

function words({ event }: DrainNodeResponse): string {
  if (event.case !== "progress") return "";
  const { runningRequests, instances } = event.value;
  return `${plural(runningRequests, "request")} and ${plural(instances, "instance")} left`;
}

export async function undrain(nodeId: string): Promise<void> {
  try {
    await cluster.undrainNode({ requestId: requestId(), nodeId });
  } catch (error) {
    say(`Not undrained: ${nodeId}`, reasonOf(error));
  }
}
