import { render } from "preact";
import { App } from "./app";
import { beginTheme } from "./parts/theme";
import * as catalog from "./state/catalog";
import * as summary from "./state/summary";
import { watch } from "./state/watch";

beginTheme();
summary.begin();
catalog.begin();
void watch();
render(<App />, document.getElementById("app")!);
