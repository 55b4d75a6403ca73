/** Things by id: each a signal of its own, beside a signal of which there are. */

import { type Signal, signal } from "@preact/signals";

export class Entries<T> {
  /** The ids there are. Changes only when one comes or goes. */
  readonly ids = signal<string[]>([]);
  private readonly signals = new Map<string, Signal<T>>();
  private unsettled = false;

  /** `order`: in which ids are shown. None: as they have come. */
  constructor(private readonly order?: (a: string, b: string) => number) {}

  /** A thing, for a component that follows it. */
  of(id: string): Signal<T> | undefined {
    return this.signals.get(id);
  }

  /** A thing as it is now, without following it. */
  peek(id: string): T | undefined {
    return this.signals.get(id)?.peek();
  }

  /** All things as they are now. */
  *all(): Generator<T> {
    for (const one of this.signals.values()) yield one.peek();
  }

  put(id: string, value: T): void {
    const found = this.signals.get(id);
    if (found) {
      found.value = value;
      return;
    }
    this.signals.set(id, signal(value));
    this.unsettled = true;
  }

  /** Forgets a thing, and gives what it was. */
  drop(id: string): T | undefined {
    const found = this.signals.get(id);
    if (found && this.signals.delete(id)) this.unsettled = true;
    return found?.peek();
  }

  /** Tells of what has come and gone since the last time. */
  settle(): void {
    if (!this.unsettled) return;
    this.unsettled = false;
    const ids = [...this.signals.keys()];
    this.ids.value = this.order ? ids.sort(this.order) : ids;
  }
}

const collator = new Intl.Collator(undefined, { numeric: true });

/** node-2 before node-10. */
export function byName(a: string, b: string): number {
  return collator.compare(a, b);
}
