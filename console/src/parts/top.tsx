import { count, plural } from "../format";
import { PLACES, route, to } from "../route";
import { nodes } from "../state/cluster";
import { total } from "../state/summary";
import { link } from "../state/watch";
import { nextTheme, theme } from "./theme";

const GLYPH = { system: "◐", light: "○", dark: "●" };
const WORD = { connecting: "connecting", live: "live", lost: "not connected" };

export function Top() {
  return (
    <header class="top">
      <a class="brand" href={to("cluster")} aria-label="sllm">
        <svg viewBox="0 0 32 32" aria-hidden="true">
          <rect x="2" y="21" width="28" height="8" rx="3" fill="var(--ssd)" />
          <rect x="2" y="12" width="21" height="7" rx="3" fill="var(--dram)" />
          <rect x="2" y="3" width="13" height="7" rx="3" fill="var(--warm)" />
        </svg>
        <span>sllm</span>
      </a>
      <nav class="tabs">
        {PLACES.map((place) => (
          <a
            key={place}
            href={to(place)}
            aria-current={route.value.place === place ? "page" : undefined}
          >
            {place[0]!.toUpperCase() + place.slice(1)}
          </a>
        ))}
      </nav>
      <Sums />
      <span class="live" data-link={link.value} role="status">
        <span class="dot" />
        <span>{WORD[link.value]}</span>
      </span>
      <button
        type="button"
        class="button plain"
        onClick={nextTheme}
        title={`Theme: ${theme.value}`}
        aria-label={`Theme: ${theme.value}`}
      >
        {GLYPH[theme.value]}
      </button>
    </header>
  );
}

function Sums() {
  const { ready, starting, inFlight, queued, rate } = total.value;
  return (
    <div class="sums">
      <span class="wide">
        <b>{nodes.ids.value.length}</b> {plural(nodes.ids.value.length, "node").split(" ")[1]}
      </span>
      <span>
        <b>{ready}</b> ready
      </span>
      {starting > 0 && (
        <span>
          <b>{starting}</b> starting
        </span>
      )}
      <span>
        <b>{inFlight}</b> running
      </span>
      <span>
        <b>{queued}</b> queued
      </span>
      <span>
        <b>{count(rate)}</b> tok/s
      </span>
    </div>
  );
}
