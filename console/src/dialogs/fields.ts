/** What people write into forms, as the protocol's values. */

import type { Duration } from "@bufbuild/protobuf/wkt";
import { durationFromMs } from "@bufbuild/protobuf/wkt";

type Written = FormDataEntryValue | null | undefined;

export function textOf(written: Written): string {
  return typeof written === "string" ? written.trim() : "";
}

/** A number, or undefined where nothing is written. */
export function numberOf(written: Written, name: string): number | undefined {
  const text = textOf(written);
  if (text === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${name} is not a number: ${text}`);
  return value;
}

export function wholeOf(written: Written, name: string): number | undefined {
  const value = numberOf(written, name);
  if (value !== undefined && !Number.isInteger(value)) {
    throw new Error(`${name} is not a whole number: ${value}`);
  }
  return value;
}

/** Seconds as a Duration, or undefined where nothing is written. */
export function durationOf(written: Written, name: string): Duration | undefined {
  const value = numberOf(written, name);
  return value === undefined ? undefined : durationFromMs(Math.round(value * 1000));
}
