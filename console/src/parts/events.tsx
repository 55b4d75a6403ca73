import { clock } from "../format";
import { type Happening, happenings, type Kind } from "../state/events";
import { Dot } from "./graphs";
import { memo } from "./memo";

const SHOWN = 100;
const COLOURS: Record<Kind, string> = {
  start: "var(--engine)",
  ready: "var(--warm)",
  end: "var(--muted)",
  move: "var(--accent)",
  node: "var(--dram)",
  deploy: "var(--device)",
  cold: "var(--ssd)",
  problem: "var(--danger)",
};

const Line = memo(function Line({ one }: { one: Happening }) {
  return (
    <li>
      <time>{clock(one.at)}</time>
      <Dot colour={COLOURS[one.kind]} />
      <span>
        <b>{one.subject}</b> <span class="quiet">{one.text}</span>
        {one.times > 1 && <span class="muted"> ×{one.times}</span>}
      </span>
    </li>
  );
});

/** What has happened since the page was opened. */
export function Events() {
  const shown = happenings.value.slice(0, SHOWN);
  return (
    <section class="card" aria-label="Events">
      <header>
        <h2>Events</h2>
        {shown.length > 0 && (
          <button
            type="button"
            class="button plain small"
            onClick={() => (happenings.value = [])}
          >
            Clear
          </button>
        )}
      </header>
      {shown.length === 0 ? (
        <p class="empty">What happens from now on is told here.</p>
      ) : (
        <ol class="events">
          {shown.map((one) => (
            <Line key={one.id} one={one} />
          ))}
        </ol>
      )}
    </section>
  );
}
