/** One thing that was said, and how it came about. Whatever a model says is shown as text. */

import { FinishReason } from "../gen/serverlessllm/v1/types_pb";
import { plural, seconds, short, span } from "../format";
import { busy, type Call, setResult, type Turn } from "../state/chat";
import { now } from "../state/summary";
import { wordsOf } from "./start-bar";
import { LOAD_COLOUR } from "../names";
import { Waterfall } from "./waterfall";

interface Props {
  turn: Turn;
  latest: boolean;
  onResults: () => void;
}

export function TurnView({ turn, latest, onResults }: Props) {
  if (turn.role === "user") {
    return (
      <article class="turn user">
        <p class="text">{turn.text}</p>
      </article>
    );
  }
  const open = turn.endedAt === undefined;
  return (
    <article class="turn">
      {open && turn.firstAt === undefined && <Waiting turn={turn} />}
      {turn.reasoning && <p class="thought">{turn.reasoning}</p>}
      {(turn.text || (open && turn.firstAt !== undefined)) && (
        <p class="text">
          {turn.text}
          {open && <span class="caret" />}
        </p>
      )}
      {turn.calls.map((call, index) => (
        <CallView key={index} turn={turn} call={call} index={index} waits={latest && !open} />
      ))}
      {latest && !open && turn.calls.length > 0 && (
        <div>
          <button
            type="button"
            class="button"
            disabled={busy.value || turn.calls.some((call) => call.result === undefined)}
            onClick={onResults}
          >
            Send results
          </button>
        </div>
      )}
      {turn.moves.map((move) => (
        <p key={move} class="more">
          {move}
        </p>
      ))}
      {turn.failed && (
        <p class="note bad" role="alert">
          {turn.failed}
        </p>
      )}
      {!open && <Outcome turn={turn} />}
    </article>
  );
}

/** Before the first token: the queue, or a cold start. */
function Waiting({ turn }: { turn: Turn }) {
  void now.value;
  const elapsed = (performance.now() - turn.beganAt) / 1000;
  const { loading, waits } = turn;
  const left = seconds(loading?.estimatedRemaining ?? waits?.estimatedWait);
  const part = loading && loading.totalBytes > 0n ? Number(loading.loadedBytes) / Number(loading.totalBytes) : 0;
  return (
    <div class="cold" role="status">
      <div class="spread">
        <b>{loading ? "Starting" : "Waiting"}</b>
        <span class="quiet">
          {span(elapsed)}
          {left !== undefined && left > 0.05 && `, about ${span(left)} left`}
        </span>
      </div>
      <span class="bar moving" style={{ "--colour": loading ? LOAD_COLOUR[loading.phase] : "var(--wait)" }}>
        <i style={{ width: `${(part * 100).toFixed(1)}%` }} />
      </span>
      <span class="quiet">
        {loading
          ? wordsOf({
              phase: loading.phase,
              fromTier: loading.fromTier,
              loaded: loading.loadedBytes,
              total: loading.totalBytes,
            })
          : waits && waits.position > 0
            ? `behind ${plural(waits.position, "request")}`
            : "for an instance"}
      </span>
    </div>
  );
}

interface CallProps {
  turn: Turn;
  call: Call;
  index: number;
  waits: boolean;
}

function CallView({ turn, call, index, waits }: CallProps) {
  return (
    <div class="call">
      <div>
        <span class="muted">calls</span> <b class="mono">{call.name}</b>
      </div>
      <pre>{call.arguments}</pre>
      {waits ? (
        <textarea
          class="input mono"
          rows={2}
          aria-label={`Result of ${call.name}`}
          placeholder="What it has answered"
          value={call.result ?? ""}
          onInput={(event) => setResult(turn.id, index, event.currentTarget.value)}
        />
      ) : (
        call.result !== undefined && <pre class="quiet">{call.result}</pre>
      )}
    </div>
  );
}

const ENDS: Record<FinishReason, string> = {
  [FinishReason.UNSPECIFIED]: "",
  [FinishReason.STOP]: "it ended by itself",
  [FinishReason.LENGTH]: "as long as allowed",
  [FinishReason.TOOL_CALLS]: "it calls tools",
};

function Outcome({ turn }: { turn: Turn }) {
  const { finished, firstAt, endedAt } = turn;
  const took = firstAt !== undefined && endedAt !== undefined ? (endedAt - firstAt) / 1000 : 0;
  const receipt = finished?.receipt;
  return (
    <details>
      <summary class="more">
        <span>
          {plural(turn.tokens, "token")}
          {took > 0 && turn.tokens > 1 && `, ${short((turn.tokens - 1) / took)} tok/s`}
        </span>
        {receipt && (
          <span>
            first token {span(seconds(receipt.timeToFirstToken))}, {receipt.cold ? "cold" : "warm"}
          </span>
        )}
        <span>{finished ? ENDS[finished.reason] : "stopped"}</span>
      </summary>
      {receipt && <Waterfall receipt={receipt} />}
    </details>
  );
}
