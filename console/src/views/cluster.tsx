import { useComputed } from "@preact/signals";
import { Events } from "../parts/events";
import { NodeCard } from "../parts/node-card";
import { Dot } from "../parts/graphs";
import { DeployDialog } from "../dialogs/deploy";
import { open } from "../parts/dialog";
import { instances, nodes } from "../state/cluster";
import { now } from "../state/summary";
import { link } from "../state/watch";

export function ClusterView() {
  const ids = nodes.ids.value;
  return (
    <>
      <div class="head">
        <h1 class="grow">Cluster</h1>
        <TierLegend />
        <button type="button" class="button" onClick={() => open(<DeployDialog />)}>
          Deploy…
        </button>
      </div>
      <Moves />
      <div class="split">
        {ids.length === 0 ? (
          <p class="card empty">
            {link.value === "live" ? (
              <>
                No nodes yet. Start one with <code>sllm node</code>.
              </>
            ) : (
              "Connecting…"
            )}
          </p>
        ) : (
          <div class="nodes">
            {ids.map((id) => (
              <NodeCard key={id} id={id} />
            ))}
          </div>
        )}
        <Events />
      </div>
    </>
  );
}

function TierLegend() {
  return (
    <div class="legend phone-off">
      <span>
        <Dot colour="var(--warm)" /> serving
      </span>
      <span>
        <Dot colour="var(--engine)" /> starting
      </span>
      <span>
        <Dot colour="var(--muted)" /> idle
      </span>
    </div>
  );
}

/** What is being migrated now. */
function Moves() {
  const moves = useComputed(() => {
    void now.value;
    const found: { id: string; name: string; from: string; to: string; running: number }[] = [];
    for (const { load } of instances.all()) {
      const source = load.instance!;
      for (const target of load.movingTo) {
        const to = instances.peek(target)?.load.instance?.nodeId ?? "…";
        const id = `${source.instanceId} ${target}`;
        found.push({ id, name: source.deployment, from: source.nodeId, to, running: load.inFlight });
      }
    }
    return found;
  });
  if (moves.value.length === 0) return null;
  return (
    <div class="moves" role="status">
      {moves.value.map((one) => (
        <span key={one.id} class="move">
          <b>{one.name}</b>
          {one.from}
          <span class="lane" />
          {one.to}
          <span class="quiet">{one.running} left</span>
        </span>
      ))}
    </div>
  );
}
