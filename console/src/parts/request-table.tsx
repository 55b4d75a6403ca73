import type { EndedRequest } from "../gen/serverlessllm/v1/cluster_service_pb";
import { clock, millis, seconds, span } from "../format";
import { go } from "../route";
import { key } from "../state/cluster";
import { Dot, origin } from "./graphs";
import { memo } from "./memo";

interface Props {
  requests: readonly EndedRequest[];
  chosen?: string;
  named?: boolean;
}

/** Requests that have ended; one that is chosen shows where its time went. */
export function RequestTable({ requests, chosen, named = false }: Props) {
  if (requests.length === 0) return <p class="empty">None has ended yet.</p>;
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>Ended</th>
            {named && <th>Deployment</th>}
            <th>First token from</th>
            <th class="number">First token</th>
            <th class="number">Tokens</th>
            <th class="number">Took</th>
            <th>Node</th>
            <th>Outcome</th>
          </tr>
        </thead>
        <tbody>
          {requests.map((one) => (
            <Row key={key(one)} one={one} chosen={key(one) === chosen} named={named} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface RowProps {
  one: EndedRequest;
  chosen: boolean;
  named: boolean;
}

const Row = memo(function Row({ one, chosen, named }: RowProps) {
  const { colour, from } = origin(one);
  const failed = !["OK", "CANCELLED", "GAVE_WAY"].includes(one.outcome);
  return (
    <tr
      class={`choice ${chosen ? "chosen" : ""}`}
      tabIndex={0}
      onClick={() => go("requests", key(one))}
      onKeyDown={(event) => event.key === "Enter" && go("requests", key(one))}
    >
      <td class="nowrap">{clock(millis(one.endedAt) ?? 0)}</td>
      {named && (
        <td>
          <b>{one.receipt?.adapter || one.deployment}</b>
        </td>
      )}
      <td>
        <span class="row nowrap">
          <Dot colour={colour} />
          {from}
        </span>
      </td>
      <td class="number">{one.receipt ? span(seconds(one.receipt.timeToFirstToken)) : "–"}</td>
      <td class="number">{one.generatedTokens}</td>
      <td class="number">{span(seconds(one.duration))}</td>
      <td>{one.receipt?.nodeId ?? "–"}</td>
      <td class={failed ? "danger" : "quiet"}>{one.outcome === "OK" ? "ok" : one.outcome}</td>
    </tr>
  );
});
