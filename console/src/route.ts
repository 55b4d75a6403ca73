/** Where in the console one is: what stands behind the address's `#`. */

import { signal } from "@preact/signals";

export const PLACES = ["cluster", "deployments", "requests", "playground"] as const;
export type Place = (typeof PLACES)[number];

export interface Route {
  place: Place;
  /** What is looked at there: a deployment's name, or a request's key. Empty: nothing in particular. */
  id: string;
}

export const route = signal<Route>(read());

function read(): Route {
  const [, name = "", id = ""] = /^#\/([a-z]*)(?:\/(.*))?$/.exec(location.hash) ?? [];
  const place = PLACES.find((one) => one === name) ?? "cluster";
  return { place, id: decoded(id) };
}

function decoded(id: string): string {
  try {
    return decodeURIComponent(id);
  } catch {
    return "";
  }
}

addEventListener("hashchange", () => (route.value = read()));

export function to(place: Place, id = ""): string {
  return id ? `#/${place}/${encodeURIComponent(id)}` : `#/${place}`;
}

export function go(place: Place, id = ""): void {
  location.hash = to(place, id);
}
