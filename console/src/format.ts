/** Quantities as people read them. */

import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampMs } from "@bufbuild/protobuf/wkt";

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];

/** Bytes with three digits: "1.25 GB". */
export function bytes(count: bigint | number): string {
  let value = Number(count);
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : short(value)} ${UNITS[unit]}`;
}

/** Bytes of a whole, in the whole's unit: "0.4 / 2.0 GB". */
export function share(used: bigint | number, whole: bigint | number): string {
  const text = bytes(whole);
  const unit = UNITS.indexOf(text.slice(text.lastIndexOf(" ") + 1));
  return `${short(Number(used) / 1024 ** unit)} / ${text}`;
}

export function rate(bytesPerSecond: number): string {
  return bytesPerSecond > 0 ? `${bytes(Math.round(bytesPerSecond))}/s` : "–";
}

/** A number with about three digits. */
export function short(value: number): string {
  if (value === 0) return "0";
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function count(value: number | bigint): string {
  const number = Number(value);
  if (number < 10_000) return String(number);
  return number < 1e6 ? `${short(number / 1e3)}k` : `${short(number / 1e6)}M`;
}

/** Seconds of a Duration; undefined if there is none. */
export function seconds(duration: Duration | undefined): number | undefined {
  return duration && Number(duration.seconds) + duration.nanos / 1e9;
}

/** A time span: "4.2 ms", "1.31 s", "3 min". */
export function span(value: number | undefined): string {
  if (value === undefined) return "–";
  if (value < 0.9995) return `${short(value * 1000)} ms`;
  if (value < 100) return `${Number.isInteger(value) ? value : short(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 129_600 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86_400)} d`;
}

export function millis(timestamp: Timestamp | undefined): number | undefined {
  return timestamp && timestampMs(timestamp);
}

const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hour12: false });

/** The time of day, with seconds. */
export function clock(at: number): string {
  return TIME.format(at);
}

export function plural(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

/** The middle of some numbers; undefined of none. */
export function median(values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}
