import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { cluster, reasonOf } from "../api";
import type { EndedRequest, GetReceiptResponse } from "../gen/serverlessllm/v1/cluster_service_pb";
import type { Receipt } from "../gen/serverlessllm/v1/types_pb";
import { OriginLegend } from "../parts/graphs";
import { RequestTable } from "../parts/request-table";
import { Search, searched } from "../parts/search";
import { Waterfall } from "../parts/waterfall";
import { go } from "../route";
import { ended, key } from "../state/cluster";

const SHOWN = 100;

/** The latest requests of all deployments, and the receipt of one, also of one that ended earlier. */
export function RequestsView({ chosen }: { chosen: string }) {
  const shown = ended.value
    .filter((one) => searched(one.deployment, one.requestId, one.outcome, one.receipt?.nodeId ?? ""))
    .slice(0, SHOWN);
  const one = chosen ? ended.value.find((request) => names(request, chosen)) : latest(shown);
  return (
    <>
      <div class="head wrap">
        <h1>Requests</h1>
        <Search />
        <Find />
      </div>
      <div class="receipts">
        <section class="card">
          <RequestTable requests={shown} chosen={one ? key(one) : ""} named />
        </section>
        {one ? <Ended one={one} /> : chosen && <Earlier key={chosen} id={chosen} />}
      </div>
    </>
  );
}

/** What is shown where nobody has chosen: the latest that has a receipt. */
function latest(shown: readonly EndedRequest[]): EndedRequest | undefined {
  return shown.find((one) => one.receipt) ?? shown[0];
}

/** Whether a request is the one that an address means: by its key, or by its id alone. */
function names(one: EndedRequest, chosen: string): boolean {
  return key(one) === chosen || one.requestId === chosen;
}

/** Asks for the receipt of any request that the control plane still knows. */
function Find() {
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault();
        const id = String(new FormData(event.currentTarget).get("id") ?? "").trim();
        if (id) go("requests", id);
      }}
    >
      <input
        class="input mono"
        name="id"
        aria-label="Id of a request"
        placeholder="Id of a request"
        autoComplete="off"
        spellcheck={false}
      />
      <button type="submit" class="button">
        Receipt
      </button>
    </form>
  );
}

function Ended({ one }: { one: EndedRequest }) {
  const why = `It ended without a receipt: ${one.outcome}`;
  return <Side deployment={one.receipt?.adapter || one.deployment} id={one.requestId} receipt={one.receipt} why={why} />;
}

/** One that this page has not seen: the control plane is asked, which keeps the last thousand. */
function Earlier({ id }: { id: string }) {
  const requestId = id.replace(/@\d+\.\d+$/, "");
  const told = useSignal<GetReceiptResponse | undefined>(undefined);
  const failed = useSignal("");
  useEffect(() => {
    const leave = new AbortController();
    cluster
      .getReceipt({ requestId }, { signal: leave.signal })
      .then((found) => (told.value = found))
      .catch((error) => (failed.value = reasonOf(error)));
    return () => leave.abort();
  }, [requestId]);
  const why = failed.value || "The control plane is asked…";
  const { deployment = "", receipt } = told.value ?? {};
  return <Side deployment={deployment} id={requestId} receipt={receipt} why={why} />;
}

interface SideProps {
  deployment: string;
  id: string;
  receipt: Receipt | undefined;
  /** Why there is none, if there is none. */
  why: string;
}

function Side({ deployment, id, receipt, why }: SideProps) {
  return (
    <aside class="stack">
      <section class="card" aria-label="Receipt">
        <header>
          <h2 class="nowrap">{deployment || "Receipt"}</h2>
          <span class="muted mono cut">{id}</span>
        </header>
        {receipt ? <Waterfall receipt={receipt} /> : <p class="empty">{why}</p>}
      </section>
      <OriginLegend />
    </aside>
  );
}
