/** What a node holds where, and how fast it comes there. */

import {
  type CheckpointCopy,
  type LinkObservation,
  type Node,
  type TierUsage,
} from "../gen/serverlessllm/v1/types_pb";
import { bytes, rate, share } from "../format";
import { TIER, TIER_COLOUR } from "../names";
import { nameOf } from "../state/catalog";
import { memo } from "./memo";

export function Tiers({ node }: { node: Node }) {
  const usages = [...node.tiers].sort((a, b) => b.tier - a.tier);
  return (
    <div class="tiers">
      {usages.map((usage) => (
        <TierRow key={usage.tier} node={node} usage={usage} />
      ))}
      <Cache node={node} />
    </div>
  );
}

function TierRow({ node, usage }: { node: Node; usage: TierUsage }) {
  const { tier, capacityBytes: capacity } = usage;
  const link = node.links.find((one) => one.toTier === tier);
  const copies = node.copies
    .filter((copy) => copy.tier === tier && copy.residentBytes > 0n)
    .sort((a, b) => Number(b.leased) - Number(a.leased) || Number(b.sizeBytes - a.sizeBytes));
  const held = copies.reduce((sum, copy) => sum + copy.residentBytes, 0n);
  const used = usage.usedBytes > held ? usage.usedBytes : held;
  const fills = isBusy(link) || copies.some((copy) => copy.residentBytes < copy.sizeBytes);
  return (
    <>
      <span class={usage.problem ? "danger" : "quiet"} title={usage.problem}>
        {TIER[tier]}
      </span>
      <span
        class={`bar ${fills ? "moving" : ""}`}
        style={{ "--colour": TIER_COLOUR[tier] }}
        role="img"
        aria-label={`${TIER[tier]}: ${share(used, capacity)} used`}
      >
        {copies.map((copy) => (
          <Segment
            key={copy.digest}
            idle={!copy.leased}
            width={percent(copy.residentBytes, capacity)}
            title={titleOf(copy)}
          />
        ))}
        {used > held && <i class="idle" style={{ width: percent(used - held, capacity) }} />}
      </span>
      <span class="amount">{share(used, capacity)}</span>
      <Way link={link} />
    </>
  );
}

const Segment = memo(function Segment({ idle, width, title }: SegmentProps) {
  return <i class={idle ? "idle" : ""} style={{ width }} title={title} />;
});

interface SegmentProps {
  idle: boolean;
  width: string;
  title: string;
}

function titleOf(copy: CheckpointCopy): string {
  const name = nameOf(copy.digest, copy.sources) || copy.digest.slice(0, 12);
  const size = copy.residentBytes < copy.sizeBytes
    ? share(copy.residentBytes, copy.sizeBytes)
    : bytes(copy.sizeBytes);
  const why = copy.holds.length > 0 ? ", kept" : copy.leased ? ", in use" : "";
  return `${name}: ${size}${why}`;
}

function isBusy(link: LinkObservation | undefined): boolean {
  return !!link && (link.queuedBytes > 0n || link.inFlightBytes > 0n);
}

/** The link that leads to a tier. */
function Way({ link }: { link: LinkObservation | undefined }) {
  if (!link) return <span class="way" />;
  const from = TIER[link.fromTier];
  const waits = link.queuedBytes > 0n ? `, ${bytes(link.queuedBytes)} on their way` : "";
  return (
    <span
      class={`way ${isBusy(link) ? "busy" : ""}`}
      style={{ "--colour": TIER_COLOUR[link.fromTier] }}
      title={`from ${from}: ${rate(link.bytesPerSecond)}${waits}`}
    >
      ← {rate(link.bytesPerSecond)}
    </span>
  );
}

function Cache({ node }: { node: Node }) {
  const devices = node.devices;
  const capacity = devices.reduce((sum, one) => sum + one.kvCapacityBytes, node.kvCapacityBytes);
  const used = devices.reduce((sum, one) => sum + one.kvUsedBytes, node.kvUsedBytes);
  if (capacity === 0n) return null;
  return (
    <>
      <span class="quiet">KV</span>
      <span
        class="bar"
        style={{ "--colour": "var(--warm)" }}
        role="img"
        aria-label={`KV caches: ${share(used, capacity)} used`}
      >
        <i style={{ width: percent(used, capacity) }} />
      </span>
      <span class="amount">{share(used, capacity)}</span>
      <span class="way" />
    </>
  );
}

function percent(part: bigint, whole: bigint): string {
  return whole === 0n ? "0" : `${Math.min(100, (Number(part) / Number(whole)) * 100).toFixed(2)}%`;
}

