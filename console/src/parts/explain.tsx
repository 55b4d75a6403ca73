/** Where one more request would be served now, and why not elsewhere. */

import { useEffect, useState } from "preact/hooks";
import { cluster, reasonOf } from "../api";
import type {
  ExplainPlacementResponse,
  PlacementCandidate,
  StartEstimate,
} from "../gen/serverlessllm/v1/cluster_service_pb";
import { bytes, plural, seconds, span } from "../format";
import { ACTION, TIER, TIER_COLOUR } from "../names";
import { Dot } from "./graphs";

const EVERY_MS = 2_000;

const PARTS: readonly (readonly [Exclude<keyof StartEstimate, "$typeName" | "$unknown">, string, string])[] = [
  ["makingRoom", "making room", "var(--remote)"],
  ["queue", "queue", "var(--wait)"],
  ["transfer", "transfer", "var(--ssd)"],
  ["init", "init", "var(--engine)"],
];

export function Explain({ name }: { name: string }) {
  const [told, setTold] = useState<ExplainPlacementResponse>();
  const [failed, setFailed] = useState("");
  useEffect(() => {
    const leave = new AbortController();
    const ask = async () => {
      try {
        setTold(await cluster.explainPlacement({ deployment: name }, { signal: leave.signal }));
        setFailed("");
      } catch (error) {
        setFailed(reasonOf(error));
      }
    };
    void ask();
    const timer = setInterval(() => void ask(), EVERY_MS);
    return () => {
      leave.abort();
      clearInterval(timer);
    };
  }, [name]);
  return (
    <section class="card" aria-label="Placement">
      <header>
        <h2>
          The next request{" "}
          {told && (
            <span class="quiet">
              {ACTION[told.action]}
              {told.nodeId && ` on ${told.nodeId}`}
              {told.estimate && `, ready in ${span(seconds(told.estimate))}`}
            </span>
          )}
        </h2>
      </header>
      {failed && <p class="note bad">{failed}</p>}
      {told && <Candidates told={told} />}
    </section>
  );
}

function Candidates({ told }: { told: ExplainPlacementResponse }) {
  const longest = Math.max(0.001, ...told.candidates.map((one) => seconds(one.estimate) ?? 0));
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>A new instance on</th>
            <th>From</th>
            <th class="number">Estimate</th>
            <th>
              <span class="legend">
                {PARTS.map(([, word, colour]) => (
                  <span key={word}>
                    <Dot colour={colour} /> {word}
                  </span>
                ))}
              </span>
            </th>
            <th>Ends first</th>
            <th>Why</th>
          </tr>
        </thead>
        <tbody>
          {told.candidates.map((one) => (
            <Candidate key={one.nodeId} one={one} longest={longest} chosen={one.nodeId === told.nodeId} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface CandidateProps {
  one: PlacementCandidate;
  longest: number;
  chosen: boolean;
}

function Candidate({ one, longest, chosen }: CandidateProps) {
  return (
    <tr class={chosen ? "chosen" : ""}>
      <td>
        <b>{one.nodeId}</b>
      </td>
      <td>
        <span class="row">
          <Dot colour={TIER_COLOUR[one.fromTier]} />
          {TIER[one.fromTier]}
        </span>
      </td>
      <td class="number">{one.rejected ? "–" : span(seconds(one.estimate))}</td>
      <td>
        <span class="parts">
          {PARTS.map(([part, word, colour]) => {
            const value = seconds(one.parts?.[part]) ?? 0;
            return (
              <i
                key={part}
                title={`${word}: ${span(value)}`}
                style={{ "--colour": colour, width: `${((value / longest) * 100).toFixed(1)}%` }}
              />
            );
          })}
        </span>
      </td>
      <td class="nowrap quiet">{endsFirst(one)}</td>
      <td class="verdict">{one.verdict}</td>
    </tr>
  );
}

function endsFirst(one: PlacementCandidate): string {
  const parts = [
    one.victims.length > 0 ? plural(one.victims.length, "idle instance") : "",
    one.migrated.length > 0 ? `${plural(one.migrated.length, "instance")} moves` : "",
    one.evictedBytes > 0n ? `${bytes(one.evictedBytes)} of weights` : "",
  ];
  return parts.filter(Boolean).join(", ") || "–";
}
