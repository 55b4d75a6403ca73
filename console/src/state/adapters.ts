/** Adapters over deployments, and where they are: by what nodes tell of their instances. */

import { computed } from "@preact/signals";
import { catalog } from "./catalog";
import { byName } from "./entries";
import { instances } from "./cluster";

/** For each deployment, the names of the adapters over it. */
export const adaptersOver = computed(() => {
  const found = new Map<string, string[]>();
  for (const one of catalog.value.values()) {
    if (!one.base) continue;
    const over = found.get(one.base) ?? [];
    if (over.length === 0) found.set(one.base, over);
    over.push(one.name);
  }
  for (const over of found.values()) over.sort(byName);
  return found;
});

/** The instances that have an adapter, as they are now. */
export function havingIt(adapter: string): string[] {
  const found = [];
  for (const { load } of instances.all()) {
    if (load.instance?.adapters.some((one) => one.deployment === adapter)) found.push(load.instance.instanceId);
  }
  return found;
}
