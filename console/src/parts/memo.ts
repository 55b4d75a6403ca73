/** What is drawn anew only where it has changed: of thousands of parts few do with each message. */

import { useComputed } from "@preact/signals";
import { Component, type ComponentType, type FunctionComponent, h } from "preact";
import { useRef } from "preact/hooks";

/** A component that is drawn again when one of its properties is another than before, and else not. */
export function memo<P extends object>(Inner: FunctionComponent<P>): ComponentType<P> {
  return class extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      return !same(this.props, next);
    }

    override render() {
      return h(Inner, this.props);
    }
  };
}

/** What `look` makes of signals; the component is drawn again when it makes something else of them. */
export function useLook<T extends object>(look: () => T): T {
  const last = useRef<T>(undefined);
  return useComputed(() => {
    const found = look();
    if (!last.current || !same(last.current, found)) last.current = found;
    return last.current;
  }).value;
}

/** Whether two objects have the same properties, each of the same value. */
export function same<T extends object>(one: T, other: T): boolean {
  const names = Object.keys(one) as (keyof T)[];
  return names.length === Object.keys(other).length && names.every((name) => one[name] === other[name]);
}
