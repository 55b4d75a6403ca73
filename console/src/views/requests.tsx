import type { EndedRequest } from "../gen/serverlessllm/v1/cluster_service_pb";
import { OriginLegend } from "../parts/graphs";
import { RequestTable } from "../parts/request-table";
import { Search, searched } from "../parts/search";
import { Waterfall } from "../parts/waterfall";
import { ended, key } from "../state/cluster";

const SHOWN = 100;

/** The latest requests of all deployments, and the receipt of one. */
export function RequestsView({ chosen }: { chosen: string }) {
  const shown = ended.value
    .filter((one) => searched(one.deployment, one.requestId, one.outcome, one.receipt?.nodeId ?? ""))
    .slice(0, SHOWN);
  const one = ended.value.find((request) => key(request) === chosen) ?? shown[0];
  return (
    <>
      <div class="head">
        <h1>Requests</h1>
        <Search />
      </div>
      <div class="receipts">
        <section class="card">
          <RequestTable requests={shown} chosen={one ? key(one) : ""} named />
        </section>
        {one && <Receipt one={one} />}
      </div>
    </>
  );
}

function Receipt({ one }: { one: EndedRequest }) {
  return (
    <aside class="stack">
      <section class="card" aria-label="Receipt">
        <header>
          <h2 class="nowrap">{one.deployment}</h2>
          <span class="muted mono cut">{one.requestId}</span>
        </header>
        {one.receipt ? (
          <Waterfall receipt={one.receipt} />
        ) : (
          <p class="empty">It ended without a receipt: {one.outcome}</p>
        )}
      </section>
      <OriginLegend />
    </aside>
  );
}
