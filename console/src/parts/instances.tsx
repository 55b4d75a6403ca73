/** A node's instances: a row for each of a few, a tile for each of many. */

import { InstanceDialog } from "../dialogs/instance";
import { InstanceState } from "../gen/serverlessllm/v1/types_pb";
import { bytes } from "../format";
import { STATE } from "../names";
import { instances, instancesOn } from "../state/cluster";
import { type Live, words } from "../state/live";
import { done } from "../state/starts";
import { now } from "../state/summary";
import { open } from "./dialog";
import { Dot } from "./graphs";
import { useLook } from "./memo";
import { StartBar } from "./start-bar";

const MOST_ROWS = 8;
const DEFAULT_CONCURRENCY = 64;

export function Instances({ nodeId }: { nodeId: string }) {
  const ids = instancesOn(nodeId).value;
  if (ids.length === 0) return <p class="muted">No instances</p>;
  if (ids.length > MOST_ROWS) return <Tiles ids={ids} nodeId={nodeId} />;
  return (
    <div class="rows">
      {ids.map((id) => (
        <Row key={id} id={id} />
      ))}
    </div>
  );
}

function Row({ id }: { id: string }) {
  const live = instances.of(id)?.value;
  const instance = live?.load.instance;
  if (!live || !instance) return null;
  return (
    <button type="button" class="instance" title={id} onClick={() => open(<InstanceDialog id={id} />)}>
      <Dot colour={colourOf(live)} />
      <span class="row">
        <span class="cut">{instance.deployment}</span>
        <span class="muted">{words(live)}</span>
      </span>
      <span class="quiet nowrap">
        {instance.state === InstanceState.STARTING ? "" : bytes(instance.kvBytes)}
      </span>
      {live.start && <StartBar start={live.start} />}
    </button>
  );
}

/** One place for the keyboard to stop at: within it, the arrows lead on. */
function Tiles({ ids, nodeId }: { ids: readonly string[]; nodeId: string }) {
  return (
    <div
      class="tiles"
      role="group"
      aria-label={`instances of ${nodeId}`}
      onClick={(event) => show(event.target)}
      onKeyDown={(event) => {
        if (press(event.key, event.target as HTMLElement)) event.preventDefault();
      }}
    >
      {ids.map((id, index) => (
        <Tile key={id} id={id} first={index === 0} />
      ))}
    </div>
  );
}

function show(target: EventTarget | null): void {
  const id = (target as HTMLElement).dataset["id"];
  if (id) open(<InstanceDialog id={id} />);
}

/** Whether a key means something on a tile. */
function press(key: string, tile: HTMLElement): boolean {
  if (key === "Enter" || key === " ") show(tile);
  else if (key === "ArrowRight") (tile.nextElementSibling as HTMLElement | null)?.focus();
  else if (key === "ArrowLeft") (tile.previousElementSibling as HTMLElement | null)?.focus();
  else return false;
  return true;
}

// No <button>: a browser lays those out as several boxes, and there may be thousands.
function Tile({ id, first }: { id: string; first: boolean }) {
  const { kind, said, colour, part } = useLook(() => lookOf(instances.of(id)?.value));
  return (
    <i
      role="button"
      tabIndex={first ? 0 : -1}
      class={kind}
      data-id={id}
      title={said}
      aria-label={said}
      style={{ "--colour": colour, "--part": part }}
    />
  );
}

/** What a tile shows of an instance: less than what changes of it. */
function lookOf(live: Live | undefined) {
  const instance = live?.load.instance;
  if (!live || !instance) return { kind: "tile", said: "", colour: "", part: "0" };
  return {
    kind: `tile ${STATE[instance.state]}`,
    said: `${instance.deployment}: ${words(live)}`,
    colour: colourOf(live),
    part: partOf(live).toFixed(2),
  };
}

/** How much of a tile is filled: how far the start is, or how busy the instance. */
function partOf({ load, start }: Live): number {
  if (start) return done(start, now.value) ?? 0.15;
  if (load.inFlight === 0) return 0;
  const most = load.instance?.config?.maxConcurrency ?? DEFAULT_CONCURRENCY;
  return Math.min(1, 0.4 + (0.6 * load.inFlight) / most);
}

export function colourOf({ load }: Live): string {
  switch (load.instance?.state) {
    case InstanceState.STARTING:
      return "var(--engine)";
    case InstanceState.READY:
      return load.inFlight > 0 ? "var(--warm)" : "var(--muted)";
    default:
      return "var(--ssd)";
  }
}
