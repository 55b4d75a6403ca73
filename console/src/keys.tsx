/** The keyboard. */

import { DeployDialog } from "./dialogs/deploy";
import { close, Dialog, isOpen, open } from "./parts/dialog";
import { nextTheme } from "./parts/theme";
import { go, type Place } from "./route";

const PLACES: Record<string, Place> = {
  c: "cluster",
  d: "deployments",
  r: "requests",
  p: "playground",
};

const KEYS: readonly (readonly [string, string])[] = [
  ["g c", "Cluster"],
  ["g d", "Deployments"],
  ["g r", "Requests"],
  ["g p", "Playground"],
  ["n", "New deployment"],
  ["/", "Filter, or write to a model"],
  ["t", "Light, dark, or as the system"],
  ["?", "This list"],
  ["Esc", "Close"],
];

let began = 0;

export function listenToKeys(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isOpen() || isTyping(event)) return;
    if (press(event.key)) event.preventDefault();
  });
}

function isTyping(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement;
  return target.matches("input, textarea, select") || target.isContentEditable;
}

/** Whether a key means something. */
function press(key: string): boolean {
  const place = PLACES[key];
  if (place && performance.now() - began < 1500) {
    began = 0;
    go(place);
    return true;
  }
  switch (key) {
    case "g":
      began = performance.now();
      return true;
    case "n":
      open(<DeployDialog />);
      return true;
    case "t":
      nextTheme();
      return true;
    case "?":
      open(<Keys />);
      return true;
    case "/":
      document.querySelector<HTMLElement>("[data-search]")?.focus();
      return true;
    default:
      return false;
  }
}

function Keys() {
  return (
    <Dialog title="Keyboard">
      <dl class="help">
        {KEYS.map(([keys, meaning]) => (
          <>
            <dt>
              {keys.split(" ").map((key) => (
                <>
                  <kbd>{key}</kbd>{" "}
                </>
              ))}
            </dt>
            <dd>{meaning}</dd>
          </>
        ))}
      </dl>
      <div class="actions">
        <button type="button" class="button" onClick={close}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
