/** A start's phases, as a bar that grows until the instance is ready. */

import { bytes, share, span } from "../format";
import { LOAD, LOAD_COLOUR, TIER } from "../names";
import { LoadPhase, Tier } from "../gen/serverlessllm/v1/types_pb";
import type { Start, Step } from "../state/starts";
import { now } from "../state/summary";

export function StartBar({ start }: { start: Start }) {
  // A start may be younger than the last look at the clock.
  const at = Math.max(now.value, start.beganAt);
  const whole = Math.max(start.readyAt ?? 0, at) - start.beganAt || 1;
  const last = start.steps.at(-1);
  const left = start.readyAt === undefined ? "" : leftOf(start.readyAt - at);
  return (
    <span class="start">
      <span
        class="bar moving"
        role="progressbar"
        aria-label="start"
        aria-valuenow={Math.round(((at - start.beganAt) / whole) * 100)}
      >
        {start.steps.map((step) => (
          <i
            key={step.phase}
            style={{
              "--colour": LOAD_COLOUR[step.phase],
              width: `${((((step.endedAt ?? at) - step.beganAt) / whole) * 100).toFixed(1)}%`,
            }}
          />
        ))}
      </span>
      <span class="words">
        <span class="cut">{last ? wordsOf(last) : "waiting for room"}</span>
        <span class="nowrap">
          {span((at - start.beganAt) / 1000)}
          {left}
        </span>
      </span>
    </span>
  );
}

function leftOf(milliseconds: number): string {
  return milliseconds > 50 ? `, ${span(milliseconds / 1000)} left` : "";
}

export function wordsOf(step: Pick<Step, "phase" | "fromTier" | "loaded" | "total">): string {
  if (step.phase === LoadPhase.INIT || step.total === 0n) return LOAD[step.phase];
  const from = step.fromTier === Tier.UNSPECIFIED ? "" : ` from ${TIER[step.fromTier]}`;
  const size = step.loaded < step.total ? share(step.loaded, step.total) : bytes(step.total);
  return `${LOAD[step.phase]} ${size}${from}`;
}
