import { DeployDialog } from "../dialogs/deploy";
import { type Deployment, DeploymentState } from "../gen/serverlessllm/v1/deployment_service_pb";
import { bytes, count, median, seconds, share, span } from "../format";
import { DEPLOYMENT_STATE, LOAD } from "../names";
import { open } from "../parts/dialog";
import { Dot, FirstTokens, OriginLegend, Spark } from "../parts/graphs";
import { Search, searched } from "../parts/search";
import { go, to } from "../route";
import { havingIt } from "../state/adapters";
import { catalog } from "../state/catalog";
import { recent } from "../state/cluster";
import { byName } from "../state/entries";
import { now, ofDeployment } from "../state/summary";
import { DeploymentDetail } from "./deployment";

export function DeploymentsView({ chosen }: { chosen: string }) {
  const all = [...catalog.value.values()].sort((a, b) => byName(a.name, b.name));
  const shown = all.filter((one) => searched(one.name, one.source));
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
                  <Row key={one.name} deployment={one} chosen={one.name === chosen} />
                ))}
              </tbody>
            </table>
          </div>
        )}
      </section>
      {all.length > 0 && <OriginLegend />}
      {catalog.value.has(chosen) && (
        <DeploymentDetail key={chosen} name={chosen} />
      )}
    </div>
  );
}

interface RowProps {
  deployment: Deployment;
  chosen: boolean;
}

function Row({ deployment, chosen }: RowProps) {
  const sum = ofDeployment(deployment.name).value;
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
      <td>{deployment.base ? <Over base={deployment.base} /> : deployment.engine?.engine}</td>
      <td class="number">{bytes(deployment.model?.sizeBytes ?? 0n)}</td>
      <td class="number">
        {deployment.base ? (
          <Having name={deployment.name} />
        ) : (
          <>
            {sum.ready}
            {sum.starting > 0 && <span class="quiet"> + {sum.starting}</span>}
            <span class="muted"> / {deployment.scaling?.maxReplicas ?? 1}</span>
          </>
        )}
      </td>
      <td class="number">{sum.inFlight}</td>
      <td class="number">{sum.queued}</td>
      <td class="number">{count(sum.rate)}</td>
      <td>
        <Spark values={sum.rates} label="tokens each second, over the last minute" />
      </td>
      <Recent name={deployment.name} />
    </tr>
  );
}

/** How long first tokens have taken, and where they came from. */
function Recent({ name }: { name: string }) {
  const requests = recent(name).value;
  const times = requests.map((one) => seconds(one.receipt?.timeToFirstToken));
  return (
    <>
      <td class="number">{span(median(times.filter((one) => one !== undefined)))}</td>
      <td>
        <FirstTokens requests={requests} />
      </td>
    </>
  );
}

function Over({ base }: { base: string }) {
  return (
    <span class="nowrap" title="An adapter: instances of its base serve it">
      <span class="badge">adapter</span> <span class="quiet">of {base}</span>
    </span>
  );
}

/** In how many instances of its base an adapter is. */
function Having({ name }: { name: string }) {
  void now.value;
  return <span title="Instances of its base that have it">{havingIt(name).length}</span>;
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
