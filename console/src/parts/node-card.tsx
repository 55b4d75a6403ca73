import { DrainDialog, undrain } from "../dialogs/drain";
import type { Node } from "../gen/serverlessllm/v1/types_pb";
import { bytes, count } from "../format";
import { nodes } from "../state/cluster";
import { perNode } from "../state/summary";
import { open } from "./dialog";
import { Instances } from "./instances";
import { Tiers } from "./tiers";

export function NodeCard({ id }: { id: string }) {
  const node = nodes.of(id)?.value;
  if (!node) return null;
  return (
    <article class={`card node ${node.draining ? "drains" : ""}`} aria-label={id}>
      <Title node={node} />
      <Facts node={node} />
      <Tiers node={node} />
      <Instances nodeId={id} />
    </article>
  );
}

function Title({ node }: { node: Node }) {
  return (
    <div class="spread">
      <div class="row wrap">
        <h2>{node.nodeId}</h2>
        {node.host && node.host !== node.nodeId && <span class="muted cut">{node.host}</span>}
        {node.engines.map((engine) => (
          <span key={engine.name} class={`badge ${engine.ready ? "" : "busy"}`}>
            {engine.name}
            {engine.ready ? "" : " …"}
          </span>
        ))}
        {node.draining && <span class="badge busy">draining</span>}
        {node.leaving && <span class="badge busy">leaving</span>}
      </div>
      {node.draining ? (
        <button type="button" class="button small" onClick={() => void undrain(node.nodeId)}>
          Undrain
        </button>
      ) : (
        <button
          type="button"
          class="button small plain"
          onClick={() => open(<DrainDialog nodeId={node.nodeId} />)}
        >
          Drain…
        </button>
      )}
    </div>
  );
}

function Facts({ node }: { node: Node }) {
  const sum = perNode.value.get(node.nodeId);
  const accelerators = node.devices.map((device) => device.name);
  return (
    <p class="facts">
      <span>
        <b>{sum?.ready ?? 0}</b> ready
      </span>
      {!!sum?.starting && (
        <span>
          <b>{sum.starting}</b> starting
        </span>
      )}
      {!!sum?.draining && (
        <span>
          <b>{sum.draining}</b> ending
        </span>
      )}
      <span>
        <b>{sum?.inFlight ?? 0}</b> running
      </span>
      <span>
        <b>{count(sum?.rate ?? 0)}</b> tok/s
      </span>
      {!!node.memory?.usedBytes && (
        <span title="What instances take for themselves">
          <b>{bytes(node.memory.usedBytes)}</b> own
        </span>
      )}
      {accelerators.length > 0 && (
        <span>
          {accelerators.length} × {accelerators[0]}
        </span>
      )}
    </p>
  );
}
