/** Small graphs that stand in a row of text. */

import type { EndedRequest } from "../gen/serverlessllm/v1/cluster_service_pb";
import { Tier } from "../gen/serverlessllm/v1/types_pb";
import { seconds, span } from "../format";
import { TIER, TIER_COLOUR } from "../names";
import { memo } from "./memo";

/** A line over time, from 0 up. */
export const Spark = memo(function Spark({ values, label }: { values: readonly number[]; label: string }) {
  const highest = Math.max(1, ...values);
  const points = values.map((value, index) => {
    const x = (90 * (index + 60 - values.length)) / 59;
    return `${x.toFixed(1)},${(21 - (19 * value) / highest).toFixed(1)}`;
  });
  return (
    <svg class="spark" viewBox="0 0 90 22" role="img" aria-label={label}>
      {points.length > 1 && <path d={`M${points.join("L")}`} />}
    </svg>
  );
});

const SHORTEST = 0.001;
const LONGEST = 100;

/** First tokens on a logarithmic scale from 1 ms to 100 s, coloured by where they came from. */
export const FirstTokens = memo(function FirstTokens({ requests }: { requests: readonly EndedRequest[] }) {
  return (
    <svg class="strip" viewBox="0 0 180 22" role="img" aria-label="times to the first token">
      {[0, 1, 2, 3, 4, 5].map((decade) => (
        <line key={decade} x1={4 + decade * 34.4} x2={4 + decade * 34.4} y1="2" y2="20" />
      ))}
      {requests.filter((one) => one.receipt).map((one, index) => {
        const value = seconds(one.receipt?.timeToFirstToken) ?? SHORTEST;
        const share = Math.log(clamp(value) / SHORTEST) / Math.log(LONGEST / SHORTEST);
        const { colour, from } = origin(one);
        return (
          <circle key={one.requestId} cx={4 + 172 * share} cy={6 + (index % 4) * 3.3} r="2.6" fill={colour}>
            <title>{`${span(value)}, ${from}`}</title>
          </circle>
        );
      })}
    </svg>
  );
});

function clamp(value: number): number {
  return Math.min(LONGEST, Math.max(SHORTEST, value));
}

/** Where a request's first token came from. */
export function origin(one: EndedRequest): { colour: string; from: string } {
  if (!one.receipt) return { colour: "var(--muted)", from: one.generatedTokens > 0 ? "not told" : "no token" };
  if (!one.receipt.cold) return { colour: "var(--warm)", from: "warm" };
  const tier = one.receipt.fromTier;
  return { colour: TIER_COLOUR[tier], from: tier === Tier.UNSPECIFIED ? "cold" : `cold, ${TIER[tier]}` };
}

const ORIGINS: readonly (readonly [string, string])[] = [
  ["var(--warm)", "warm"],
  [TIER_COLOUR[Tier.DEVICE], "from a device"],
  [TIER_COLOUR[Tier.DRAM], "from DRAM"],
  [TIER_COLOUR[Tier.SSD], "from SSD"],
  [TIER_COLOUR[Tier.REMOTE], "from remote"],
];

export function OriginLegend() {
  return (
    <div class="legend">
      {ORIGINS.map(([colour, word]) => (
        <span key={word}>
          <Dot colour={colour} /> {word}
        </span>
      ))}
    </div>
  );
}

export function Dot({ colour }: { colour: string }) {
  return <span class="dot" style={{ "--colour": colour }} />;
}
