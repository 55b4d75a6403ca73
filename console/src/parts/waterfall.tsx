/** A receipt: the phases up to the first token, each where it lies in time. */

import type { Receipt } from "../gen/serverlessllm/v1/types_pb";
import { bytes, rate, seconds, span } from "../format";
import { PHASE, PHASE_COLOUR, TIER } from "../names";

export function Waterfall({ receipt }: { receipt: Receipt }) {
  const whole = seconds(receipt.timeToFirstToken) || 0.001;
  return (
    <>
      <div class="fall" role="table" aria-label="where the time to the first token went">
        {receipt.phases.map((phase, index) => {
          const start = seconds(phase.start) ?? 0;
          const length = seconds(phase.duration) ?? 0;
          return (
            <PhaseRow
              key={index}
              name={PHASE[phase.kind]}
              colour={PHASE_COLOUR[phase.kind]}
              left={start / whole}
              width={length / whole}
              time={span(length)}
              moved={phase.sizeBytes === undefined ? "" : moved(phase.sizeBytes, length)}
            />
          );
        })}
        <PhaseRow
          name="first token"
          colour="var(--text)"
          left={1}
          width={0}
          time={span(whole)}
          moved=""
        />
      </div>
      <p class="said-of quiet">
        {receipt.cold ? `Cold, from ${TIER[receipt.fromTier]}` : "Warm"}, on {receipt.nodeId}
        {receipt.engine && ` with ${receipt.engine}`}.
        {receipt.estimatedStart &&
          ` The start was to take ${span(seconds(receipt.estimatedStart))} and took ${span(
            seconds(receipt.actualStart),
          )}.`}
      </p>
    </>
  );
}

function moved(size: bigint, length: number): string {
  return length > 0 ? `${bytes(size)}, ${rate(Number(size) / length)}` : bytes(size);
}

interface PhaseRowProps {
  name: string;
  colour: string;
  left: number;
  width: number;
  time: string;
  moved: string;
}

function PhaseRow({ name, colour, left, width, time, moved }: PhaseRowProps) {
  const from = Math.min(1, Math.max(0, left));
  return (
    <>
      <span class="nowrap">{name}</span>
      <span class="lane" title={moved}>
        <i
          style={{
            "--colour": colour,
            left: `calc(${(from * 100).toFixed(2)}% - ${from === 1 ? 2 : 0}px)`,
            width: `${(Math.min(1 - from, width) * 100).toFixed(2)}%`,
          }}
        />
      </span>
      <span class="time">
        {time}
        {moved && <span class="muted"> · {moved}</span>}
      </span>
    </>
  );
}
