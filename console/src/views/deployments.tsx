import { DeployDialog } from "../dialogs/deploy";
import type { EndedRequest } from "../gen/serverlessllm/v1/cluster_service_pb";
import { type Deployment, DeploymentState } from "../gen/serverlessllm/v1/deployment_service_pb";
import { bytes, count, median, seconds, share, span } from "../format";
import { DEPLOYMENT_STATE, LOAD } from "../names";
import { open } from "../parts/dialog";
import { Dot, FirstTokens, OriginLegend, Spark } from "../parts/graphs";
import { Search, searched } from "../parts/search";
import { go, to } from "../route";
import { catalog } from "../state/catalog";
import { ended } from "../state/cluster";
import { byName } from "../state/entries";
import { perDeployment } from "../state/summary";
import { DeploymentDetail } from "./deployment";

const SHOWN_FIRST_TOKENS = 40;

export function DeploymentsView({ chosen }: { chosen: string }) {
  const all = [...catalog.value.values()].sort((a, b) => byName(a.name, b.name));
  const shown = all.filter((one) => searched(one.name, one.source));
  const recent = byDeployment(ended.value);
  return (
    <div class="stack">
      <div class="head">
        <h1>Deployments</h1>
        <Search />
        <button type="button" class="button" onClick={() => open(<DeployDialog />)}>
          Deploy…
        </button>
      </div>
      <section class="card">
        {all.length === 0 ? (
          <p class="empty">Nothing is deployed yet.</p>
        ) : (
          <div class="scroll">
            <table>
              <thead>
                <tr>
                  <th>Name</th>
                  <th>State</th>
                  <th>Engine</th>
                  <th class="number">Size</th>
                  <th class="number">Instances</th>
                  <th class="number">Running</th>
                  <th class="number">Queued</th>
                  <th class="number">tok/s</th>
                  <th />
                  <th class="number">First token</th>
                  <th>1 ms – 100 s</th>
                </tr>
              </thead>
              <tbody>
                {shown.map((one) => (
                  <Row
                    key={one.name}
                    deployment={one}
                    recent={recent.get(one.name) ?? []}
                    chosen={one.name === chosen}
                  />
                ))}
              </tbody>
            </table>
          </div>
        )}
      </section>
      {all.length > 0 && <OriginLegend />}
      {catalog.value.has(chosen) && (
        <DeploymentDetail key={chosen} name={chosen} recent={recent.get(chosen) ?? []} />
      )}
    </div>
  );
}

function byDeployment(requests: readonly EndedRequest[]): Map<string, EndedRequest[]> {
  const found = new Map<string, EndedRequest[]>();
  for (const one of requests) {
    const list = found.get(one.deployment) ?? [];
    if (list.length === 0) found.set(one.deployment, list);
    if (list.length < SHOWN_FIRST_TOKENS) list.push(one);
  }
  return found;
}

interface RowProps {
  deployment: Deployment;
  recent: readonly EndedRequest[];
  chosen: boolean;
}

function Row({ deployment, recent, chosen }: RowProps) {
  const sum = perDeployment.value.get(deployment.name);
  const served = recent.filter((one) => one.receipt);
  const middle = median(served.map((one) => seconds(one.receipt?.timeToFirstToken) ?? 0));
  return (
    <tr
      class={`choice ${chosen ? "chosen" : ""}`}
      onClick={() => go("deployments", chosen ? "" : deployment.name)}
    >
      <td>
        <a href={to("deployments", deployment.name)} onClick={(event) => event.stopPropagation()}>
          <b>{deployment.name}</b>
        </a>
      </td>
      <td>
        <State deployment={deployment} />
      </td>
      <td>{deployment.engine?.engine}</td>
      <td class="number">{bytes(deployment.model?.sizeBytes ?? 0n)}</td>
      <td class="number">
        {sum?.ready ?? 0}
        {!!sum?.starting && <span class="quiet"> + {sum.starting}</span>}
        <span class="muted"> / {deployment.scaling?.maxReplicas ?? 1}</span>
      </td>
      <td class="number">{sum?.inFlight ?? 0}</td>
      <td class="number">{sum?.queued ?? 0}</td>
      <td class="number">{count(sum?.rate ?? 0)}</td>
      <td>
        <Spark values={sum?.rates ?? []} label="tokens each second, over the last minute" />
      </td>
      <td class="number">{span(middle)}</td>
      <td>
        <FirstTokens requests={served} />
      </td>
    </tr>
  );
}

const STATE_COLOUR: Record<DeploymentState, string> = {
  [DeploymentState.UNSPECIFIED]: "var(--muted)",
  [DeploymentState.PREPARING]: "var(--ssd)",
  [DeploymentState.AVAILABLE]: "var(--warm)",
  [DeploymentState.FAILED]: "var(--danger)",
};

function State({ deployment }: { deployment: Deployment }) {
  const loading = deployment.loading;
  return (
    <span class="row nowrap" title={deployment.message}>
      <Dot colour={STATE_COLOUR[deployment.state]} />
      {DEPLOYMENT_STATE[deployment.state]}
      {loading && (
        <span class="muted">
          {LOAD[loading.phase]} {share(loading.loadedBytes, loading.totalBytes)}
        </span>
      )}
    </span>
  );
}
