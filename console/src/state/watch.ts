/** Follows the cluster for as long as the page is open. */

import { signal } from "@preact/signals";
import { cluster, isUnknown, reasonOf } from "../api";
import { asked } from "../key";
import { take } from "./cluster";

export type Link = "connecting" | "live" | "lost";

export const link = signal<Link>("connecting");
/** Why nothing is heard, while nothing is. */
export const trouble = signal("");

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 5_000;
const HIDDEN_PAUSE = 500;

/** Reads for ever: again after every end of the stream. */
export async function watch(): Promise<never> {
  let pause = FIRST_PAUSE;
  for (;;) {
    try {
      for await (const message of cluster.watchCluster({})) {
        // What comes faster than it can be shown waits on its way: the control plane sums it up.
        await frame();
        take(message);
        link.value = "live";
        asked.value = false;
        pause = FIRST_PAUSE;
      }
    } catch (error) {
      trouble.value = reasonOf(error);
      asked.value = isUnknown(error);
    }
    link.value = "lost";
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(LONGEST_PAUSE, pause * 2);
  }
}

/** The next frame; in the background, where there are none, a while. */
function frame(): Promise<unknown> {
  if (document.hidden) return new Promise((resolve) => setTimeout(resolve, HIDDEN_PAUSE));
  return new Promise((resolve) => requestAnimationFrame(resolve));
}
