import { DrainDialog, undrain } from "../dialogs/drain";
import type { Node } from "../gen/serverlessllm/v1/types_pb";
import { bytes, count } from "../format";
import { nodes } from "../state/cluster";
import { ofNode } from "../state/summary";
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
        {node.zone && <span class="muted">{node.zone}</span>}
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
  const sum = ofNode(node.nodeId).value;
  const accelerators = node.devices.map((device) => device.name);
  return (
    <p class="facts">
      <span>
        <b>{sum.ready}</b> ready
      </span>
      {sum.starting > 0 && (
        <span>
          <b>{sum.starting}</b> starting
        </span>
      )}
      {sum.draining > 0 && (
        <span>
          <b>{sum.draining}</b> ending
        </span>
      )}
      <span>
        <b>{sum.inFlight}</b> running
      </span>
      <span>
        <b>{count(sum.rate)}</b> tok/s
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
