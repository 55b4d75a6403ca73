import type { ComponentChildren } from "preact";
import { DeleteDialog } from "../dialogs/delete";
import { DeployDialog } from "../dialogs/deploy";
import { PinDialog, PrefetchDialog, unpin } from "../dialogs/pin";
import type { EndedRequest } from "../gen/serverlessllm/v1/cluster_service_pb";
import type { Deployment } from "../gen/serverlessllm/v1/deployment_service_pb";
import { bytes, count, plural, seconds, span } from "../format";
import { TIER } from "../names";
import { open } from "../parts/dialog";
import { Explain } from "../parts/explain";
import { RequestTable } from "../parts/request-table";
import { to } from "../route";
import { catalog, pins } from "../state/catalog";

/** One deployment: what it is, where it would start, and what its requests have had. */
export function DeploymentDetail({ name, recent }: { name: string; recent: readonly EndedRequest[] }) {
  const deployment = catalog.value.get(name);
  if (!deployment) return null;
  return (
    <div class="stack">
      <div class="head row wrap">
        <h1 class="grow">{name}</h1>
        <a class="button" href={to("playground", name)}>
          Try it
        </a>
        <Act label="Change…" onClick={() => open(<DeployDialog before={deployment} />)} />
        <Act label="Prefetch…" onClick={() => open(<PrefetchDialog name={name} />)} />
        <Act label="Pin…" onClick={() => open(<PinDialog name={name} />)} />
        <Act label="Delete…" onClick={() => open(<DeleteDialog name={name} />)} />
      </div>
      {deployment.message && <p class="note bad">{deployment.message}</p>}
      <Explain name={name} />
      <div class="split">
        <section class="card">
          <header>
            <h2>Requests</h2>
          </header>
          <RequestTable requests={recent.slice(0, 12)} />
        </section>
        <Facts deployment={deployment} />
      </div>
    </div>
  );
}

function Act({ label, onClick }: { label: string; onClick: () => void }) {
  return (
    <button type="button" class="button" onClick={onClick}>
      {label}
    </button>
  );
}

function Facts({ deployment }: { deployment: Deployment }) {
  const { engine, scaling, model } = deployment;
  const replicas = `${scaling?.minReplicas ?? 0} – ${scaling?.maxReplicas ?? 1}`;
  const facts: [string, ComponentChildren][] = [
    ["Source", <span class="mono">{deployment.source}</span>],
    ["Model", `${model?.architecture}, ${bytes(model?.sizeBytes ?? 0n)}`],
    ["Context", `${count(model?.contextTokens ?? 0)} tokens`],
    ["Dtype", engine?.dtype || "as stored"],
    ["Replicas", replicas],
    ["Keep alive", span(seconds(scaling?.keepAlive) ?? 60)],
    ["At once", plural(engine?.maxConcurrency ?? 64, "request")],
    ["Parsers", [engine?.toolParser, engine?.reasoningParser].filter(Boolean).join(", ") || "none"],
    ["Pins", <Pins name={deployment.name} />],
  ];
  return (
    <section class="card">
      <header>
        <h2>Deployment</h2>
      </header>
      <dl class="facts-list">
        {facts.map(([name, value]) => (
          <>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </>
        ))}
      </dl>
    </section>
  );
}

function Pins({ name }: { name: string }) {
  const own = pins.value.filter((one) => one.pin?.deployment === name);
  if (own.length === 0) return <span class="muted">none</span>;
  return (
    <ul>
      {own.map(({ pin, held }) => (
        <li key={`${pin?.tier} ${pin?.nodeId}`} class="spread">
          <span>
            {TIER[pin!.tier]} of {pin!.nodeId}
            {!held && <span class="muted"> (not yet)</span>}
          </span>
          <button
            type="button"
            class="button plain small"
            onClick={() => void unpin(name, pin!.tier, pin!.nodeId)}
          >
            Unpin
          </button>
        </li>
      ))}
    </ul>
  );
}
