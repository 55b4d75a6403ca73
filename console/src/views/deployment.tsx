import type { ComponentChildren } from "preact";
import { DeleteDialog } from "../dialogs/delete";
import { DeployDialog } from "../dialogs/deploy";
import { PinDialog, PrefetchDialog, unpin } from "../dialogs/pin";
import type { Deployment } from "../gen/serverlessllm/v1/deployment_service_pb";
import { bytes, count, plural, seconds, span } from "../format";
import { TIER } from "../names";
import { open } from "../parts/dialog";
import { Explain } from "../parts/explain";
import { RequestTable } from "../parts/request-table";
import { to } from "../route";
import { adaptersOver, havingIt } from "../state/adapters";
import { catalog, pins } from "../state/catalog";
import { recent } from "../state/cluster";
import { now } from "../state/summary";

const SHOWN_REQUESTS = 12;

/** One deployment: what it is, where it would start, and what its requests have had. */
export function DeploymentDetail({ name }: { name: string }) {
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
          <Requests name={name} />
        </section>
        <Facts deployment={deployment} />
      </div>
    </div>
  );
}

function Requests({ name }: { name: string }) {
  return <RequestTable requests={recent(name).value.slice(0, SHOWN_REQUESTS)} />;
}

function Act({ label, onClick }: { label: string; onClick: () => void }) {
  return (
    <button type="button" class="button" onClick={onClick}>
      {label}
    </button>
  );
}

function Facts({ deployment }: { deployment: Deployment }) {
  const { engine, scaling, model, base, learned, tuned } = deployment;
  const most = span(seconds(scaling?.keepAlive) ?? 60);
  const replicas = `${scaling?.minReplicas ?? 0} – ${scaling?.maxReplicas ?? 1}`;
  const facts: [string, ComponentChildren][] = [
    ["Source", <span class="mono">{deployment.source}</span>],
    ...(base ? [["Over", <Link name={base} />] satisfies [string, ComponentChildren]] : []),
    ["Model", `${model?.architecture}, ${bytes(model?.sizeBytes ?? 0n)}`],
    ["Context", `${count(model?.contextTokens ?? 0)} tokens`],
    ["Dtype", engine?.dtype || "as stored"],
    ["Replicas", base ? "those of its base" : replicas],
    ["Keep alive", learned ? `${span(seconds(learned.instance) ?? 0)} of ${most}, as learned` : most],
    ["At once", plural(tuned?.requests ?? engine?.maxConcurrency ?? 64, "request")],
    ["Devices", plural(engine?.tensorParallel || 1, "device")],
    ...(engine?.expertMemoryBytes === undefined
      ? []
      : [["Experts in memory", bytes(engine.expertMemoryBytes)] satisfies [string, ComponentChildren]]),
    [base ? "Is in" : "Adapters", base ? <Where name={deployment.name} /> : <Adapters deployment={deployment} />],
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

function Link({ name }: { name: string }) {
  return (
    <a class="link" href={to("deployments", name)}>
      {name}
    </a>
  );
}

/** The adapters over a deployment, and where each is. */
function Adapters({ deployment }: { deployment: Deployment }) {
  const over = adaptersOver.value.get(deployment.name) ?? [];
  const most = deployment.engine?.maxAdapters ?? 0;
  if (over.length === 0) return <span class="muted">{most > 0 ? `none, up to ${most} at once` : "none"}</span>;
  return (
    <ul aria-label="Adapters">
      <li class="muted">up to {most} in an instance at once</li>
      {over.map((name) => (
        <li key={name} class="spread">
          <Link name={name} />
          <Where name={name} />
        </li>
      ))}
    </ul>
  );
}

/** The instances that have an adapter. */
function Where({ name }: { name: string }) {
  void now.value;
  const found = havingIt(name);
  return <span class="muted">{found.length === 0 ? "no instance now" : found.join(", ")}</span>;
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
